"""Expert patches of the tree engine against literal ablation (equation 5) in the reference engine."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Patch, Sweep, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import SPARSE, make_cases, make_model

Chosen, Join = _core.Chosen, _core.Join


def every_patch(layer: int) -> list:
    subsets = [Patch.of_experts(layer, Chosen.SUBSET, subset=mask) for mask in (1, 3, 6, 15)]
    pairs = [
        Patch.of_experts(layer, chosen, experts=[2], equal_norm=equal)
        for chosen in (Chosen.ANCHOR, Chosen.MATCHED)
        for equal in (False, True)
    ]
    named = [
        Patch.of_experts(layer, Chosen.CLEAN),
        Patch.of_experts(layer, Chosen.UNION),
        Patch.of_experts(layer, Chosen.EXPERTS, experts=[1, 3, 5]),
    ]
    return [Patch.block(layer), *subsets, *pairs, *named]


def assert_same(found, expected):
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    assert found.routing.keys() == expected.routing.keys()
    for layer, own in expected.routing.items():
        for field in fields(own):
            mine, theirs = getattr(found.routing[layer], field.name), getattr(own, field.name)
            np.testing.assert_allclose(mine, theirs, atol=5e-4, err_msg=field.name)


@cache
def by_plain_forwards(family, of_union):
    """A model, its job and what plain forwards find, once for all ways in which forks join."""
    model = make_model(family)
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [patch for layer in anatomy.sparse_layers for patch in every_patch(layer)]
        sweeps = [Sweep(layer, 3, of_union) for layer in anatomy.sparse_layers]  # more slots than experts
        job = make_job(anatomy, patches, mt.SubjectNoise(draws=2), sweeps=sweeps)
        return model, job, ReferenceEngine(job).run(make_cases(4))


@pytest.mark.parametrize("of_union", [False, True])
@pytest.mark.parametrize("join", Join)
@pytest.mark.parametrize("family", SPARSE)
def test_tree_equals_literal_ablation(family, join, of_union):
    model, job, expected = by_plain_forwards(family, of_union)
    with prepared(model):
        engine = TreeEngine(job, join)
        found = engine.run(make_cases(4))
    # A factor or a norm stands between these blocks and the stream; shared experts don't matter.
    scaled = family in ("granitemoe", "flex_olmo")
    assert engine.join is (Join.BEFORE_LAYER if scaled and join is Join.AFTER_LAYER else join)
    assert_same(found, expected)
    for own in expected.routing.values():
        either = own.clean_active | own.noised_active
        np.testing.assert_array_equal(own.patched_active, either if of_union else own.clean_active)


@pytest.mark.parametrize("position", ["subject_last", -2])
def test_positions_before_the_last(position):
    model, cases = make_model("qwen2_moe"), make_cases(3)
    with prepared(model):
        anatomy = find_anatomy(model)
        job = make_job(anatomy, every_patch(1) + every_patch(3), None, position, [Sweep(1, 2)])
        expected = ReferenceEngine(job).run(cases)
        found = TreeEngine(job).run(cases)
    assert_same(found, expected)


def gated(model: torch.nn.Module, layer: int) -> None:
    """Let a block end with a gate of each token's own."""
    block = model.model.layers[layer].mlp
    kind = type(block)

    def forward(self, hidden):
        return kind.forward(self, hidden) * torch.sigmoid(hidden[..., :1])

    block.__class__ = type("Gated", (kind,), {"forward": forward})


def test_a_factor_that_differs_between_tokens_is_no_scale():
    """Contributions at such a block's output aren't those at its experts', times anything."""
    model, cases = make_model("qwen2_moe"), make_cases(2)
    gated(model, 2)
    with pytest.raises(mt.errors.EngineError, match="does more with the sum of its experts than scale it"):
        mt.trace_experts(model, cases, engine="tree")
    found = mt.trace_experts(model, cases)
    assert found.provenance["engine"] == "reference"
    blocks = mt.trace_layers(model, cases)  # which need no contributions
    assert "after their layer" in blocks.provenance["engine_reason"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_beside_shared_experts_in_other_precisions(dtype):
    """Behind the layer a patched row is rounded once, before it at each of the block's steps."""
    model, cases = make_model("qwen2_moe").to(dtype), make_cases(3)
    with prepared(model):
        job = make_job(find_anatomy(model), every_patch(1) + every_patch(3), None, sweeps=[Sweep(1, 2)])
        engine = TreeEngine(job)
        found, before = engine.run(cases), TreeEngine(job, Join.BEFORE_LAYER).run(cases)
    assert engine.join is Join.AFTER_LAYER
    for layer, own in before.routing.items():
        np.testing.assert_array_equal(found.routing[layer].routed, own.routed)
    allowed = 1e-6 if dtype is torch.float64 else 0.03 * np.abs(before.patched).max()
    np.testing.assert_allclose(found.patched, before.patched, atol=allowed)


def test_compiled_contributions_equal_a_loop_and_the_modules_own():
    model = make_model("qwen3_moe")
    module = model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(9, 32, generator=generator)
    index = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(9)])
    weights = torch.rand(9, 3, generator=generator)
    with torch.no_grad():
        assert find_anatomy(model).site(0).expert_layout is not None
        found = torch.ops.moetrace.contributions(
            module.gate_up_proj, module.down_proj, hidden, index, weights
        )
        for row in range(9):
            for place in range(3):
                gate, up = (module.gate_up_proj[index[row, place]] @ hidden[row]).chunk(2)
                value = module.down_proj[index[row, place]] @ (torch.nn.functional.silu(gate) * up)
                torch.testing.assert_close(
                    found[row, place], value * weights[row, place], atol=1e-5, rtol=1e-4
                )
        own = module(hidden.repeat_interleave(3, 0), index.reshape(-1, 1), weights.reshape(-1, 1))
    torch.testing.assert_close(found, own.reshape(9, 3, -1), atol=1e-5, rtol=1e-4)


def test_an_index_outside_the_experts_is_refused():
    up, down = torch.zeros(2, 8, 4), torch.zeros(2, 4, 4)
    contributions = torch.ops.moetrace.contributions
    with pytest.raises(ValueError, match="expert 2 of 2"):
        contributions(up, down, torch.zeros(1, 4), torch.tensor([[2]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="gate_up"):
        contributions(up[0], down, torch.zeros(1, 4), torch.tensor([[1]]), torch.ones(1, 1))
    with pytest.raises(ValueError, match="contributions need"):
        contributions(up, down, torch.zeros(2, 4), torch.tensor([[1]]), torch.ones(1, 1))


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_contributions_that_do_not_sum_stop_the_trace(factor):
    """A case whose rows are off is found, whatever stands in the rows of another."""
    model, cases = make_model("qwen3_moe"), make_cases(2)
    module = model.model.layers[1].mlp.experts
    module.register_parameter(
        "other", torch.nn.Parameter(torch.zeros(1))
    )  # so that only the module computes it
    kind = type(module)

    def forward(self, hidden, index, weights):
        output = kind.forward(self, hidden, index, weights)
        if not weights[:, 1].any():  # pair by pair
            return output
        first, second = output.chunk(2)
        return torch.cat([first * factor, second * 1.05])

    with prepared(model):
        engine = TreeEngine(make_job(find_anatomy(model), [], None, sweeps=[Sweep(1, 2)]), Join.START)
        engine.run(cases)
        module.__class__ = type("Wrong", (kind,), {"forward": forward})
        with pytest.raises(mt.errors.ContributionError, match="layer 1"):
            engine.run(cases)
