"""The compiled experts routine in place of the module: the same numbers, or not used at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines import compiled
from moetrace.engines.base import make_job
from moetrace.engines.growth import Growth
from moetrace.engines.patches import BlockPatch, ExpertPatch
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import SPARSE, make_cases, make_model


@pytest.fixture
def calls(monkeypatch):
    """Every call qualifies, however small; counts those that the compiled routine served."""
    monkeypatch.setattr(compiled, "FEWEST_ROWS", 1)
    found = []

    class Counting:
        @staticmethod
        def gated_output(*arguments):
            found.append(len(arguments[2]))
            return _core.gated_output(*arguments)

    monkeypatch.setattr(compiled, "_core", Counting)
    return found


def job_of(model):
    anatomy = find_anatomy(model)
    patches = [
        patch
        for layer in anatomy.sparse_layers
        for patch in (BlockPatch(layer), ExpertPatch(layer, "place", place=1), ExpertPatch(layer, "union"))
    ]
    return make_job(anatomy, patches, mt.SubjectNoise(draws=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_contributions_against_a_loop(dtype):
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(6, 10, 7, generator=generator, dtype=dtype)
    down = torch.randn(6, 7, 5, generator=generator, dtype=dtype)
    hidden = torch.randn(11, 7, generator=generator, dtype=dtype)
    index = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(11)])
    weights = torch.rand(11, 3, generator=generator, dtype=dtype)
    wanted = torch.tensor([9, 0, 4])
    output, contribution = _core.gated_output(up, down, hidden, index, weights, wanted)
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


@pytest.mark.parametrize("growth", Growth)
@pytest.mark.parametrize("family", SPARSE)
def test_every_family(family, growth, calls):
    model, cases = make_model(family), make_cases(4)
    with prepared(model):
        job = job_of(model)
        expected = ReferenceEngine(job).run(cases)
        assert not calls
        found = TreeEngine(job, growth).run(cases)
    assert bool(calls) == (family != "gpt_oss")  # its experts have biases and another gate
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    for layer, routing in expected.routing.items():
        np.testing.assert_array_equal(found.routing[layer].expert, routing.expert)
        np.testing.assert_allclose(found.routing[layer].norm, routing.norm, atol=5e-4)


def test_a_module_that_only_looks_standard_is_found_out(calls):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    module = model.model.layers[1].mlp.experts
    kind = type(module)
    module.__class__ = type("Doubled", (kind,), {"forward": lambda self, *a: 2 * kind.forward(self, *a)})
    with prepared(model):
        job = make_job(find_anatomy(model), [BlockPatch(1), BlockPatch(3)], None)
        expected = ReferenceEngine(job).run(cases)
        found = TreeEngine(job).run(cases)
        served = len(calls)
        TreeEngine(job).run(cases)
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    assert served == 2 + 3  # layers 0 and 1, then again without layer 1: 0, 2, 3
    assert len(calls) == served + 3  # known from then on


def test_the_rows_whose_contributions_count_are_compared(calls):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    module = model.model.layers[1].mlp.experts
    kind = type(module)

    def own_forward(self, hidden, index, weights):
        whole = kind.forward(self, hidden, index, weights)
        return whole if len(hidden) == 1 else whole * torch.tensor([1.0, 3.0])[:, None]

    module.__class__ = type("Wrong", (kind,), {"forward": own_forward})
    with prepared(model), pytest.raises(RuntimeError, match="size of tensor"):  # called again with all rows
        TreeEngine(make_job(find_anatomy(model), [ExpertPatch(1, "clean")], None)).run(cases)
    assert len(calls) == 3  # layers 0 and 1, and 0 again


def test_a_users_hook_is_not_passed_by(calls):
    model, cases = make_model("qwen3_moe"), make_cases(3)

    def steer(_module, _args, output):
        return output + torch.arange(len(output))[:, None].gt(0) * 0.5  # the first row stays as it is

    handle = model.model.layers[2].mlp.experts.register_forward_hook(steer)
    seen = []
    watch = model.model.layers[1].mlp.experts.register_forward_hook(lambda _m, _a, o: seen.append(len(o)))
    with prepared(model):
        job = make_job(find_anatomy(model), [BlockPatch(0)], None)
        TreeEngine(job).run(cases)
    assert len(calls) == 2  # layers 0 and 3
    assert seen[0] > 1
    handle.remove()
    watch.remove()


def test_few_rows_and_half_precision_are_left_to_the_module(calls, monkeypatch):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    with prepared(model):
        job = make_job(find_anatomy(model), [BlockPatch(0)], None)
        monkeypatch.setattr(compiled, "FEWEST_ROWS", 10_000)
        TreeEngine(job).run(cases)
        monkeypatch.setattr(compiled, "FEWEST_ROWS", 1)
        model.bfloat16()
        TreeEngine(make_job(find_anatomy(model), [BlockPatch(0)], None)).run(cases)
    assert not calls
