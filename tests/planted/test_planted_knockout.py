"""Knock-outs, noised values in the clean run, curves and their areas find what was planted."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace import effects
from moetrace.planted import FAMILIES, plant
from moetrace.planted.closed_form import run_of
from moetrace.planted.necessity import routed
from moetrace.planted.weights import EPS

TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}  # effects are up to ten logits


def test_routing_of_the_closed_forms_agrees(planted):
    z, relation, layer = planted.prompts.signal(EPS)[0], planted.prompts.relation, planted.layer
    expected = run_of(planted.design, z, relation).weight
    np.testing.assert_allclose(routed(planted.design, layer, z, relation), expected, atol=1e-12)
    np.testing.assert_array_equal(planted.necessity.active[:, layer], planted.truth.clean_active)


def assert_found(planted, ablation, way):
    found = mt.trace_knockout(planted.model, planted.cases, ablation=ablation, engine=way)
    truth = getattr(planted.necessity, ablation)
    np.testing.assert_allclose(found.effects.reshape(truth.shape), truth, **TOLERANCE)
    np.testing.assert_array_equal(found.clean_active.reshape(truth.shape), planted.necessity.active)
    assert np.abs(truth).max() > 0.5 or ablation == "mean"


def test_every_expert_of_every_layer(planted):
    assert_found(planted, "zero", "tree")


def test_mean_and_reroute(planted):
    """Half of the kinds each, so that every kind and every family is there."""
    kinds = ("single", "clean_only", "rare") if planted.family == "mixtral" else ("pair", "set", "decoy")
    if planted.kind in kinds:
        for ablation in ("mean", "reroute"):
            assert_found(planted, ablation, "tree")


@pytest.mark.parametrize("ablation", ["zero", "mean", "reroute"])
@pytest.mark.parametrize("kind", ["pair", "clean_only"])
def test_by_plain_forwards(kind, ablation):
    assert_found(plant(kind, "mixtral", n=6), ablation, "reference")


@pytest.mark.parametrize("family", FAMILIES)
def test_resampled_contributions_are_the_donors(family, engine):
    """What a carrier of a single share writes instead is its share of the donor's signal."""
    planted = plant("single", family, n=8)
    star = planted.star
    found = mt.trace_knockout(planted.model, planted.cases, star, ablation="resample", engine=engine)
    place = {case.case_id: index for index, case in enumerate(planted.cases)}
    donors = np.array([place[donor] for donor in found.donors[:, 0].tolist()])
    assert (donors != np.arange(len(donors))).all()
    zero = planted.necessity.zero[:, star.layer, star.expert]
    np.testing.assert_allclose(found.effects[:, 0], zero - zero[donors], **TOLERANCE)


def test_noised_values_in_the_clean_run(planted):
    way = "reference" if planted.kind == "pair" and planted.family == "mixtral" else "tree"
    layers = mt.trace_layers(planted.model, planted.cases, mode="noise", engine=way)
    np.testing.assert_allclose(layers.effects, planted.necessity.noised_layers, **TOLERANCE)
    experts = mt.trace_experts(planted.model, planted.cases, mode="noise", engine=way)
    truth = planted.necessity.noised_experts
    np.testing.assert_allclose(experts.effects.reshape(truth.shape), truth, **TOLERANCE)
    assert layers.effects.min() < -2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pair_is_necessary_where_neither_alone_suffices(family):
    planted = plant("pair", family, n=6)
    sites = [(planted.layer, expert) for expert in planted.experts]
    found = mt.trace_knockout(planted.model, planted.cases, sites)
    assert (found.effects < -2).all()
    assert np.abs(planted.truth.experts[:, planted.layer][:, list(planted.experts)]).max() < 1e-6


def off_truth(planted, sites):
    return planted.truth.clean + planted.necessity.together(sites)


def test_curves(planted):
    trace = mt.trace_knockout(planted.model, planted.cases)
    curves = trace.greedy(3, draws=2, shares=(0.0, 0.02, 0.1, 1.0))
    experts = [(one.layer, one.expert) for one in trace.experts]
    full, empty = planted.truth.clean.mean(), off_truth(planted, experts).mean()
    for row, own, differences in zip(curves.rows.itertuples(), curves.sets, curves.values, strict=True):
        chosen = set(own) if row.curve == "off" else set(range(len(experts))) - set(own)
        expected = off_truth(planted, [experts[column] for column in chosen])
        np.testing.assert_allclose(differences, expected, rtol=0, atol=5e-4)
        assert row.accuracy == (expected > 0).mean()
        assert row.faithfulness == pytest.approx((expected.mean() - empty) / (full - empty), abs=1e-3)
    kept = curves.rows[(curves.rows.curve == "keep") & (curves.rows.order == "importance")]
    assert curves.cpr == pytest.approx(effects.cpr(kept.share, kept.faithfulness))
    assert curves.cmd == pytest.approx(effects.cmd(kept.share, kept.faithfulness))
    assert kept.faithfulness.iloc[0] == pytest.approx(0, abs=1e-9)
    assert kept.faithfulness.iloc[-1] == pytest.approx(1, abs=1e-9)


def test_the_ranking_finds_what_carries(planted):
    """Every expert that writes towards the true object is ranked above every other."""
    trace = mt.trace_knockout(planted.model, planted.cases)
    mean = planted.necessity.zero.mean(axis=0)
    carriers = [tuple(site) for site in np.argwhere(mean < -1e-3).tolist()]
    assert trace.auroc(carriers) == 1.0
    assert planted.star in trace.important(len(carriers))
    idle = [tuple(site) for site in np.argwhere(~planted.necessity.active.any(axis=0)).tolist()]
    assert trace.auroc(idle[:5]) < 0.75
