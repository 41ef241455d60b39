"""Expert sweeps, selection, specificity and matched controls find what was planted."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import moetrace as mt
from moetrace.planted import FAMILIES, plant

TOLERANCE = {"rtol": 0, "atol": 1e-4}
ALONE = ("single", "decoy", "clean_only")


def top_k(planted):
    return FAMILIES[planted.family].top_k


@cache
def traced(planted, engine="tree"):
    return mt.trace_experts(planted.model, planted.cases, layer=planted.layer, engine=engine)


def test_every_expert_of_every_layer(planted, engine):
    found = mt.trace_experts(planted.model, planted.cases, engine=engine)
    truth = planted.truth.experts
    np.testing.assert_allclose(found.effects.reshape(truth.shape), truth, **TOLERANCE)


def test_routing_weights_and_norms(planted, engine):
    truth, options = planted.truth, {"layer": planted.layer, "engine": engine, "union": True}
    found = mt.trace_experts(planted.model, planted.cases, **options).arrays
    np.testing.assert_array_equal(found.clean_active, truth.clean_active)
    np.testing.assert_array_equal(found.noised_active, truth.noised_active)
    np.testing.assert_allclose(found.clean_weight, truth.clean_weight, **TOLERANCE)
    np.testing.assert_allclose(found.noised_weight, truth.noised_weight, **TOLERANCE)
    np.testing.assert_allclose(found.delta_norm, truth.delta_norm, **TOLERANCE)
    only_noised = truth.noised_active & ~truth.clean_active
    np.testing.assert_allclose(found.rescue[only_noised], truth.linear[only_noised], **TOLERANCE)


def test_selection(planted, engine):
    found = traced(planted, engine)
    if planted.kind in (*ALONE, "rare", "set"):
        assert found.select(min_active=0.5) == planted.star
    if planted.kind == "rare":
        stranger = found.select(min_active=0.1)
        assert found.activity(stranger).active == len(planted.cases) / 4
        rare = set(np.flatnonzero(planted.truth.clean_active.mean(axis=0) == 0.25).tolist())
        assert stranger.expert in rare - set(planted.experts)
    if planted.kind == "pair" and planted.family == "qwen3_moe":
        assert found.select(min_active=0.5).expert not in planted.experts


def test_specificity(planted, engine):
    found, others = traced(planted, engine), top_k(planted) - 1
    truth = planted.truth
    spec = found.specificity(planted.star, controls=others)
    np.testing.assert_allclose(spec.rows.specificity, truth.specificity, **TOLERANCE)
    every = found.all_active(planted.star)
    np.testing.assert_allclose(every.rows.specificity, truth.specificity, **TOLERANCE)
    assert every.mean == pytest.approx(truth.specificity.mean(), abs=1e-4)
    # With one control, which one was drawn is the trace's to say.
    one = found.specificity(planted.star, controls=1).rows
    effects = truth.experts[:, planted.layer]
    drawn = np.array([effects[case, experts[0]] for case, experts in enumerate(one.controls)])
    np.testing.assert_allclose(one.specificity, effects[:, planted.star.expert] - drawn, **TOLERANCE)


def test_ranks(planted):
    effects, star = planted.truth.experts[:, planted.layer], planted.star.expert
    above = ((effects > effects[:, [star]]) & planted.truth.clean_active).sum(axis=1)
    ranks = traced(planted).ranks(planted.star)
    if planted.kind != "pair":  # there, the two singles are a tie at 0
        np.testing.assert_array_equal(ranks.rows["rank"], 1 + above)
    if planted.kind in ALONE:
        assert ranks.top_1 == len(planted.cases)


@pytest.mark.filterwarnings("ignore::moetrace.stats.DegenerateWarning")  # the pair's share doesn't vary
def test_share_of_the_layer(planted):
    layers = mt.trace_layers(planted.model, planted.cases)
    table = traced(planted).layer_share(planted.star, layers, controls=None).set_index("quantity")
    truth = planted.truth
    star = truth.experts[:, planted.layer, planted.star.expert].mean()
    expected = star / truth.layers[:, planted.layer].mean()
    assert (expected == 0) == (planted.kind == "pair")
    assert table.value["rescue_over_layer"] == pytest.approx(expected, abs=1e-4)


def test_matched_control(planted, engine):
    found = mt.trace_matched(planted.model, planted.cases, planted.star, engine=engine)
    truth, every = planted.truth, np.arange(len(planted.cases))
    np.testing.assert_array_equal(found.cases.control, truth.control)
    effects = truth.experts[:, planted.layer]
    raw = np.stack([effects[:, planted.star.expert], effects[every, truth.control]], axis=1)
    np.testing.assert_allclose(found.effects[:, :2], raw, **TOLERANCE)
    np.testing.assert_allclose(found.effects[:, 2:], truth.equal_norm, **TOLERANCE)
    table = found.table(n_resamples=200, n_flips=200).set_index(["quantity", "scaling"])["mean"]
    assert table["specificity", "raw"] == pytest.approx((raw[:, 0] - raw[:, 1]).mean(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_half_the_cases_select_holds_on_the_others(family):
    planted = plant("rare", family, n=24)
    discovery, validation = planted.cases.split(seed=0)
    star = mt.trace_experts(planted.model, discovery, layer=planted.layer).select()
    assert star == planted.star
    held = mt.trace_experts(planted.model, validation, layer=planted.layer)
    ids = [case.case_id for case in validation]
    effects = held.effects[:, star.expert]
    np.testing.assert_allclose(effects, planted.truth.experts[ids, planted.layer, star.expert], **TOLERANCE)
