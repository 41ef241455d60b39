"""All-active comparison, ranks, activity and shares of the layer (Tables 3, 7 and 10)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moetrace.errors import ArgumentError, LayerRangeError
from moetrace.results.comparisons import CaseMismatchError
from moetrace.results.controls import FewControlsWarning
from moetrace.results.expert_name import NeverActiveError
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace
from moetrace.stats import bootstrap
from tests.results.expert_traces import (
    NO_FAILURES,
    by_case,
    oracle_others,
    random_trace,
    rescue_of,
    small_trace,
)


def layer_trace(trace: ExpertTrace, layers: tuple[int, ...], seed: int = 0) -> LayerTrace:
    """Block rescues of the same cases, in another order."""
    rng = np.random.default_rng(seed)
    cases = trace.cases.iloc[rng.permutation(len(trace))].reset_index(drop=True)
    effects = rng.normal(1, 0.5, (len(cases), len(layers)))
    return LayerTrace(cases, pd.DataFrame({"layer": layers}), effects, effects, NO_FAILURES, {})


@pytest.mark.parametrize("seed", range(6))
def test_all_active_is_equations_11_to_13(seed: int) -> None:
    trace = random_trace(seed, union=seed % 2 == 1)
    star, site = "L03E002", (3, 2)
    expected = []
    for case_id, rows in by_case(trace).items():
        others = oracle_others(rows, site)
        if not rows[site]["clean_active"] or not others:
            continue
        mean = sum(rescue_of(rows[other]) for other in others) / len(others)
        expected.append((case_id, rescue_of(rows[site]), mean, rescue_of(rows[site]) - mean, len(others)))
    found = trace.all_active(star)
    columns = ["case_id", "star_rescue", "control_rescue", "specificity", "others"]
    assert 0 < len(expected) < 12  # the star is inactive somewhere
    np.testing.assert_allclose(found.rows[columns].to_numpy(float), expected, atol=1e-12)
    assert found.mean == pytest.approx(sum(row[3] for row in expected) / len(expected))
    assert found.summary().n.tolist() == [len(expected)] * 3


def test_all_active_equals_specificity_with_every_other_expert_as_control() -> None:
    trace = random_trace(3, k=3)
    with pytest.warns(FewControlsWarning):
        spec = trace.specificity("L05E001", controls=5).rows
    found = trace.all_active("L05E001").rows
    active = spec[spec.clean_active]
    assert active.case_id.tolist() == found.case_id.tolist()
    np.testing.assert_allclose(active.specificity, found.specificity, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_count_the_active_experts_ahead(seed: int) -> None:
    trace = random_trace(seed)
    star, site = "L03E002", (3, 2)
    expected = []
    for case_id, rows in by_case(trace).items():
        others = oracle_others(rows, site)
        if not rows[site]["clean_active"] or not others:
            continue
        own = rows[site]["rescue"]
        rank = 1 + sum(rows[other]["rescue"] >= own for other in others)  # a tie counts against the star
        active = len(others) + 1
        expected.append((case_id, rank, (active - rank) / (active - 1), active))
    found = trace.ranks(star)
    columns = ["case_id", "rank", "percentile", "active"]
    np.testing.assert_allclose(found.rows[columns].to_numpy(float), expected)
    ranks = [row[1] for row in expected]
    assert (found.n, found.n_ranked) == (12, len(expected))
    assert (found.top_1, found.top_2) == (ranks.count(1), ranks.count(1) + ranks.count(2))
    assert found.mean_rank == pytest.approx(sum(ranks) / len(ranks))
    assert found.mean_percentile == pytest.approx(sum(row[2] for row in expected) / len(expected))
    assert found.contrast.mean == trace.all_active(star).mean


def test_ranks_by_hand() -> None:
    trace = small_trace(
        [[1, 1, 1, 0], [1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]],
        [[2, 1, 3, 0], [2, 0, -1, 0], [0, 5, 6, 7], [9, 0, 0, 0]],
    )
    found = trace.ranks("L44E000")
    # Ranked are the first two cases: inactive in the third, alone in the fourth.
    assert found.rows.to_dict("list") == {
        "case_id": [100, 101],
        "relation_id": ["A", "A"],
        "rank": [2, 1],
        "percentile": [0.5, 1.0],
        "active": [3, 2],
        "tied": [0, 0],
    }
    table = found.summary(n_resamples=50, n_flips=50).set_index("metric")
    assert table.value.to_dict() == {
        "ranked_cases": 2,
        "top_1": 1,
        "top_2": 2,
        "mean_rank": 1.5,
        "mean_percentile": 0.75,
        "selected_minus_others": 1.5,
    }
    contrast = table.loc["selected_minus_others"]
    assert contrast.ci_low <= 1.5 <= contrast.ci_high
    assert "first in 1 and among the first two in 2 of 2 ranked cases of 4" in repr(found)


def test_activity_is_table_3() -> None:
    trace = small_trace([[1, 0], [1, 0], [0, 1], [0, 0]], [[0.5, 0], [0, 0], [0, 1], [0, 0]])
    found = trace.activity("L44E000")
    assert (found.active, found.n, found.zero_rows, found.zero_while_active) == (2, 4, 3, 1)
    assert str(found) == "L44E000 clean-active in 2/4, 3 zero rows"
    assert trace.activity("L44E001").zero_rows == 3


@pytest.mark.parametrize("seed", range(4))
def test_activity_counts_rows(seed: int) -> None:
    trace = random_trace(seed)
    for (layer, expert), own in trace.rows.groupby(["layer", "expert"]):
        found = trace.activity((layer, expert))
        assert found.active == own.clean_active.sum()
        assert found.noised_active == own.noised_active.sum()
        assert found.zero_rows == (own.rescue == 0).sum()
        assert found.zero_while_active == (own.clean_active & (own.rescue == 0)).sum()
        assert found.n == len(own) == 12


def test_an_expert_that_is_never_active_has_zero_rows_alone() -> None:
    trace = small_trace([[1, 1, 0]] * 3, [[1, 1, 0]] * 3)
    found = trace.activity("L44E002")
    assert (found.active, found.zero_rows, found.zero_while_active) == (0, 3, 0)


def test_ratios_are_of_means_over_the_same_cases() -> None:
    trace = random_trace(0, n=40)
    layers = layer_trace(trace, (1, 3, 5))
    found = trace.layer_share("L05E001", layers, controls=2, seed=3).set_index("quantity")
    block = dict(zip(layers.cases.case_id, layers.effects[:, 2], strict=True))
    layer = np.array([block[case_id] for case_id in trace.cases.case_id])
    spec = trace.specificity("L05E001", controls=2, seed=3).rows
    assert found.value["layer_rescue"] == pytest.approx(layer.mean())
    assert found.value["rescue_over_layer"] == pytest.approx(spec.star_rescue.mean() / layer.mean())
    assert found.value["specificity_over_layer"] == pytest.approx(spec.specificity.mean() / layer.mean())
    for name, values in (("rescue", spec.star_rescue), ("specificity", spec.specificity)):
        expected = bootstrap(values, layer, statistic="ratio", seed=3)
        row = found.loc[f"{name}_over_layer"]
        assert (row.ci_low, row.ci_high, row.n) == (expected.ci_low, expected.ci_high, 40)
    expected = bootstrap(layer, seed=3)
    assert found.ci_low["layer_rescue"] == expected.ci_low


def test_ratio_of_specificity_leaves_out_the_cases_without_controls() -> None:
    trace = small_trace([[1, 1], [1, 1], [1, 1], [1, 0]], [[1, 0.5], [2, 1], [3, 2], [4, 0]])
    layers = layer_trace(trace, (44,))
    with pytest.warns(FewControlsWarning, match="1 of 4 cases"):
        found = trace.layer_share("L44E000", layers, controls=1).set_index("quantity")
    block = dict(zip(layers.cases.case_id, layers.effects[:, 0], strict=True))
    assert found.n.tolist() == [4, 4, 3]
    assert found.value["rescue_over_layer"] == pytest.approx(10 / sum(block.values()))
    expected = (0.5 + 1 + 1) / (block[100] + block[101] + block[102])
    assert found.value["specificity_over_layer"] == pytest.approx(expected)


def test_ratio_options_and_clusters_reach_the_bootstrap() -> None:
    trace = random_trace(0, n=40)
    layers = layer_trace(trace, (3,))
    options = {"ci": "bca", "n_resamples": 300, "confidence": 0.9}
    found = trace.layer_share("L03E000", layers, controls=None, cluster="relation_id", seed=7, **options)
    assert found.quantity.tolist() == ["layer_rescue", "rescue_over_layer"]
    block = dict(zip(layers.cases.case_id, layers.effects[:, 0], strict=True))
    layer = [block[case_id] for case_id in trace.cases.case_id]
    labels = trace.cases.relation_id.to_numpy()
    expected = bootstrap(trace.effects[:, 0], layer, statistic="ratio", cluster=labels, seed=7, **options)
    assert (found.ci_low[1], found.ci_high[1]) == (expected.ci_low, expected.ci_high)


def test_traces_of_other_cases_or_layers_are_refused() -> None:
    trace = random_trace(0)
    layers = layer_trace(trace, (3,))
    with pytest.raises(LayerRangeError, match=r"layer 5 of L05E000 .* has layers \[3\]"):
        trace.layer_share("L05E000", layers)
    cases = layers.cases.copy()
    gone = int(cases.case_id[0])
    cases.loc[0, "case_id"] = 999
    other = LayerTrace(cases, layers.sites, layers.effects, layers.effects, NO_FAILURES, {})
    with pytest.raises(CaseMismatchError, match=rf"expert trace: 1, ids \[{gone}\]; .* 1, ids \[999\]"):
        trace.layer_share("L03E000", other, controls=1)
    with pytest.raises(ArgumentError, match="cluster is 'case_id'"):
        trace.layer_share("L03E000", layers, cluster="case_id")
    idle = small_trace([[1, 1, 0]] * 3, [[1, 1, 0]] * 3)
    with pytest.raises(NeverActiveError):
        idle.layer_share("L44E002", layer_trace(idle, (44,)))


@pytest.mark.parametrize(("k", "expected"), [(2, 1), (4, 3)])
@pytest.mark.filterwarnings("ignore::moetrace.results.controls.FewControlsWarning")
def test_shares_take_as_many_controls_as_the_paper(k: int, expected: int) -> None:
    trace = random_trace(0, n=40, experts=8, k=k)
    layers = layer_trace(trace, (3,))

    def shares(**controls: int) -> pd.DataFrame:
        return trace.layer_share("L03E000", layers, n_resamples=50, **controls)

    pd.testing.assert_frame_equal(shares(), shares(controls=expected))
    assert not shares().equals(shares(controls=2))
