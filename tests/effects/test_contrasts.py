"""Equations 3, 4, 7, 9 and 11 to 13 against loops written from the paper's formulas."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace import effects
from moetrace.errors import ArgumentError
from moetrace.stats import bootstrap


def routed(seed: int, cases: int = 9, experts: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Rescue, 0 where inactive, and activity; some cases have the first expert alone, some without it."""
    rng = np.random.default_rng(seed)
    active = rng.random((cases, experts)) < 0.5
    active[0] = [True, *[False] * (experts - 1)]
    active[1] = False
    active[2] = True
    return np.where(active, rng.normal(size=active.shape), 0.0), active


def test_rescue_is_patched_minus_noised_of_the_same_case_and_draw() -> None:
    rng = np.random.default_rng(0)
    patched, noised = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 2))
    found = effects.rescue(patched, noised)
    for case in range(4):
        for patch in range(3):
            for draw in range(2):
                assert found[case, patch, draw] == patched[case, patch, draw] - noised[case, draw]
    assert np.array_equal(effects.rescue(patched[:, 1], noised), found[:, 1])
    assert np.array_equal(effects.rescue(patched[..., 0], noised[:, 0]), found[..., 0])
    assert effects.rescue(np.zeros((0, 3, 2)), np.zeros((0, 2))).shape == (0, 3, 2)


@pytest.mark.parametrize(
    ("patched", "noised"),
    [((3, 3), (3, 1)), ((2, 4), (4,)), ((4, 2, 3), (4, 2)), ((2, 3, 3), (3, 3)), ((3, 2), ()), ((3,), (1,))],
)
def test_shapes_that_numpy_would_broadcast_to_other_cases_are_refused(
    patched: tuple[int, ...], noised: tuple[int, ...]
) -> None:
    with pytest.raises(ArgumentError, match=r"expected \(cases, patches, draws\) and \(cases, draws\)"):
        effects.rescue(np.zeros(patched), np.zeros(noised))


def test_drop_is_clean_minus_noised_of_every_draw() -> None:
    rng = np.random.default_rng(1)
    clean, noised = rng.normal(size=2), rng.normal(size=(2, 2))
    found = effects.drop(clean, noised)
    assert found.tolist() == [[clean[case] - noised[case, draw] for draw in range(2)] for case in range(2)]
    assert effects.drop(clean, noised[:, 0]).tolist() == found[:, 0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_specificity_subtracts_the_mean_of_the_control_set(seed: int) -> None:
    rescue, active = routed(seed)
    controls = active & (np.random.default_rng(seed).random(active.shape) < 0.6)
    controls[:, 1] = False
    found = effects.specificity(rescue, 1, controls)
    for case, own in enumerate(controls):
        members = [float(rescue[case, r]) for r in range(5) if own[r]]
        if not members:
            assert np.isnan(found[case])
            continue
        assert found[case] == pytest.approx(rescue[case, 1] - sum(members) / len(members))
    assert 0 < np.isnan(found).sum() < len(found)


def test_gate_specificity_is_the_difference_of_two_rescues() -> None:
    assert effects.gate_specificity(np.array([1.0, 0.5]), np.array([0.25, 2.0])).tolist() == [0.75, -1.5]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("star", [0, 3])
def test_all_active_is_equations_11_to_13(seed: int, star: int) -> None:
    rescue, active = routed(seed)
    before = active.copy()
    others = effects.all_active(active, star)
    mean = effects.all_active_rescue(rescue, active, star)
    spec = effects.all_active_specificity(rescue, active, star)
    assert np.array_equal(active, before)
    for case in range(len(rescue)):
        rest = [r for r in range(5) if active[case, r] and r != star]
        assert np.flatnonzero(others[case]).tolist() == rest
        expected = sum(rescue[case, r] for r in rest) / len(rest) if rest else np.nan
        np.testing.assert_allclose(mean[case], expected)
        defined = bool(rest) and active[case, star]
        np.testing.assert_allclose(spec[case], rescue[case, star] - expected if defined else np.nan)


def test_ranks_count_the_active_experts_that_are_not_below() -> None:
    rescue = np.array(
        [[1.0, 3.0, 1.0, 9.0], [2.0, 1.0, 0.0, 9.0], [1.0, 0.0, 0.0, 9.0], [0.0, 1.0, 2.0, 9.0]]
    )
    active = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], bool)
    found = effects.all_active_ranks(rescue, active, 0)
    # Third of three (the tie counts against it), first of two, alone, inactive.
    np.testing.assert_array_equal(found.rank, [3, 1, np.nan, np.nan])
    np.testing.assert_array_equal(found.percentile, [0, 1, np.nan, np.nan])


def test_a_ratio_of_means_is_no_mean_of_ratios() -> None:
    values, layer = np.array([1.0, 2.0, 6.0]), np.array([1.0, 4.0, 4.0])
    found = effects.ratio_of_means(values, layer, n_resamples=200, seed=3)
    assert found.estimate == pytest.approx(9 / 9)
    expected = bootstrap(values, layer, statistic="ratio", n_resamples=200, seed=3)
    assert (found.ci_low, found.ci_high) == (expected.ci_low, expected.ci_high)
