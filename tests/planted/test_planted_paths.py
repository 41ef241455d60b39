"""A model whose direct effects, later routing and paths are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.planted import FAMILIES, plant, plant_routes

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def routes(request):
    return plant_routes(request.param, n=8)


def test_the_formula_of_the_docstring(routes):
    truth, layer = routes.truth, routes.layer
    carrier = truth.experts[:, layer, routes.carrier.expert]
    direct = truth.experts_direct[:, layer, routes.carrier.expert]
    router = truth.path(routes.carrier, f"L{layer + 1:02d}.router")
    reader = truth.path(routes.carrier, routes.reader)
    np.testing.assert_allclose(direct + router + reader, carrier, atol=1e-9)
    assert (direct > 0.9).all()
    assert (router > 1.2).all()
    assert (reader > 0.5).all()
    drop = direct / 0.3  # 5 (c - v)
    weight = FAMILIES[routes.family].weights[-1]
    clean = (truth.clean - truth.noised - router - reader) / drop  # shares: all but the switch and the reader
    np.testing.assert_allclose(clean, 0.5, atol=1e-9)
    strongest = 0.4 * np.exp(5 * 0.05) / (1 - weight + weight * np.exp(5 * 0.05)) * 5
    weakest = 0.4 * np.exp(-5 * 0.05) / (1 - weight + weight * np.exp(-5 * 0.05)) * 5
    assert ((router > weakest - 1e-6) & (router < strongest + 1e-6)).all()


def test_rescue_and_direct_effects(routes, engine):
    found = mt.trace_experts(routes.model, routes.cases, engine=engine)
    truth = routes.truth
    np.testing.assert_allclose(found.cases.clean, truth.clean, **TOLERANCE)
    np.testing.assert_allclose(found.cases.noised, truth.noised, **TOLERANCE)
    np.testing.assert_allclose(found.effects.reshape(truth.experts.shape), truth.experts, **TOLERANCE)
    np.testing.assert_allclose(found.direct.reshape(truth.experts.shape), truth.experts_direct, **TOLERANCE)
    layers = mt.trace_layers(routes.model, routes.cases, engine=engine)
    np.testing.assert_allclose(layers.effects, truth.layers, **TOLERANCE)
    np.testing.assert_allclose(layers.direct, truth.layers_direct, **TOLERANCE)


def test_later_routing(routes, engine):
    truth = routes.truth
    blocks = mt.trace_routes(routes.model, routes.cases, engine=engine)
    np.testing.assert_allclose(blocks.effects, truth.layers, **TOLERANCE)
    np.testing.assert_allclose(blocks.routing, truth.layers_routing, **TOLERANCE)
    named = [routes.carrier, routes.switched, routes.reader]
    found = mt.trace_routes(routes.model, routes.cases, experts=named, engine=engine)
    for column, star in enumerate(named):
        rescue = truth.experts[:, star.layer, star.expert]
        routing = truth.experts_routing[:, star.layer, star.expert]
        np.testing.assert_allclose(found.effects[:, column], rescue, **TOLERANCE)
        np.testing.assert_allclose(found.routing[:, column], routing, **TOLERANCE)


def test_every_path_of_the_carrier(routes):
    layer, experts = routes.layer, FAMILIES[routes.family].experts
    receivers = [*range(layer + 1, 5), *(f"L{at:02d}.router" for at in range(layer + 1, 5))]
    receivers += [(at, expert) for at in range(layer + 1, 5) for expert in range(experts)]
    for sender in (routes.carrier, layer):
        found = mt.trace_paths(routes.model, routes.cases, [(sender, receiver) for receiver in receivers])
        expected = np.stack([routes.truth.path(sender, receiver) for receiver in receivers], axis=1)
        np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
        assert (expected.max(axis=0) > 0.5).sum() == 4
    others = mt.trace_paths(routes.model, routes.cases, [(0, 3), (routes.switched, 3), (layer + 1, 4)])
    np.testing.assert_allclose(others.effects, 0.0, **TOLERANCE)


def test_other_noise(routes):
    noise = mt.SubjectNoise(scale=4.0, draws=2)
    truth = routes.truth_under(noise)
    router = f"L{routes.layer + 1:02d}.router"
    found = mt.trace_paths(routes.model, routes.cases, [(routes.carrier, router)], noise=noise)
    np.testing.assert_allclose(found.effects[:, 0], truth.path(routes.carrier, router), **TOLERANCE)
    np.testing.assert_allclose(
        found.rescue[:, 0], truth.experts[:, routes.layer, routes.carrier.expert], **TOLERANCE
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pair_reaches_its_readers_together_alone(family):
    planted = plant("pair", family, n=6)
    first, _ = planted.experts
    readers = [planted.layer + 1, planted.layer + 2]
    pairs = [(sender, reader) for sender in (planted.layer, (planted.layer, first)) for reader in readers]
    found = mt.trace_paths(planted.model, planted.cases, pairs)
    beyond = planted.truth.layers[:, planted.layer] - planted.truth.linear.sum(axis=1)
    np.testing.assert_allclose(found.effects[:, :2].sum(axis=1), beyond, **TOLERANCE)
    np.testing.assert_allclose(found.effects[:, 2:], 0.0, **TOLERANCE)


def test_the_gradient_sees_neither_switch_nor_reader(routes):
    """First order: at the noised signal the reader's gate is shut and the switched expert isn't routed."""
    found = mt.screen_experts(routes.model, routes.cases, verify=False)
    estimates = found.effects.reshape(routes.truth.experts.shape)
    carrier = (slice(None), routes.layer, routes.carrier.expert)
    np.testing.assert_allclose(estimates[carrier], routes.truth.experts_direct[carrier], **TOLERANCE)


def test_refused():
    with pytest.raises(ArgumentError, match="two layers behind"):
        plant_routes(layers=4, layer=2)
    planted = plant_routes(n=2)
    with pytest.raises(ArgumentError, match="L09"):
        planted.truth.path(1, 9)
    with pytest.raises(ArgumentError, match="no path"):
        planted.truth.path(3, 1)
