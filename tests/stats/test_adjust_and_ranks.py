"""Adjusted p-values and ranks against hand-made and scipy's results."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from moetrace import stats
from moetrace.stats import NotFiniteError, StatisticsError
from tests.stats import twins

P_VALUES = st.lists(st.floats(0, 1), min_size=0, max_size=30).map(np.array)


@given(P_VALUES)
def test_adjustments_are_their_twins(p):
    np.testing.assert_allclose(stats.adjust(p, "holm").p_adjusted, twins.holm(p), rtol=1e-14)
    np.testing.assert_allclose(stats.adjust(p, "bh").p_adjusted, twins.benjamini_hochberg(p), rtol=1e-14)


@given(P_VALUES.filter(len))
def test_benjamini_hochberg_is_scipys(p):
    expected = scipy.stats.false_discovery_control(p)
    np.testing.assert_allclose(stats.adjust(p, "bh").p_adjusted, expected, rtol=1e-12)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_adjusted_values_keep_the_order_and_the_family(p, random):
    shuffled = np.array(random.sample(range(len(p)), len(p)), int)
    for method in ("holm", "bh"):
        adjusted = stats.adjust(p, method).p_adjusted
        assert ((adjusted >= p) & (adjusted <= 1)).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
        np.testing.assert_array_equal(stats.adjust(p[shuffled], method).p_adjusted, adjusted[shuffled])


def test_nan_stays_out_of_the_family_when_asked_to():
    found = stats.adjust([0.01, np.nan, 0.04], nan="omit")
    np.testing.assert_allclose(found.p_adjusted, [0.02, np.nan, 0.04])
    assert found.n == 2


@pytest.mark.parametrize(
    ("p", "message"),
    [([0.1, 1.1], "outside"), ([0.1, np.nan], "NaN"), ([[0.1]], "shape"), (["a"], "numbers")],
)
def test_what_is_no_p_value_is_refused(p, message):
    with pytest.raises(StatisticsError, match=message):
        stats.adjust(p)
    with pytest.raises(StatisticsError, match="method"):
        stats.adjust([0.1], "bonferroni")


def test_ranks_by_hand():
    effects = np.array([[3, 1, 2, 9.0], [2, 2, 2, 1], [5, 0, 0, 0], [1, 2, 3, 4], [7, 8, 6, 5]])
    active = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    found = stats.ranks(effects, 0, active=active)
    np.testing.assert_array_equal(found.rank, [1, 3, np.nan, np.nan, 2])
    np.testing.assert_allclose(found.percentile, [1, 1 / 3, np.nan, np.nan, 2 / 3])
    assert (found.n, found.n_ranked, found.top_1, found.top_2, found.n_tied) == (5, 3, 1, 2, 1)
    assert found.mean_rank == pytest.approx(2.0)
    assert found.mean_percentile == pytest.approx(2 / 3)
    assert stats.ranks(effects, 0, active=active, ties="average").rank[1] == 2
    assert stats.ranks(effects, 0, active=active, ties="best").top_1 == 2


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ranks_are_scipys(seed, ties):
    rng = np.random.default_rng(seed)
    effects = rng.integers(0, 5, (12, 7)).astype(float) if ties else rng.normal(0, 1, (12, 7))
    effects[rng.random((12, 7)) < 0.3] = np.nan
    selected = rng.integers(-1, 7, 12)
    for rule, method in (("worst", "max"), ("average", "average"), ("best", "min")):
        found = stats.ranks(effects, selected, ties=rule)
        for case in range(12):
            row, own = effects[case], selected[case]
            known = ~np.isnan(row)
            if own < 0 or not known[own] or known.sum() < 2:
                assert np.isnan(found.rank[case])
                continue
            expected = scipy.stats.rankdata(-row[known], method=method)[known[:own].sum()]
            assert found.rank[case] == expected
            assert found.tied[case] == (row[known] == row[own]).sum() - 1


def test_ranks_refuse_what_does_not_fit():
    with pytest.raises(StatisticsError, match="cases x candidates"):
        stats.ranks([1.0, 2.0], 0)
    with pytest.raises(StatisticsError, match="out of range"):
        stats.ranks([[1.0, 2.0]], 2)
    with pytest.raises(StatisticsError, match="integer for each case"):
        stats.ranks([[1.0, 2.0]], [0, 1])
    with pytest.raises(StatisticsError, match="active has shape"):
        stats.ranks([[1.0, 2.0]], 0, active=[True, True])
    with pytest.raises(NotFiniteError):
        stats.ranks([[1.0, np.inf]], 0)


def test_no_case_to_rank_is_said_and_not_hidden():
    found = stats.ranks([[np.nan, 1.0]], 0)
    assert found.n_ranked == 0
    assert np.isnan(found.mean_rank)
