"""compute_dtype="float32": a half-precision model computed as if all of it had been made float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.engines import tree
from moetrace.errors import ArgumentError, ArgumentTypeError, ModelError, RunFolderError
from moetrace.models import float32
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import fingerprint
from moetrace.trace.select_cases import score_cases
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(4)


@pytest.fixture(params=["qwen3_moe", "gpt_oss", "deepseek_v3"])
def family(request: Any) -> Any:
    return request.param


def pair(family: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """A half-precision model, and the same numbers in float32."""
    model = make_model(family).to(dtype)
    return model, copy.deepcopy(model).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_it_equals_the_model_made_float32(family: str, engine: str, dtype: torch.dtype) -> None:
    model, wide = pair(family, dtype)
    before = dict(model.state_dict(keep_vars=True))
    options: Any = {"engine": engine, "progress": False}
    for trace in (mt.trace_layers, mt.trace_experts):
        found = trace(model, CASES, compute_dtype="float32", **options)
        expected = trace(wide, CASES, **options)
        np.testing.assert_allclose(found.effects, expected.effects, atol=1e-5)
        assert found.noise_floor < 1e-4
        assert found.provenance["compute_dtype"] == "float32"
        assert found.provenance["model"]["dtype"] == str(dtype).removeprefix("torch.")
        assert found.provenance["engine"] == engine
    after = model.state_dict(keep_vars=True)
    assert all(tensor is before[name] for name, tensor in after.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_scores_and_other_traces(family: str) -> None:
    model, wide = pair(family)
    star = "L01E000"
    layer = find_anatomy(model).sparse_layers[1]
    found = score_cases(model, CASES, compute_dtype="float32")
    np.testing.assert_allclose(
        found[["clean", "noised"]], score_cases(wide, CASES)[["clean", "noised"]], atol=1e-5
    )
    for trace, arguments in (
        (mt.trace_coalitions, {"layer": layer}),
        (mt.trace_noise_scales, {"star": star}),
    ):
        mine = trace(model, CASES, **arguments, compute_dtype="float32", progress=False)  # type: ignore
        theirs = trace(wide, CASES, **arguments, progress=False)  # type: ignore
        np.testing.assert_allclose(mine.effects, theirs.effects, atol=1e-5)


def test_half_precision_alone_has_the_larger_floor() -> None:
    model, _ = pair("qwen3_moe")
    rough = mt.trace_layers(model, CASES, progress=False)
    fine = mt.trace_layers(model, CASES, compute_dtype="float32", progress=False)
    assert fine.noise_floor < rough.noise_floor / 20
    assert rough.provenance["compute_dtype"] is None


def test_select_cases_passes_it_on() -> None:
    model, _ = pair("qwen3_moe")
    seen = []

    def score(_model: Any, batch: Any, **options: Any) -> Any:
        seen.append(options["compute_dtype"])
        return score_cases(model, batch, **options)

    mt.select_cases(model, mt.CaseSet(CASES), 2, margin=-99, drop=-99, compute_dtype="float32", _score=score)
    assert seen == ["float32"]


def test_a_run_folder_of_another_compute_dtype_is_refused(tmp_path: Any) -> None:
    model, _ = pair("qwen3_moe")
    out = tmp_path / "run"
    first = mt.trace_layers(model, CASES, compute_dtype="float32", out=out, progress=False)
    again = mt.trace_layers(model, CASES, compute_dtype="float32", out=out, progress=False)
    np.testing.assert_array_equal(first.effects, again.effects)
    assert mt.load(out).provenance["compute_dtype"] == "float32"
    with pytest.raises(RunFolderError, match="different: compute_dtype"):
        mt.trace_layers(model, CASES, out=out, progress=False)


def test_what_it_can_be() -> None:
    model, wide = pair("qwen3_moe")
    with pytest.raises(ArgumentError, match="did you mean 'float32'"):
        mt.trace_layers(model, CASES, compute_dtype="float23")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="compute_dtype"):
        mt.trace_layers(model, CASES, compute_dtype=torch.float32)  # type: ignore[arg-type]
    # Nothing to do, and nothing else.
    same = mt.trace_layers(wide, CASES, compute_dtype="float32", progress=False)
    np.testing.assert_array_equal(same.effects, mt.trace_layers(wide, CASES, progress=False).effects)


class Quantised(torch.Tensor):
    """A tensor subclass, as quantisation makes them."""


def test_weights_that_it_does_not_reach_are_named() -> None:
    model, _ = pair("qwen3_moe")
    head = model.lm_head
    weight = head.weight.detach().as_subclass(Quantised)
    head._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised or offloaded \(lm_head\.weight"):
        score_cases(model, CASES, compute_dtype="float32")


def test_an_error_inside_puts_the_weights_back() -> None:
    model, _ = pair("qwen3_moe")
    before = dict(model.state_dict(keep_vars=True))

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[2].self_attn.register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        mt.trace_layers(model, CASES, compute_dtype="float32", progress=False)
    handle.remove()
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert not float32.is_wide(model)


def test_copies_share_memory_from_layer_to_layer_and_count_as_their_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = pair("qwen3_moe")
    monkeypatch.setattr(float32, "_LARGE", 1)
    places: list[int] = []
    states = []

    def watch(module: Any, *_: Any) -> None:
        assert module.gate_up_proj.dtype is torch.float32
        places.append(module.gate_up_proj.data_ptr())
        states.append(fingerprint(module))

    experts = [layer.mlp.experts for layer in model.model.layers]
    plain = [fingerprint(module) for module in experts]
    handles = [module.register_forward_pre_hook(watch) for module in experts]
    anatomy = find_anatomy(model)
    with torch.no_grad(), float32.in_float32(anatomy), float32.in_float32(anatomy):
        model(torch.tensor([[5, 6, 7]]))
        model(torch.tensor([[5, 6, 7]]))
        assert float32.is_wide(model)
        assert not float32.is_half(model)
    assert len(set(places)) == 1
    # But for the hook that watches, which is part of the state.
    assert [state[0] for state in states] == [state[0] for state in plain] * 2
    for handle in handles:
        handle.remove()


def test_the_fused_routine_is_compared_anew_in_another_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "FUSED_FROM", 1)
    model, _ = pair("qwen3_moe")
    module = model.model.layers[1].mlp.experts
    kind, seen = type(module), []

    def forward(self: Any, hidden: Any, *args: Any) -> Any:
        seen.append((hidden.dtype, len(hidden)))
        return kind.forward(self, hidden, *args)

    module.__class__ = type("Watched", (kind,), {"forward": forward})
    rows = {}
    for dtype in (None, "float32", None):
        seen.clear()
        mt.trace_layers(model, CASES, engine="tree", compute_dtype=dtype, progress=False)  # type: ignore
        rows[dtype] = {own for own, count in seen if count == tree.FIRST_CHECK}
    assert torch.bfloat16 in rows[None]
    assert rows["float32"] == {torch.float32}
