"""The closed form is the one of the docstring, and the kinds are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.planted import FAMILIES, KINDS, plant

GAIN, BASE = 5.0, -0.2


def signals(planted, scale=3.0, seed=0):
    """Clean and noised z from the embedding matrix and the draws of equation 2."""
    embedding = planted.model.get_input_embeddings().weight.double().numpy()
    subject = 1  # the coordinate
    pairs = []
    for case in planted.cases:
        start, stop = case.subject
        x = embedding[list(case.input_ids)[start:stop]]
        generator = torch.Generator().manual_seed(seed + case.case_id)
        draw = torch.randn(stop - start, x.shape[1], generator=generator).double().numpy()
        noised = x + draw * scale * embedding.std(ddof=1)
        pairs.append(
            [
                5.5 / len(case.input_ids) * (y[:, subject] / np.linalg.norm(y, axis=1)).sum()
                for y in (x, noised)
            ]
        )
    return np.array(pairs).T


def test_the_formula_of_the_docstring(planted):
    clean, noised = signals(planted)
    assert ((clean > 0.95 - 1e-6) & (clean < 1.05 + 1e-6)).all()
    assert (noised < 0.6).all()
    truth, layer = planted.truth, planted.layer
    carried = truth.experts[:, layer, list(planted.experts)]
    drop = GAIN * (clean - noised)
    if planted.kind in ("single", "decoy", "rare"):
        share = 0.3 if planted.kind == "rare" else 0.8
        np.testing.assert_allclose(carried[:, 0], share * drop, atol=1e-6)
    if planted.kind in ("single", "set", "decoy"):
        np.testing.assert_allclose(truth.clean, GAIN * (BASE + clean), atol=1e-6)
        np.testing.assert_allclose(truth.noised, GAIN * (BASE + noised), atol=1e-6)
        np.testing.assert_allclose(truth.layers.sum(axis=1), drop, atol=1e-6)
    if planted.kind == "set":
        shares = (0.5, 0.4, 0.15, -0.1)[: len(planted.experts)]
        np.testing.assert_allclose(carried, np.outer(drop, shares), atol=1e-6)
    if planted.kind == "pair":
        s = GAIN * 0.8 * (clean - 0.88) / 0.12
        np.testing.assert_array_equal(carried, 0.0)
        np.testing.assert_allclose(truth.rescue(planted.experts), s, atol=1e-6)
        np.testing.assert_allclose(truth.shapley[:, list(planted.experts)].T, [s / 2, s / 2], atol=1e-6)
        np.testing.assert_allclose(
            truth.interactions[:, planted.experts[0], planted.experts[1]], s, atol=1e-6
        )
    if planted.kind == "clean_only":
        weight = FAMILIES[planted.family].weights[1]
        applied = weight * np.exp(5 * (clean - 1)) / (1 - weight + weight * np.exp(5 * (clean - 1)))
        np.testing.assert_allclose(carried[:, 0], GAIN * 0.8 * applied / weight, atol=1e-6)


def test_kinds_are_what_they_are_called(planted):
    truth, star = planted.truth, planted.star.expert
    always = truth.clean_active.all(axis=0) & truth.noised_active.all(axis=0)
    if planted.kind == "clean_only":
        assert truth.clean_active[:, star].all()
        assert not truth.noised_active[:, star].any()
        assert ((truth.clean_active ^ truth.noised_active).sum(axis=1) == 2).all()
    else:
        assert always[list(planted.experts)].all()
        np.testing.assert_array_equal(truth.clean_active, truth.noised_active)
    if planted.kind == "decoy":
        decoy = int(truth.delta_norm.mean(axis=0).argmax())
        assert decoy != star
        assert always[decoy]
        assert (truth.delta_norm[:, decoy] > 20 * truth.delta_norm[:, star]).all()
        assert (truth.clean_weight[:, decoy] == truth.clean_weight.max(axis=1)).all()
        np.testing.assert_array_equal(truth.experts[:, planted.layer, decoy], 0.0)
    if planted.kind == "rare":
        effects = truth.experts[:, planted.layer]
        other = int(effects.mean(axis=0).argmax())
        assert other != star
        assert truth.clean_active[:, other].mean() == 0.25


def test_the_decoy_moves_the_logits_of_both_objects():
    """No effect on the contrast is the claim; not that nothing reads it."""
    planted = plant("decoy", n=1)
    case = planted.cases[0]
    ids = torch.tensor([case.input_ids])
    before = planted.model(ids).logits[0, -1, [case.true_id, case.foil_id]]
    decoy = int(planted.truth.delta_norm[0].argmax())
    planted.model.model.layers[planted.layer].mlp.experts.down_proj[decoy] = 0.0
    change = planted.model(ids).logits[0, -1, [case.true_id, case.foil_id]] - before
    assert change.abs().min() > 1.0
    assert float(change[0] - change[1]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_model_is_told_apart(family):
    """The comparison can fail: a carrier weakened by a thousandth is found."""
    planted = plant("single", family, n=3)
    planted.model.model.layers[planted.layer].mlp.experts.down_proj[planted.experts[0]] *= 0.999
    found = mt.trace_experts(planted.model, planted.cases, planted.layer)
    assert np.abs(found.effects - planted.truth.experts[:, planted.layer]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_promises_hold_for_many_cases_and_seeds(kind, family):
    for seed in (1, 2):
        planted = plant(kind, family, n=256, seed=seed)
        clean, noised = signals(planted)
        assert (noised < 0.6).all()
        assert ((clean + noised) / 2 < 0.87).all()
        assert planted.truth.layers.mean(axis=0).argmax() == planted.layer


def test_seeds_plant_elsewhere_and_the_same_seed_the_same():
    models = [plant("single", seed=seed, n=2) for seed in (0, 0, 1, 2, 3)]
    first, again = (model.model.state_dict() for model in models[:2])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert models[0].cases == models[1].cases
    assert len({model.experts for model in models}) > 1


def test_global_random_state_and_mode():
    state = torch.get_rng_state()
    planted = plant("single", n=1)
    assert torch.equal(state, torch.get_rng_state())
    assert not planted.model.training
    assert str(planted.star) == f"L02E{planted.experts[0]:03d}"
    assert "model" not in repr(planted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "triple"}, "'triple'.*'single'"),
        ({"kind": "single", "family": "gpt2"}, "'gpt2'.*'qwen3_moe' or 'mixtral'"),
        ({"kind": "single", "layer": 5}, "layer is 5 of 5; expected 0 to 4"),
        ({"kind": "pair", "layer": 3}, "expected 0 to 2, since 2 later layers"),
        ({"kind": "single", "layers": 0}, "layers is 0"),
        ({"kind": "single", "layer": True}, "layer is True"),
        ({"kind": "single", "seed": -1}, "seed is -1"),
        ({"kind": "single", "n": 0}, "n is 0"),
        ({"kind": "single", "shares": (0.5, 0.2)}, "expects one share"),
        ({"kind": "set", "family": "mixtral", "shares": (0.1, 0.2, 0.3)}, "1 to 2 shares"),
        ({"kind": "set", "shares": ()}, "1 to 4 shares"),
        ({"kind": "single", "shares": (float("nan"),)}, "from -10 to 10"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        plant(**arguments)


def test_refused_experts():
    truth = plant("single", "mixtral", n=1).truth
    for bad in ([8], [-1]):
        with pytest.raises(ArgumentError, match="expected 0 to 7"):
            truth.rescue(bad)
    np.testing.assert_array_equal(truth.rescue([]), 0.0)
