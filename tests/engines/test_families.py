"""Every family by the tree engine, every way of forking, against plain patched forwards."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.engine_choice import choose_engine
from moetrace.engines.job import Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines import oracle
from tests.engines.tiny import DENSE, SPARSE, make_cases, make_model

TREE = [*SPARSE, *DENSE]
Join = _core.Join


def job_of(model, noise=None, position="last"):
    anatomy = find_anatomy(model)
    layers = anatomy.default_layers()
    patches = [*(Patch.block(layer) for layer in layers), Patch.null(layers[0])]
    return make_job(anatomy, patches, noise, position)


@pytest.mark.parametrize("family", TREE)
def test_reference_is_the_definition(family):
    model = make_model(family)
    case = make_cases()[1]
    with prepared(model):
        job = job_of(model)
        outcome = ReferenceEngine(job).run([case])
    layers = list(find_anatomy(model).default_layers())
    expected = oracle.rescue(model, case, layers)
    found = outcome.patched[0, :-1, 0] - outcome.noised[0, 0]
    assert np.abs(expected).max() > 0.02  # the patches do something
    np.testing.assert_allclose(found, expected, atol=2e-4)


@cache
def by_plain_forwards(family, position):
    """A model, its job and what plain forwards find, once for all ways in which forks join."""
    model = make_model(family)
    with prepared(model):
        job = job_of(model, mt.SubjectNoise(draws=2 if position == "last" else 1), position)
        return model, job, ReferenceEngine(job).run(make_cases())


@pytest.mark.parametrize("position", ["last", "subject_last", -3])
@pytest.mark.parametrize("join", _core.Join)
@pytest.mark.parametrize("family", TREE)
def test_tree_equals_reference(family, join, position):
    model, job, expected = by_plain_forwards(family, position)
    with prepared(model):
        engine = TreeEngine(job, join)
        found = engine.run(make_cases())
    # A norm or a scale stands between these blocks and the stream.
    scaled = family in ("granitemoe", "flex_olmo", "gemma3")
    assert engine.join is (Join.BEFORE_LAYER if scaled and join is Join.AFTER_LAYER else join)
    for name in ("clean", "noised", "patched"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("family", TREE)
def test_auto_takes_the_tree(family):
    model = make_model(family)
    with prepared(model):
        choice = choose_engine(job_of(model), make_cases())
    assert choice.engine.name == "tree", choice.reason
    assert max(choice.difference) < 2e-4


def test_doge_is_refused_with_the_reason():
    with pytest.raises(mt.errors.TokenMixingError, match="across the batch"):
        mt.trace_layers(make_model("doge"), make_cases(2))


def test_token_mixing_is_found_without_knowing_the_class():
    model = make_model("qwen3_moe")

    def mix(_module, _args, output):  # adds the batch's mean to every token
        return output + output.mean(dim=(0, 1), keepdim=True)

    model.model.layers[1].mlp.register_forward_hook(mix)
    with pytest.raises(mt.errors.TokenMixingError, match="same batch"):
        mt.trace_layers(model, make_cases(2))


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_dense_layers_of_a_sparse_model(family):
    model, cases = make_model(family), make_cases(2)
    assert mt.trace_layers(model, cases).layers == (1, 2, 3)
    asked = mt.trace_layers(model, cases, layers=[0, 2])
    expected = np.stack([oracle.rescue(model, case, [0, 2]) for case in cases])
    np.testing.assert_allclose(asked.effects, expected, atol=2e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window"])
def test_half_precision_runs_and_reports_its_floor(family):
    model = make_model(family).to(torch.bfloat16)
    result = mt.trace_layers(model, make_cases())
    assert np.isfinite(result.effects).all()
    assert result.noise_floor >= 0
    assert result.provenance["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", SPARSE)
def test_runs_in_one_forward_are_those_of_one_each(family):
    """What a trace is confirmed by: clean, noised and patched sequences of a case side by side."""
    model = make_model(family)
    anatomy = find_anatomy(model)
    experts = [layer for layer in anatomy.sparse_layers if anatomy.site(layer).experts is not None]
    first, last = experts[0], experts[-1]
    patches = [
        Patch.block(first),
        Patch.null(first),
        Patch.of_experts(first, _core.Chosen.CLEAN),
        Patch.of_experts(last, _core.Chosen.UNION),
        Patch.of_experts(last, _core.Chosen.SUBSET, subset=0b10),
        Patch.block(last),
    ]
    with prepared(model):
        engine = ReferenceEngine(make_job(anatomy, patches, position="last"))
        for case in make_cases(3):
            apart, together = engine.run([case]), engine.together(case)
            for name in ("clean", "noised", "patched"):
                np.testing.assert_allclose(getattr(together, name), getattr(apart, name), atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
