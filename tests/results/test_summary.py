"""What a summary's p-values are, over what they are corrected, and which arguments go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.results.layers import LayerTrace
from tests.results.expert_traces import NO_FAILURES, case_table, random_trace
from tests.results.test_labels import layers, matched, scales

QUICK = {"n_resamples": 60, "n_flips": 400}


def hiding() -> LayerTrace:
    """Four wide layers without any effect, and one that is weak, steady and nearly always positive."""
    rng = np.random.default_rng(2)
    effects = np.column_stack([rng.normal(0, 3, (60, 4)), rng.normal(0.25, 0.3, 60)])
    cases = case_table(60, rng, 5)
    sites = pd.DataFrame({"layer": range(5)})
    return LayerTrace(cases, sites, effects, effects, NO_FAILURES, {"self_check": 0.0})


@pytest.mark.parametrize("correction", ["max_t", "max_t_single"])
def test_a_steady_layer_survives_beside_wide_ones(correction: str) -> None:
    trace = hiding()
    default = trace.summary(correction=correction)
    assert default.p_value[4] < 0.001
    assert default.p_adjusted[4] < 0.005
    assert (default.p_adjusted[:4] > 0.05).all()
    means = trace.summary(correction=correction, statistic="mean")
    assert means.p_adjusted[4] > 0.3
    pd.testing.assert_frame_equal(means.drop(columns="p_adjusted"), default.drop(columns="p_adjusted"))
    pd.testing.assert_frame_equal(trace.summary(correction=correction, statistic="t"), default)


def test_the_plain_p_value_is_the_papers_test_of_the_mean() -> None:
    trace = hiding()
    for options in ({}, {"correction": "max_t"}, {"correction": "holm"}, {"statistic": "t"}):
        found = trace.summary(seed=4, **QUICK, **options).p_value
        alone = [mt.stats.sign_flip(own, n_flips=400, seed=4).p_value for own in trace.effects.T]
        assert found.tolist() == alone


def test_by_and_cluster_together_are_refused_everywhere() -> None:
    experts = random_trace(3, n=20)
    both: dict[str, Any] = {"by": "relation_id", "cluster": "relation_id"}
    for summary in (
        layers().summary,
        matched().table,
        experts.summary,
        experts.all_active("L03E000").summary,
    ):
        with pytest.raises(
            ArgumentError, match=r"by and cluster are both .*: all cases of one relation are one"
        ):
            summary(**both, **QUICK)


@pytest.mark.filterwarnings("ignore::moetrace.errors.FewClustersWarning")
def test_clusters_reach_every_table() -> None:
    trace, pairs = scales(n=40), matched(n=40)
    labels = pairs.cases.relation_id.to_numpy()
    table = pairs.table(cluster="relation_id", **QUICK)
    expected = mt.stats.sign_flip(pairs.effects[:, 0], cluster=labels, n_flips=400)
    table_of_scales = trace.table(cluster="relation_id", **QUICK)
    assert table.p_value[0] == expected.p_value
    assert expected.n_clusters is not None
    assert (table.p_value >= 2 ** (1 - expected.n_clusters)).all()
    assert (table_of_scales.p_value >= 2 ** (1 - expected.n_clusters)).all()
    assert pairs.table(by="relation_id", **QUICK).groupby("relation_id").size().eq(6).all()


def test_a_correction_of_the_scales_is_over_the_scales_shown() -> None:
    trace = scales(n=40)
    for patch, own in (("expert", slice(0, 2)), ("block", slice(2, 4))):
        table = trace.table(patch, correction="holm", **QUICK)
        assert table.columns[:3].tolist() == ["scale", "active", "drop"]
        expected = mt.stats.summary_table(trace.effects[:, own], correction="holm", **QUICK)
        np.testing.assert_array_equal(table.p_adjusted, expected.p_adjusted)


def test_tables_of_all_cases_refuse_groups_and_say_what_has_them() -> None:
    with pytest.raises(ArgumentError, match=r"a row for each scale.*use \.summary\(by=\.\.\.\)"):
        scales().table(by="relation_id")
    with pytest.raises(ArgumentError, match=r"use \.contrast\.summary\(by=\.\.\.\)"):
        random_trace(3, n=20).ranks("L03E000").summary(by="relation_id")


def test_a_correction_by_relation_is_over_the_sites_within_each() -> None:
    trace = hiding()
    table = trace.summary(by="relation_id", correction="max_t", **QUICK)
    for relation, own in table.groupby("relation_id"):
        chosen = (trace.cases.relation_id == relation).to_numpy()
        expected = mt.stats.summary_table(trace.effects[chosen], correction="max_t", **QUICK)
        np.testing.assert_array_equal(own.p_adjusted, expected.p_adjusted)
