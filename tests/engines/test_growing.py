"""Forks that join at their layer in models whose layers hand each other more than hidden states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.newer import NEWER
from tests.engines.tiny import make_cases, make_model
from tests.engines.wide import INDEXER, LATENT, MIXED_MLP, SHARED_INDEXER, WIDE, make_wide

Chosen, Join = _core.Chosen, _core.Join
KNOWN = {**WIDE, **NEWER}
# Keys that a layer chose for the layers behind it; streams; scales and embeddings of each token; keys and
# values of an earlier layer.
GROWN = {
    "glm_moe_dsa": Join.AFTER_LAYER,
    "mistral_large4": Join.AFTER_LAYER,
    "hy_v4": Join.BEFORE_LAYER,
    "beam": Join.BEFORE_LAYER,
    "gemma4_text": Join.BEFORE_LAYER,
}


def few_keys():
    """An indexer that keeps six keys of fourteen; with few heads, ties would be broken by the rows' order."""
    return tf.GlmMoeDsaConfig(
        **LATENT,
        **{**INDEXER, "index_topk": 6, "index_n_heads": 16},
        **MIXED_MLP,
        indexer_types=SHARED_INDEXER,
    )


def compare(model, position, draws=1):
    cases = make_cases(4)
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [
            patch
            for layer in anatomy.default_layers()
            for patch in (Patch.block(layer), Patch.of_experts(layer, Chosen.CLEAN), Patch.null(layer))
        ]
        job = make_job(anatomy, patches, mt.SubjectNoise(draws=draws), position)
        engine = TreeEngine(job)
        expected, found = ReferenceEngine(job).run(cases), engine.run(cases)
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    np.testing.assert_allclose(found.noised, expected.noised, atol=2e-4)
    return engine.join


@pytest.mark.parametrize("position", ["last", "subject_last"])
@pytest.mark.parametrize("family", GROWN)
def test_forks_grow(family, position):
    known = KNOWN[family]
    if not hasattr(tf, known.architecture):
        pytest.skip(f"transformers {tf.__version__} has no {known.architecture}")
    draws = 2 if position == "last" else 1
    assert compare(make_wide(known), position, draws) is GROWN[family]


@pytest.mark.parametrize("position", ["last", "subject_last"])
def test_fewer_keys_than_tokens(position):
    """A fork's chosen keys are those of the row that it copies, its own rows in the place of copied ones."""
    model = make_wide(replace(WIDE["glm_moe_dsa"], config=few_keys))
    assert compare(model, position) is Join.AFTER_LAYER


def test_what_is_not_understood_joins_at_the_start():
    """A layer that is given something of which nobody knows what it has for each row."""
    model, cases = make_model("qwen3_moe"), make_cases(2)

    def hand_over(_module, args, kwargs):
        return args, {**kwargs, "secret": torch.ones(1, 1)}

    model.model.layers[2].register_forward_pre_hook(hand_over, with_kwargs=True)
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(1)], None)
        engine = TreeEngine(job)
        found, expected = engine.run(cases), ReferenceEngine(job).run(cases)
    assert engine.join is Join.START
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
