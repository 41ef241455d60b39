"""Recurrence-first selection and active-random controls on plain arrays (section 3.4, Table 2)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moetrace import effects
from moetrace.errors import ArgumentError
from moetrace.stats import sample_without_replacement


def test_mean_rescue_is_over_active_or_all_cases() -> None:
    rescue = np.array([[1.0, 0.5, 0.0], [2.0, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]])
    active = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    np.testing.assert_array_equal(effects.mean_rescue(rescue, active), [1.5, 0.25, np.nan])
    np.testing.assert_array_equal(effects.mean_rescue(rescue, active, "all"), [0.75, 0.1875, 0.0])
    with pytest.raises(ArgumentError, match="mean is 'median'; expected 'active' or 'all'"):
        effects.mean_rescue(rescue, active, "median")  # type: ignore[arg-type]


def test_the_order_of_the_cases_decides_nothing() -> None:
    values = [0.1, 1e16, 0.2, -1e16]
    active = np.ones((4, 1), bool)
    found = {
        float(effects.mean_rescue(np.array(order)[:, None], active)[0])
        for order in itertools.permutations(values)
    }
    assert found == {float(np.float64(0.1) + np.float64(0.2)) / 4}


def test_recurrence_comes_before_rescue() -> None:
    # A rare expert with a high rescue, one that is active in half of the cases, one in all.
    active = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1]], bool)
    rescue = np.where(active, [8.0, 1.0, 0.75], 0.0)
    assert effects.recurrence_first(rescue, active, 1).tolist() == [0, 1, 2]
    assert effects.recurrence_first(rescue, active, 2).tolist() == [1, 2]
    assert effects.recurrence_first(rescue, active, 2, "all").tolist() == [2, 1]
    assert effects.recurrence_first(rescue, active, 5).tolist() == []


def test_controls_are_the_documented_draw_from_the_others() -> None:
    rng = np.random.default_rng(0)
    others = rng.random((20, 7)) < 0.5
    case_ids = rng.integers(-1000, 1000, 20)
    found = effects.draw_controls(others, 2, case_ids, seed=4)
    assert not (found & ~others).any()
    for case, case_id in enumerate(case_ids.tolist()):
        active = np.flatnonzero(others[case])
        k = min(2, len(active))
        drawn = sample_without_replacement(len(active), k, seed=4, stream=case_id % 2**64)
        assert np.flatnonzero(found[case]).tolist() == sorted(active[drawn].tolist())
    again = effects.draw_controls(others[::-1], 2, case_ids[::-1], seed=4)
    assert np.array_equal(again[::-1], found)


@pytest.mark.parametrize(("top_k", "expected"), [(1, 3), (2, 1), (3, 3), (8, 3)])
def test_auto_is_table_2s_number_of_controls(top_k: int, expected: int) -> None:
    assert effects.control_count("auto", top_k) == expected
    assert effects.control_count(5, top_k) == effects.control_count(np.int64(5), top_k) == 5


@pytest.mark.parametrize("controls", [0, -1, 1.5, None, "3", "all", True])
def test_other_numbers_of_controls_are_refused(controls: object) -> None:
    with pytest.raises(ArgumentError, match=r"controls is .*; expected 'auto' or an integer of at least 1"):
        effects.control_count(controls, 8)
