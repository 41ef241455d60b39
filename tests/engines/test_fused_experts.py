"""The fused experts routine in place of the module: the same numbers, or not used at all."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines import tree
from moetrace.engines.job import Patch, Sweep, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import SPARSE, make_cases, make_model


@pytest.fixture(autouse=True)
def every_call_qualifies(monkeypatch):
    monkeypatch.setattr(tree, "FUSED_FROM", 1)


def job_of(model):
    anatomy = find_anatomy(model)
    patches = [
        patch
        for layer in anatomy.sparse_layers
        for patch in (Patch.block(layer), Patch.of_experts(layer, _core.Chosen.UNION))
    ]
    sweeps = [Sweep(layer, 2) for layer in anatomy.sparse_layers]
    return make_job(anatomy, patches, mt.SubjectNoise(draws=2), sweeps=sweeps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_contributions_against_a_loop(dtype):
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(6, 10, 7, generator=generator, dtype=dtype)
    down = torch.randn(6, 7, 5, generator=generator, dtype=dtype)
    hidden = torch.randn(11, 7, generator=generator, dtype=dtype)
    index = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(11)])
    weights = torch.rand(11, 3, generator=generator, dtype=dtype)
    wanted = torch.tensor([9, 0, 4])
    output, contribution = torch.ops.moetrace.fused_output(up, down, hidden, index, weights, wanted.tolist())
    expected = np.zeros((11, 3, 7))
    for row in range(11):
        for slot in range(3):
            gate, value = np.split(up[index[row, slot]].double().numpy() @ hidden[row].double().numpy(), 2)
            inner = gate / (1 + np.exp(-gate)) * value
            expected[row, slot] = float(weights[row, slot]) * (
                down[index[row, slot]].double().numpy() @ inner
            )
    assert output.dtype == contribution.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(output, expected.sum(1), **tolerance)
    np.testing.assert_allclose(contribution, expected[[9, 0, 4]], **tolerance)


@cache
def by_plain_forwards(family):
    """A model, its job and what plain forwards find, once for all ways in which forks join."""
    model = make_model(family)
    with prepared(model):
        job = job_of(model)
        return model, job, ReferenceEngine(job).run(make_cases(4))


@pytest.mark.parametrize("join", _core.Join)
@pytest.mark.parametrize("family", SPARSE)
def test_every_family(family, join):
    model, job, expected = by_plain_forwards(family)
    with prepared(model):
        engine = TreeEngine(job, join)
        found = engine.run(make_cases(4))
    assert engine.fused_calls
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    for layer, routing in expected.routing.items():
        np.testing.assert_array_equal(found.routing[layer].routed, routing.routed)
        np.testing.assert_allclose(found.routing[layer].patched, routing.patched, atol=2e-4)
        np.testing.assert_allclose(found.routing[layer].delta_norm, routing.delta_norm, atol=5e-4)


def disguised(module, factor):
    """A module that only looks standard: its output is multiplied row by row."""
    kind = type(module)

    def forward(self, hidden, index, weights):
        return kind.forward(self, hidden, index, weights) * factor(hidden)

    module.__class__ = type("Disguised", (kind,), {"forward": forward})


def test_a_module_that_only_looks_standard_is_found_out():
    model, cases = make_model("qwen3_moe"), make_cases(3)
    disguised(model.model.layers[1].mlp.experts, lambda hidden: 2.0)
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(1), Patch.block(3)], None)
        expected = ReferenceEngine(job).run(cases)
        engine = TreeEngine(job)
        for _ in range(2):
            engine.fused_calls = 0
            found = engine.run(cases)
            np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
            assert engine.fused_calls == 3  # layers 0, 2 and 3


@pytest.mark.parametrize("row", range(16))
def test_every_row_that_is_compared_counts(row):
    """One of the compared rows is off, whichever: clean and noised final tokens, then tokens before them."""
    model, cases = make_model("qwen3_moe"), make_cases(3)

    def factor(hidden):
        factors = torch.ones(len(hidden), 1)
        if len(hidden) == tree.FIRST_CHECK:
            factors[row] = 1.01
        return factors

    disguised(model.model.layers[1].mlp.experts, factor)
    with prepared(model):
        engine = TreeEngine(make_job(find_anatomy(model), [Patch.block(0)], None))
        engine.run(cases)
    assert engine.fused_calls == 3


def test_weights_that_change_are_compared_anew():
    model, cases = make_model("qwen3_moe"), make_cases(3)
    module = model.model.layers[1].mlp.experts
    seen = []
    disguised(module, lambda hidden: seen.append(len(hidden)) or 1.0)
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(0)], None)
        for _ in range(2):
            TreeEngine(job).run(cases)
        assert seen == [16, 2]  # rows of every case at first, of one case from then on
        module.down_proj.mul_(1.5)
        TreeEngine(job).run(cases)
    assert seen == [16, 2, 16]


def test_the_rows_compared_are_of_several_experts_and_none_is_padding():
    """One short case beside a long one, each row routed to one expert."""
    model = make_model("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 1
    module = model.model.layers[1].mlp.experts
    kind, seen = type(module), []

    def forward(self, hidden, index, weights):
        seen.append((hidden.clone(), index.clone()))
        return kind.forward(self, hidden, index, weights)

    module.__class__ = type("Watched", (kind,), {"forward": forward})
    case = make_cases(1)[0]
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(0)], None)
        TreeEngine(job).run([case])
        alone, index = seen.pop()
        assert len(alone) == tree.FIRST_CHECK
        assert len(index.unique()) > 2
        module.down_proj.mul_(1.0)  # compared anew
        long = mt.Case([5, 6] * 30, (3, 5), 10, 40, 999, "P0")
        TreeEngine(job).run([case, long])
        together, _ = seen.pop()
    # Padding is token 0 at position 0, alone: a row of the short case that stands in front of its prompt.
    with torch.no_grad():
        model(input_ids=torch.tensor([[0]]))
    padding = seen.pop()[0]
    assert len(together) == tree.FIRST_CHECK
    assert (together - padding).abs().amax(dim=1).min() > 1e-4


def test_a_users_hook_is_not_passed_by():
    model, cases = make_model("qwen3_moe"), make_cases(3)

    def steer(_module, _args, output):
        return output + torch.arange(len(output))[:, None].gt(0) * 0.5  # the first row stays as it is

    handle = model.model.layers[2].mlp.experts.register_forward_hook(steer)
    seen = []
    watch = model.model.layers[1].mlp.experts.register_forward_hook(lambda _m, _a, o: seen.append(len(o)))
    with prepared(model):
        engine = TreeEngine(make_job(find_anatomy(model), [Patch.block(0)], None))
        engine.run(cases)
    assert engine.fused_calls == 2  # layers 0 and 3
    assert seen[0] > tree.FIRST_CHECK
    handle.remove()
    watch.remove()


def test_few_rows_are_left_to_the_module(monkeypatch):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(0)], None)
        monkeypatch.setattr(tree, "FUSED_FROM", 10_000)
        few = TreeEngine(job)
        few.run(cases)
    assert few.fused_calls == 0
