"""Sign-flip tests against enumeration, their numpy twin and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from moetrace import stats
from tests.stats import twins


def effects(cases, sites, mean=0.2):
    rng = np.random.default_rng(cases)
    shared = rng.normal(0, 1, (cases, 1))
    return rng.normal(mean, 1, (cases, sites)) * 0.7 + 0.7 * shared


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_exact_p_is_that_of_all_assignments(n):
    x = effects(n, 7)
    found = stats.sign_flip(x, correction="max_t_single", statistic="mean")
    expected = twins.flip_p_values(x, twins.all_signs(n), exact=True)
    assert found.exact
    assert found.n_flips == 2**n
    np.testing.assert_array_equal(found.p_value, expected["own"])
    np.testing.assert_array_equal(found.p_adjusted, expected["max_t_single"])
    stepped = stats.sign_flip(x, correction="max_t", statistic="mean").p_adjusted
    np.testing.assert_allclose(stepped, expected["max_t"], rtol=1e-15)


@pytest.mark.parametrize("n", [2, 6, 11])
def test_exact_p_is_scipys(n):
    x = effects(n, 1)[:, 0]
    theirs = scipy.stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    # Enumeration is symmetric, so twice the smaller tail is the share of larger absolute values.
    assert stats.sign_flip(x).p_value == pytest.approx(theirs.pvalue, rel=1e-12)


def test_exact_where_the_assignments_are_no_more_than_the_samples():
    x = effects(10, 1)[:, 0]
    assert stats.sign_flip(x, n_flips=1024).exact
    sampled = stats.sign_flip(x, n_flips=1023)
    assert not sampled.exact
    assert sampled.n_flips == 1023


@pytest.mark.parametrize("statistic", ["mean", "t"])
@pytest.mark.parametrize("n", [14, 40, 200])
def test_sampled_p_is_its_twin(n, statistic):
    x = effects(n, 21)
    x[:, 4] = 0.0
    x[:, 5] = x[:, 6]
    x[:, 7] *= 100
    weighted = x
    if statistic == "t":
        size = np.sqrt((x**2).sum(axis=0))
        weighted = x * np.divide(1, size, out=np.zeros_like(size), where=size > 0)
    expected = twins.flip_p_values(weighted, twins.flip_signs(n, 900, 5), exact=False)
    for correction in ("max_t_single", "max_t"):
        found = stats.sign_flip(x, n_flips=900, seed=5, statistic=statistic, correction=correction)
        np.testing.assert_array_equal(found.p_value, expected["own"])
        np.testing.assert_allclose(found.p_adjusted, expected[correction], rtol=1e-15)
    assert found.p_value[4] == 1.0


def test_sampled_p_is_near_the_exact_one():
    x = effects(16, 1)[:, 0]
    exact = stats.sign_flip(x, n_flips=2**16)
    sampled = stats.sign_flip(x, n_flips=2**16 - 1)
    assert exact.exact
    assert not sampled.exact
    error = np.sqrt(exact.p_value * (1 - exact.p_value) / 2**16)
    assert abs(exact.p_value - sampled.p_value) < 5 * error


def test_t_orders_flips_as_the_mean_does_for_one_hypothesis():
    x = effects(30, 1)[:, 0]
    assert stats.sign_flip(x, statistic="t").p_value == stats.sign_flip(x).p_value
    expected = scipy.stats.ttest_1samp(x, 0).statistic
    assert stats.sign_flip(x, statistic="t").observed == pytest.approx(expected)


def test_max_t_of_t_is_the_maximum_of_studentised_flips():
    x = effects(25, 5) * np.array([1, 10, 0.1, 1, 3])
    signs = twins.flip_signs(25, 600, 0)
    flipped = signs[:, :, None] * x
    t = np.abs(scipy.stats.ttest_1samp(flipped, 0, axis=1).statistic)
    observed = np.abs(scipy.stats.ttest_1samp(x, 0).statistic)
    expected = ((t.max(axis=1)[:, None] >= observed - 1e-9).sum(axis=0) + 1) / 601
    found = stats.sign_flip(x, n_flips=600, statistic="t", correction="max_t_single")
    np.testing.assert_allclose(found.p_adjusted, expected, rtol=1e-15)


def test_clusters_flip_as_one():
    x = effects(40, 3)
    labels = np.repeat(np.arange(10), 4)
    sums = x.reshape(10, 4, 3).sum(axis=1)
    found = stats.sign_flip(x, cluster=labels, n_flips=2000, correction="max_t")
    alone = stats.sign_flip(sums, n_flips=2000, correction="max_t")
    assert found.exact  # 2^10, not 2^40
    assert found.n_clusters == 10
    np.testing.assert_array_equal(found.p_value, alone.p_value)
    np.testing.assert_array_equal(found.p_adjusted, alone.p_adjusted)
    np.testing.assert_allclose(found.estimate, x.mean(axis=0))
    assert found.n.tolist() == [40, 40, 40]


def test_ties_are_not_broken_by_rounding():
    # Decimal fractions whose sums tie exactly, though not in binary: 0.1 + 0.2 - 0.3 is not 0 in doubles.
    x = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.7, -0.7])
    whole = np.array([1, 2, 3, 1, 2, 3, 7, -7.0])
    assert stats.sign_flip(x).p_value == stats.sign_flip(whole).p_value
    assert stats.sign_flip(x, n_flips=200).p_value == stats.sign_flip(whole, n_flips=200).p_value


def test_p_is_never_zero_and_never_above_one():
    x = np.full(60, 5.0)
    found = stats.sign_flip(x, n_flips=99)
    assert found.p_value == 1 / 100
    assert stats.sign_flip(np.zeros(60), n_flips=99).p_value == 1.0
    assert stats.sign_flip(np.array([3.0, 4.0])).p_value == 0.5  # ++ and -- of four


def test_omitted_cases_change_nothing_in_a_vector():
    x = effects(20, 1)[:, 0]
    holes = np.concatenate([[np.nan], x[:8], [np.nan], x[8:]])
    found = stats.sign_flip(holes, nan="omit", n_flips=500)
    expected = stats.sign_flip(x, n_flips=500)
    assert (found.p_value, found.estimate, found.n) == (expected.p_value, expected.estimate, 20)


def test_omitted_cases_of_a_matrix_are_left_out_of_sum_and_mean():
    x = effects(30, 4)
    x[2] = np.nan
    x[4:9, 1] = np.nan
    kept = np.delete(x, 2, axis=0)
    found = stats.sign_flip(x, nan="omit", n_flips=700, correction="max_t_single", statistic="mean")
    means = np.where(np.isnan(kept), 0, kept) / (~np.isnan(kept)).sum(axis=0)
    expected = twins.flip_p_values(means, twins.flip_signs(29, 700, 0), exact=False)
    np.testing.assert_array_equal(found.p_value, expected["own"])
    np.testing.assert_array_equal(found.p_adjusted, expected["max_t_single"])
    assert found.n.tolist() == [29, 24, 29, 29]
    np.testing.assert_allclose(found.estimate, np.nanmean(x, axis=0))


@pytest.mark.parametrize("method", ["holm", "bh"])
def test_other_corrections_adjust_the_same_p_values(method):
    found = stats.sign_flip(effects(30, 6), n_flips=300, correction=method)
    np.testing.assert_array_equal(found.p_adjusted, stats.adjust(found.p_value, method).p_adjusted)


def test_step_down_lies_between_the_plain_p_and_single_step():
    x = effects(50, 40) * np.linspace(1, 9, 40)
    single = stats.sign_flip(x, correction="max_t_single")
    stepped = stats.sign_flip(x, correction="max_t")
    assert (stepped.p_adjusted <= single.p_adjusted + 1e-15).all()
    assert (stepped.p_adjusted >= stepped.p_value).all()
    assert (stepped.p_adjusted < single.p_adjusted).any()


def hiding(cases=48):
    """Nine sites of wide spread and no effect beside one that is narrow and nearly always positive."""
    rng = np.random.default_rng(3)
    return np.column_stack([rng.normal(0, 4, (cases, 9)), rng.normal(0.3, 0.35, cases)])


@pytest.mark.parametrize("correction", ["max_t", "max_t_single"])
def test_wide_sites_hide_a_narrow_one_from_the_unstudentised_maximum_alone(correction):
    x = hiding()
    means = stats.sign_flip(x, correction=correction, statistic="mean")
    studentised = stats.sign_flip(x, correction=correction)
    assert means.p_value[9] == 1 / 10_001
    assert means.p_adjusted[9] > 0.5
    assert studentised.p_adjusted[9] < 0.005
    assert (studentised.p_adjusted[:9] > 0.05).all()


@pytest.mark.parametrize("labels", [None, np.arange(48) % 16])
def test_the_statistic_changes_no_plain_p_value(labels):
    x = hiding()
    x[:7, 2] = np.nan
    x[::3, 4] = 0.0
    found = [
        stats.sign_flip(
            x, statistic=statistic, cluster=labels, nan="omit", n_flips=3000, correction=correction
        )
        for statistic in ("mean", "t")
        for correction in (None, "holm", "max_t")
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other.p_value, found[0].p_value)
    np.testing.assert_array_equal(found[1].p_adjusted, found[4].p_adjusted)
    assert (found[2].p_adjusted != found[5].p_adjusted).any()


def test_what_is_studentised_unless_told():
    x = hiding()
    for correction in ("max_t", "max_t_single", "holm", "bh"):
        assert stats.sign_flip(x, n_flips=50, correction=correction).statistic == "t"
        assert stats.sign_flip(x[:, :1], n_flips=50, correction=correction).statistic == "mean"
        assert stats.sign_flip(x[:, 0], n_flips=50, correction=correction).statistic == "mean"
    assert stats.sign_flip(x, n_flips=50).statistic == "mean"
    alone = stats.sign_flip(x[:, 9], n_flips=500, correction="max_t")
    assert alone.p_adjusted == alone.p_value


@pytest.mark.parametrize("scale", [1e308, 5e-308])
@pytest.mark.parametrize("statistic", ["mean", "t"])
def test_sums_that_overflow_or_vanish_change_nothing(scale: float, statistic: str) -> None:
    x = np.array([1.0, 1.0, -1.0, 0.5])
    plain = stats.sign_flip(x, statistic=statistic)
    found = stats.sign_flip(x * scale, statistic=statistic)
    assert found.p_value == plain.p_value > 0
    np.testing.assert_allclose(found.estimate, plain.estimate * scale, rtol=1e-12)
    if statistic == "t":
        np.testing.assert_allclose(found.observed, plain.observed)
