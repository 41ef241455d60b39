"""Layers' weights come one at a time: numbers are as of weights in memory, and each layer is read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.engines import engine_choice, sweeps, tree
from moetrace.engines.lockstep import Lockstep, gather
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy

from .layers_apart import LayersApart
from .tiny import DENSE, SPARSE, make_cases, make_model


def same(found: Any, expected: Any) -> None:
    assert len(found.rows) == len(expected.rows)
    for name in ("clean", "noised", "patched", "rescue"):
        np.testing.assert_allclose(found.rows[name], expected.rows[name], atol=2e-4)
    np.testing.assert_allclose(found.direct, expected.direct, atol=2e-4)


@pytest.mark.parametrize("family", [*SPARSE, *DENSE, "jamba"])
def test_layers_with_weights_apart(family: str) -> None:
    cases = make_cases()
    expected = mt.trace_layers(make_model(family), cases)
    model = make_model(family)
    source = LayersApart(model)
    found = mt.trace_layers(model, cases, batch_tokens=64)
    same(found, expected)
    assert found.provenance["engine"] == expected.provenance["engine"]
    assert all(weight.is_meta for layer in source.layers for weight in layer.parameters())


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window", "gpt_oss", "deepseek_v3", "granitemoe"])
def test_experts_with_weights_apart(family: str) -> None:
    cases = make_cases()
    expected = mt.trace_experts(make_model(family), cases)
    model = make_model(family)
    LayersApart(model)
    same(mt.trace_experts(model, cases, batch_tokens=64), expected)


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe"])
def test_a_trace_with_its_checks_reads_each_layer_once(family: str) -> None:
    model, cases = make_model(family), make_cases(8)
    source = LayersApart(model)
    once = ["begin", *range(4), "end"]
    mt.trace_layers(model, cases, batch_tokens=64)
    assert source.log == once
    mt.trace_experts(model, cases, batch_tokens=64)
    assert source.log == 2 * once
    assert source.bytes_read == 2 * source.total


def test_selection_reads_each_layer_once() -> None:
    model, cases = make_model("qwen3_moe"), make_cases(20)
    expected = mt.select_cases(make_model("qwen3_moe"), cases, n=4, margin=-99, drop=-99)
    source = LayersApart(model)
    found = mt.select_cases(model, cases, n=4, margin=-99, drop=-99)
    assert found.frame().equals(expected.frame())
    assert source.log.count("begin") == 1


def test_the_reference_engine_reads_each_layer_twice() -> None:
    model, cases = make_model("qwen3_moe"), make_cases(4)
    expected = mt.trace_experts(make_model("qwen3_moe"), cases, engine="reference")
    source = LayersApart(model)
    same(mt.trace_experts(model, cases, engine="reference"), expected)
    assert source.log.count("begin") == 2  # clean and noised runs, then patched ones


def test_results_are_told_layer_by_layer() -> None:
    model, cases = make_model("qwen3_moe"), make_cases(8)
    LayersApart(model)
    told: list[tuple[int, int]] = []
    mt.trace_layers(model, cases, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 8), (4, 8), (6, 8), (8, 8)]


def test_an_interrupt_in_a_layer_leaves_nothing_behind() -> None:
    model, cases = make_model("qwen3_moe"), make_cases(8)
    source = LayersApart(model)
    hooks = {name: dict(m._forward_hooks) for name, m in model.named_modules()}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = source.layers[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        mt.trace_experts(model, cases, batch_tokens=64)
    handle.remove()
    assert source.log[-1] == "end"
    assert not source.inside
    assert {name: dict(m._forward_hooks) for name, m in model.named_modules()} == hooks
    assert all("_compiled_call_impl" not in vars(layer) for layer in source.layers)
    same(mt.trace_experts(model, cases), mt.trace_experts(make_model("qwen3_moe"), cases))


def test_gathered_functions_keep_the_hooks_of_who_gathers() -> None:
    model = make_model("qwen3_moe")
    anatomy = find_anatomy(model)
    ids = torch.tensor([[5, 6, 7]])
    seen: list[str] = []

    def forward() -> torch.Tensor:
        return model(ids).logits

    def watched() -> list[torch.Tensor]:
        handle = anatomy.layers[1].register_forward_hook(lambda *_: seen.append("hook"))
        try:
            return gather([forward, forward])
        finally:
            handle.remove()

    with torch.no_grad():
        expected = model(ids).logits
        alone, both = Lockstep(anatomy).run([forward, watched])
    assert seen == ["hook", "hook"]
    assert all(torch.equal(found, expected) for found in (alone, *both))


def test_the_first_failure_ends_all() -> None:
    model = make_model("qwen3_moe")
    closed: list[int] = []

    def fails() -> None:
        model(torch.tensor([[5, 6, 7]]))
        raise ValueError("of its own")

    def waits() -> None:
        try:
            model(torch.tensor([[5, 6, 7]]))
            model(torch.tensor([[5, 6, 7]]))
        finally:
            closed.append(1)

    with pytest.raises(ValueError, match="of its own"), torch.no_grad():
        Lockstep(find_anatomy(model)).run([waits, fails, waits])
    assert closed == [1, 1]


def test_an_engine_that_fails_beside_its_checks_is_replaced() -> None:
    model, cases = make_model("qwen3_moe"), make_cases(4)
    source = LayersApart(model)
    broken = source.layers[1].mlp
    broken.register_forward_hook(lambda _m, _a, out: out * 1.5 if out.shape[:2].numel() > 60 else out)
    with pytest.warns(mt.errors.EngineWarning, match="single pass"):
        found = mt.trace_layers(model, cases)
    assert found.provenance["engine"] == "reference"


def test_batches_beyond_the_memory_for_hidden_states_come_in_further_sweeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeps, "HELD", 1)
    model, cases = make_model("qwen3_moe"), make_cases(8)
    source, told = LayersApart(model), []
    found = mt.trace_layers(model, cases, batch_tokens=64, progress=lambda done, total: told.append(done))
    same(found, mt.trace_layers(make_model("qwen3_moe"), cases, batch_tokens=64))
    assert source.log.count("begin") > 1
    assert told == sorted(set(told))
    assert told[-1] == 8


def test_a_trace_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "HELD", 1)
    cases = make_cases(8)
    expected = mt.trace_layers(make_model("qwen3_moe"), cases, batch_tokens=64)
    model = make_model("qwen3_moe")
    source = LayersApart(model)
    whole, after = LayersApart.enter, 9

    def fails(self: LayersApart, layer: int) -> None:
        if len([x for x in self.log if isinstance(x, int)]) == after:
            raise OSError("the disk is gone")
        whole(self, layer)

    monkeypatch.setattr(LayersApart, "enter", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        mt.trace_layers(model, cases, batch_tokens=64, out=tmp_path)
    monkeypatch.setattr(LayersApart, "enter", whole)
    before = source.log.count("begin")
    found = mt.trace_layers(model, cases, batch_tokens=64, out=tmp_path)
    np.testing.assert_array_equal(found.effects, expected.effects)
    fresh = make_model("qwen3_moe")
    alone = LayersApart(fresh)
    mt.trace_layers(fresh, cases, batch_tokens=64)
    assert source.log.count("begin") - before < alone.log.count("begin")


def test_the_compiled_experts_serve_where_weights_come_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree, "FUSED_FROM", 1)
    trusted: list[int] = []
    monkeypatch.setattr(TreeEngine, "_trust_fused", lambda self: trusted.append(1))
    model, cases = make_model("qwen3_moe"), make_cases()
    LayersApart(model)
    same(mt.trace_experts(model, cases), mt.trace_experts(make_model("qwen3_moe"), cases))
    assert trusted


def test_half_precision_is_compared_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no tolerance for rounding the check goes to float32, layer by layer, and finds the same."""
    monkeypatch.setattr(engine_choice, "tolerance_of", lambda job, seen: 0.0)
    model, cases = make_model("qwen3_moe").bfloat16(), make_cases()
    source = LayersApart(model)
    found = mt.trace_layers(model, cases)
    assert found.provenance["engine"] == "tree"
    assert source.log.count("begin") == 2
    assert all(weight.dtype is torch.bfloat16 for weight in model.parameters())
