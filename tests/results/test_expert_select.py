"""Recurrence-first selection."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from moetrace.cases.positions import split_positions
from moetrace.effects import required_cases
from moetrace.errors import ArgumentError, LayerRangeError, MoetraceError, NoCasesError
from moetrace.results.expert_name import Expert
from moetrace.results.selection import NoRecurrentExpertError
from tests.results.expert_traces import make_trace, oracle_selection, random_trace, small_trace, take


@pytest.mark.parametrize("mean", ["active", "all"])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("layer", [None, 3, 5])
def test_order_of_selection_is_that_of_the_definition(seed: int, layer: int | None, mean: str) -> None:
    trace = random_trace(seed)
    for required in (1, 3, 5, 7):
        expected = [Expert(*site) for site in oracle_selection(trace, layer, required, mean)]
        if not expected:
            with pytest.raises(NoRecurrentExpertError):
                trace.select(layer, min_active=required, mean=mean)
            continue
        assert trace.select(layer, min_active=required, mean=mean) == expected[0]
        assert trace.select(layer, min_active=required, top=100, mean=mean) == expected
        assert trace.select(layer, min_active=required, top=2, mean=mean) == expected[:2]
        found = trace.candidates(layer, required, mean)
        assert found.star.tolist() == [str(expert) for expert in expected]


def test_a_rare_expert_with_a_high_rescue_is_not_selected() -> None:
    trace = small_trace(
        [[1, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 1]],
        [[0.5, 40, 0], [0.5, 0, 1], [0.5, 0, 1], [0, 0, -1]],
    )
    for mean in ("active", "all"):
        assert str(trace.select(44, mean=mean)) == "L44E000"
        assert str(trace.select(44, min_active=0.25, mean=mean)) == "L44E001"
    # Means over all four cases: 1.5 / 4 and 1 / 4; over those where the expert is active: 1.5 / 3 and 1 / 3.
    found = trace.candidates(min_active=0.5, mean="all")
    assert found.mean_rescue.tolist() == found.mean_rescue_all.tolist() == [0.375, 0.25]
    found = trace.candidates(min_active=0.5)
    assert found.mean_rescue.tolist() == found.mean_rescue_active.tolist() == [0.5, 1 / 3]
    assert found.mean_rescue_all.tolist() == [0.375, 0.25]


# Expert 0 is active in half of the cases with rescue 1, expert 1 in all of them with 0.75: the first has the
# higher mean where it is active, the second the higher one over all cases.
HALF_OR_ALL = ([[1, 1, 1]] * 2 + [[0, 1, 1]] * 2, [[1, 0.75, 0.25]] * 2 + [[0, 0.75, 0.25]] * 2)


def test_the_two_means_select_different_experts() -> None:
    trace = small_trace(*HALF_OR_ALL)
    assert str(trace.select()) == str(trace.select(mean="active")) == "L44E000"
    assert str(trace.select(mean="all")) == "L44E001"
    assert trace.candidates().star.tolist() == ["L44E000", "L44E001", "L44E002"]
    assert trace.candidates(mean="all").star.tolist() == ["L44E001", "L44E000", "L44E002"]
    for mean in ("active", "all"):
        table = trace.candidates(mean=mean).set_index("star")
        assert table.mean_rescue_active.to_dict() == {"L44E000": 1.0, "L44E001": 0.75, "L44E002": 0.25}
        assert table.mean_rescue_all.to_dict() == {"L44E000": 0.5, "L44E001": 0.75, "L44E002": 0.25}


def test_stability_and_held_out_select_by_either_mean() -> None:
    active, rescue = HALF_OR_ALL
    # Alternating, so that every half and every relation holds both kinds of case.
    order = [0, 2, 1, 3] * 4
    trace = small_trace([active[i] for i in order], [rescue[i] for i in order])
    for mean, star in (("active", "L44E000"), ("all", "L44E001")):
        stable = trace.stability(seeds=[0, 1], thresholds=[0.25], controls=1, mean=mean)
        assert stable.rows.star.tolist() == [star, star]
        held = trace.held_out(folds=2, min_active=0.25, controls=1, mean=mean)
        assert held.folds.star.tolist() == [star, star]
    assert str(trace.stability(seeds=[0], thresholds=[0.25], controls=1).modal) == "L44E000"
    assert str(trace.held_out(folds=2, min_active=0.25, controls=1).star) == "L44E000"
    # The discovery rescue is over all cases, as the validation rescue that it stands beside.
    (discovery,) = trace.stability(seeds=[0], thresholds=[0.25], controls=1).rows.discovery_rescue
    half = take(trace, np.array(split_positions(16, seed=0)[0]))
    assert discovery == half.effects[:, 0].mean()


@pytest.mark.parametrize("name", ["select", "candidates", "stability", "held_out"])
def test_another_mean_is_refused_with_both_names(name: str) -> None:
    trace = small_trace(*HALF_OR_ALL)
    with pytest.raises(ArgumentError, match=r"mean is 'median'; expected 'active' or 'all'"):
        getattr(trace, name)(mean="median", **({"folds": 2} if name == "held_out" else {}))


def test_equal_means_go_to_the_higher_recurrence_then_to_the_lower_expert() -> None:
    trace = small_trace(
        [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]],
        [[0.1, 0.5, 0.2, 0.3], [0.5, 0.1, 0.3, 0], [0, 0, 0.1, 0.3]],
    )
    assert trace.select(top=4, min_active=0.5, mean="all") == [Expert(44, e) for e in (2, 0, 1, 3)]
    trace = small_trace(
        [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 1, 1]],
        [[0.5, 0.25, 0.5, 0.25], [0, 0.25, 0, 0], [0, 0, 0.25, 0.25]],
    )
    assert trace.select(top=4, min_active=0.5) == [Expert(44, e) for e in (2, 0, 1, 3)]


def test_equal_experts_of_two_layers_go_to_the_lower_layer() -> None:
    trace = small_trace([[1, 1, 1, 1]] * 6, [[0.5] * 4] * 6)
    sites = [(2, 0), (2, 1), (9, 0), (9, 1)]
    trace = make_trace(trace.cases, sites, clean_active=trace.arrays.clean_active, rescue=trace.effects)
    assert trace.select(top=4) == [Expert(2, 0), Expert(2, 1), Expert(9, 0), Expert(9, 1)]


def test_the_order_of_the_cases_decides_nothing() -> None:
    values = [0.1, 0.2, 0.3, 1e8, -1e8, 0.7, 0.4, 0.9]
    trace = small_trace([[1, 1]] * 8, [[a, b] for a, b in zip(values, reversed(values), strict=True)])
    for seed in range(5):
        mixed = take(trace, np.random.default_rng(seed).permutation(8))
        assert mixed.select() == Expert(44, 0)


def test_threshold_is_a_share_rounded_up_or_a_count() -> None:
    for n in range(1, 130):
        for numerator in range(1, 11):
            assert required_cases(numerator / 10, n) == math.ceil(Fraction(numerator, 10) * n)
    assert required_cases(0.5, 128) == 64
    assert required_cases(64, 128) == required_cases(np.int64(64), 128) == 64
    assert (required_cases(1, 10), required_cases(1.0, 10)) == (1, 10)
    assert required_cases(1e-12, 10) == 1


@pytest.mark.parametrize("wrong", [0, -3, 0.0, -0.5, 1.5, 64.0, float("nan"), True, None, "0.5"])
def test_what_is_neither_share_nor_count_is_refused(wrong: object) -> None:
    with pytest.raises(ArgumentError, match="share of the cases"):
        random_trace(0).select(min_active=wrong)  # type: ignore[arg-type]


def test_error_names_the_highest_recurrence() -> None:
    trace = small_trace([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], np.zeros((4, 3)).tolist())
    with pytest.raises(NoRecurrentExpertError, match=r"at least 3 of 4 .* found is 2, by L44E000, L44E001"):
        trace.select(44, min_active=0.75)
    with pytest.raises(MoetraceError, match="at least 100 of 4"):
        trace.select(min_active=100)
    idle = small_trace([[0, 0]] * 2, [[0, 0]] * 2)
    with pytest.raises(NoRecurrentExpertError, match="no expert was ever active"):
        idle.select()


def test_layer_top_and_cases_are_checked() -> None:
    trace = random_trace(0)
    with pytest.raises(LayerRangeError, match=r"layer 4 isn't in this trace, which has layers \[3, 5\]"):
        trace.select(4)
    for top in (0, -1, 1.0, True):
        with pytest.raises(ArgumentError, match="top is"):
            trace.select(top=top)  # type: ignore[call-overload]
    with pytest.raises(NoCasesError):
        take(trace, np.array([], int)).select()


@pytest.mark.parametrize("seed", range(4))
def test_candidates_describe_the_cases_where_the_expert_is_active(seed: int) -> None:
    trace = random_trace(seed, union=True)
    rows = trace.rows
    found = trace.candidates(layer=3)
    assert set(found.expert) == set(rows.expert[(rows.layer == 3) & rows.clean_active])
    for row in found.itertuples():
        own = rows[(rows.layer == 3) & (rows.expert == row.expert)]
        active = own[own.clean_active]
        assert (row.active, row.share) == (len(active), len(active) / 12)
        assert row.mean_rescue_all == pytest.approx(active.rescue.sum() / 12)
        assert row.mean_rescue == row.mean_rescue_active == pytest.approx(active.rescue.mean())
        assert row.mean_weight == pytest.approx(active.clean_weight.mean())
        assert row.mean_delta_norm == pytest.approx(active.delta_norm.mean())
