"""Faithfulness, CPR, CMD, AUROC and matched sets against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from moetrace import effects
from moetrace.errors import ArgumentError

RNG = np.random.default_rng(0)


def test_faithfulness_is_one_for_the_model_and_zero_for_nothing():
    np.testing.assert_allclose(effects.faithfulness([1.0, 3.0, 2.0, 5.0], 1.0, 3.0), [0.0, 1.0, 0.5, 2.0])
    assert np.isnan(effects.faithfulness([1.0], 2.0, 2.0)).all()


def test_areas_equal_fine_integrals():
    sizes, faithful = np.array(effects.SHARES), RNG.normal(0.5, 1.0, len(effects.SHARES))
    fine = np.unique(np.concatenate([np.linspace(0, 1, 200_001), sizes]))
    line = np.interp(fine, sizes, faithful)
    assert effects.cpr(sizes, faithful) == pytest.approx(np.trapezoid(line, fine), abs=1e-9)
    distance = np.interp(fine, sizes, np.abs(1 - faithful))
    assert effects.cmd(sizes, faithful) == pytest.approx(np.trapezoid(distance, fine), abs=1e-9)


def test_a_perfect_circuit_has_cpr_1_and_cmd_0():
    assert effects.cpr([0, 0.5, 1], [1, 1, 1]) == 1.0
    assert effects.cmd([0, 0.5, 1], [1, 1, 1]) == 0.0
    assert effects.cmd([0, 0.5, 1], [0, 2, 1]) == 0.75  # too much is as far from the model as too little


@pytest.mark.parametrize("sizes", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0], [1.0], [1.0, 0.0]])
def test_sizes_must_run_from_nothing_to_all(sizes):
    with pytest.raises(ArgumentError, match="ascending parts from 0 to 1"):
        effects.cpr(sizes, [0.0] * len(sizes))


def test_auroc_equals_the_rank_test_with_ties():
    scores, positive = RNG.integers(0, 5, 60).astype(float), RNG.random(60) < 0.3
    expected = mannwhitneyu(scores[positive], scores[~positive]).statistic / (
        positive.sum() * (~positive).sum()
    )
    assert effects.auroc(scores, positive) == pytest.approx(expected)
    with pytest.raises(ArgumentError, match="0 of 60 are positive"):
        effects.auroc(scores, np.zeros(60, bool))


def test_importance_order():
    knocked = np.array([[-1.0, 0.5, -3.0, 0.0], [-1.0, 2.5, -3.0, 0.0]])
    np.testing.assert_array_equal(effects.importance_order(knocked), [2, 0, 3, 1])
    np.testing.assert_array_equal(effects.importance_order(knocked, "absolute"), [2, 1, 0, 3])


def test_random_sets_avoid_the_chosen_ones():
    found = effects.random_sets(20, [3, 7, 11], draws=200, seed=1)
    assert found.shape == (200, 3)
    assert not np.isin(found, [3, 7, 11]).any()
    assert all(len(set(line)) == 3 for line in found.tolist())
    counts = np.bincount(found.ravel(), minlength=20)
    assert counts[np.setdiff1d(np.arange(20), [3, 7, 11])].min() > 15  # of 35 expected
    np.testing.assert_array_equal(found, effects.random_sets(20, [3, 7, 11], draws=200, seed=1))
    assert (found != effects.random_sets(20, [3, 7, 11], draws=200, seed=2)).any()


def test_random_sets_fall_back_to_the_chosen_ones_where_none_is_left():
    found = effects.random_sets(5, [0, 1, 2, 3], draws=30)
    assert (found[:, 0] == 4).all()
    assert all(len(set(line)) == 4 for line in found.tolist())


def test_matched_sets_have_the_closest_frequency():
    """Against a search over all experts, one chosen after the other."""
    active = RNG.random((24, 40)) < RNG.random(40)
    frequency, chosen = active.sum(axis=0), [5, 17, 2, 30, 8]
    for line in effects.frequency_matched_sets(active, chosen, draws=20, seed=4).tolist():
        free = set(range(40)) - set(chosen)
        for own, expert in zip(chosen, line, strict=True):
            assert expert in free
            best = min(abs(int(frequency[e]) - int(frequency[own])) for e in free)
            assert abs(int(frequency[expert]) - int(frequency[own])) == best
            free.remove(expert)


def test_matched_sets_draw_among_equals():
    active = np.zeros((10, 12), bool)
    active[:5, :6] = True
    found = effects.frequency_matched_sets(active, [0, 7], draws=100)
    assert set(found[:, 0].tolist()) == {1, 2, 3, 4, 5}
    assert set(found[:, 1].tolist()) == {6, 8, 9, 10, 11}


@pytest.mark.parametrize("chosen", [[1, 1], [-1], [40]])
def test_chosen_experts_must_exist_and_differ(chosen):
    with pytest.raises(ArgumentError, match="different experts of 0 to 9"):
        effects.random_sets(10, chosen, draws=1)
