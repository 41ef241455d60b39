"""Expert patches of the tree engine against literal ablation (equation 5) in the reference engine."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.base import make_job
from moetrace.engines.experts import contributions, is_standard
from moetrace.engines.growth import Growth
from moetrace.engines.patches import BlockPatch, ExpertPatch
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import SPARSE, make_cases, make_model


def every_patch(layer: int) -> list:
    places = [ExpertPatch(layer, "place", place=place) for place in range(4)]
    subsets = [ExpertPatch(layer, "subset", subset=mask) for mask in (1, 3, 6, 15)]
    pairs = [
        ExpertPatch(layer, kind, experts=(2,), equal_norm=equal)
        for kind in ("anchor", "matched")
        for equal in (False, True)
    ]
    named = [
        ExpertPatch(layer, "clean"),
        ExpertPatch(layer, "union"),
        ExpertPatch(layer, "experts", experts=(1, 3, 5)),
    ]
    return [BlockPatch(layer), *places, *subsets, *pairs, *named]


@pytest.mark.parametrize("growth", Growth)
@pytest.mark.parametrize("family", SPARSE)
def test_tree_equals_literal_ablation(family, growth):
    model, cases = make_model(family), make_cases(4)
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [patch for layer in anatomy.sparse_layers for patch in every_patch(layer)]
        job = make_job(anatomy, patches, mt.SubjectNoise(draws=2))
        expected = ReferenceEngine(job).run(cases)
        engine = TreeEngine(job, growth)
        found = engine.run(cases)
    # Where forks join behind the layer, its block must be its routed experts and nothing else.
    alone = family in ("qwen3_moe", "mixtral_window", "olmoe", "gpt_oss")
    assert engine.growth is (growth if alone or growth is not Growth.BEHIND else Growth.BEFORE)
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    for layer in anatomy.sparse_layers:
        for field in fields(found.routing[layer]):
            mine, theirs = (
                getattr(found.routing[layer], field.name),
                getattr(expected.routing[layer], field.name),
            )
            np.testing.assert_allclose(mine, theirs, atol=5e-4, err_msg=field.name)


@pytest.mark.parametrize("position", ["subject_last", -2])
def test_positions_before_the_last(position):
    model, cases = make_model("qwen2_moe"), make_cases(3)
    with prepared(model):
        anatomy = find_anatomy(model)
        job = make_job(anatomy, every_patch(1) + every_patch(3), None, position)
        expected = ReferenceEngine(job).run(cases)
        found = TreeEngine(job).run(cases)
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)


def test_compiled_contributions_equal_a_loop_and_the_modules_own():
    model = make_model("qwen3_moe")
    module = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(9, 32, generator=generator)
    index = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(9)])
    weights = torch.rand(9, 3, generator=generator)
    with torch.no_grad():
        assert is_standard(module)
        found = contributions(module, hidden, index, weights)
        for row in range(9):
            for place in range(3):
                gate, up = (module.gate_up_proj[index[row, place]] @ hidden[row]).chunk(2)
                value = module.down_proj[index[row, place]] @ (torch.nn.functional.silu(gate) * up)
                torch.testing.assert_close(
                    found[row, place], value * weights[row, place], atol=1e-5, rtol=1e-4
                )
        own = module(hidden.repeat_interleave(3, 0), index.reshape(-1, 1), weights.reshape(-1, 1))
    torch.testing.assert_close(found, own.reshape(9, 3, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt_oss"])
def test_other_layouts_take_the_modules_own_path(family):
    model = make_model(family)
    site = find_anatomy(model).site(0)
    assert not is_standard(site.experts)


def test_an_index_outside_the_experts_is_refused():
    up, down = torch.zeros(2, 8, 4), torch.zeros(2, 4, 4)
    with pytest.raises(RuntimeError, match="expert 2 of 2"):
        _core.gated_contributions(up, down, torch.zeros(1, 4), torch.tensor([[2]]), torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="gate_up"):
        _core.gated_contributions(up[0], down, torch.zeros(1, 4), torch.tensor([[1]]), torch.ones(1, 1))
    with pytest.raises(RuntimeError, match="contributions need"):
        _core.gated_contributions(up, down, torch.zeros(2, 4), torch.tensor([[1]]), torch.ones(1, 1))


def test_contributions_that_do_not_sum_stop_the_trace(monkeypatch):
    model, cases = make_model("qwen3_moe"), make_cases(2)
    mt.trace_experts(model, cases, layer=1)
    from moetrace.engines import experts

    monkeypatch.setattr(experts, "contributions", lambda *args: contributions(*args) * 1.05)
    with pytest.raises(mt.errors.ContributionError, match="layer 1"):
        mt.trace_experts(model, cases, layer=1)
