"""The layer sweep and the noise's options find what was planted."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace.planted import FAMILIES, plant
from tests.engines import oracle

TOLERANCE = {"rtol": 0, "atol": 1e-4}


def test_every_layer(planted, engine):
    found = mt.trace_layers(planted.model, planted.cases, engine=engine)
    truth = planted.truth
    np.testing.assert_allclose(found.cases.clean, truth.clean, **TOLERANCE)
    np.testing.assert_allclose(found.cases.noised, truth.noised, **TOLERANCE)
    np.testing.assert_allclose(found.effects, truth.layers, **TOLERANCE)
    assert found.best == planted.layer
    sharp = found.sharpness()
    assert sharp.gap == pytest.approx(np.sort(truth.layers.mean(axis=0))[-2:] @ [-1, 1], abs=1e-4)
    assert sharp.gap > 1.0


def test_every_case_is_usable(planted):
    kept = mt.select_cases(planted.model, planted.cases, n=len(planted.cases))
    assert sorted(case.case_id for case in kept) == [case.case_id for case in planted.cases]


def test_a_third_implementation_agrees(planted):
    cases = list(planted.cases)[:4]
    layers = list(range(planted.truth.layers.shape[1]))
    found = np.stack([oracle.rescue(planted.model, case, layers) for case in cases])
    np.testing.assert_allclose(found, planted.truth.layers[:4], **TOLERANCE)


@pytest.mark.parametrize("noise", [mt.SubjectNoise(scale=1.0, seed=7), mt.SubjectNoise(draws=2)])
def test_other_noise(planted, engine, noise):
    truth = planted.truth_under(noise)
    found = mt.trace_layers(planted.model, planted.cases, noise=noise, engine=engine)
    np.testing.assert_allclose(found.cases.noised, truth.noised, **TOLERANCE)
    np.testing.assert_allclose(found.effects, truth.layers, **TOLERANCE)
    assert np.abs(truth.noised - planted.truth.noised).max() > 1e-2
    experts = mt.trace_experts(planted.model, planted.cases, planted.layer, noise=noise, engine=engine)
    np.testing.assert_allclose(experts.effects, truth.experts[:, planted.layer], **TOLERANCE)


def test_noise_scales(planted):
    scales = (1.0, 2.0, 3.0, 4.0)
    found = mt.trace_noise_scales(planted.model, planted.cases, planted.star, scales)
    star, layer = planted.star.expert, planted.layer
    for index, scale in enumerate(scales):
        truth = planted.truth_under(mt.SubjectNoise(scale=scale))
        np.testing.assert_allclose(found.effects[:, index], truth.experts[:, layer, star], **TOLERANCE)
        np.testing.assert_allclose(found.effects[:, 4 + index], truth.layers[:, layer], **TOLERANCE)
        assert found.table()["drop"][index] == pytest.approx((truth.clean - truth.noised).mean(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 3])
def test_any_layer_can_be_planted(family, layer, engine):
    planted = plant("single", family, n=5, layers=4, layer=layer, shares=(0.6,), seed=3)
    found = mt.trace_layers(planted.model, planted.cases, engine=engine)
    np.testing.assert_allclose(found.effects, planted.truth.layers, **TOLERANCE)
    assert found.best == layer


def test_patching_the_subject_rescues_nothing(planted):
    """No attention reads what blocks write there."""
    found = mt.trace_layers(planted.model, planted.cases, position="subject_last")
    np.testing.assert_allclose(found.effects, 0.0, atol=1e-6)
