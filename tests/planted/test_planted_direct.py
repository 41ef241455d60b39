"""What experts write straight to the logit coordinate is direct, what later layers read is not."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace.planted import FAMILIES, plant

TOLERANCE = {"rtol": 0, "atol": 1e-4}


def test_experts(planted, engine):
    found = mt.trace_experts(planted.model, planted.cases, engine=engine)
    expected = planted.direct_experts
    assert found.provenance["direct"] == "measured"
    np.testing.assert_allclose(found.direct.reshape(expected.shape), expected, **TOLERANCE)
    np.testing.assert_allclose(found.direct_linear.reshape(expected.shape), expected, **TOLERANCE)
    indirect = planted.truth.experts - expected
    np.testing.assert_allclose(found.indirect.reshape(expected.shape), indirect, **TOLERANCE)


def test_layers(planted, engine):
    found = mt.trace_layers(planted.model, planted.cases, engine=engine)
    expected = planted.direct_layers
    for values in (found.direct, found.direct_linear):
        np.testing.assert_allclose(values, expected, **TOLERANCE)
    np.testing.assert_allclose(found.indirect, planted.truth.layers - expected, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pair_mediates_and_a_single_writes(family):
    pair, single = plant("pair", family, n=8), plant("single", family, n=8)
    mediators = mt.trace_layers(pair.model, pair.cases, layers=[pair.layer])
    writers = mt.trace_layers(single.model, single.cases, layers=[single.layer])
    assert mediators.indirect.mean() > 2.0
    assert np.abs(mediators.direct).max() < 0.3 * mediators.effects.mean()
    np.testing.assert_allclose(writers.indirect, 0.0, atol=1e-4)
    assert writers.direct.mean() > 2.0


def test_other_noise():
    noise = mt.SubjectNoise(draws=2)
    planted = plant("pair", "qwen3_moe", n=5)
    found = mt.trace_layers(planted.model, planted.cases, noise=noise)
    truth = planted.truth_under(noise)
    expected = truth.linear.sum(axis=1)
    np.testing.assert_allclose(found.direct[:, planted.layer], expected, **TOLERANCE)
    indirect = truth.layers[:, planted.layer] - expected
    np.testing.assert_allclose(found.indirect[:, planted.layer], indirect, **TOLERANCE)
