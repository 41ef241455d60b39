"""Whatever happens during a trace, the model is the same afterwards: the same tensors, hooks and settings."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import masking_utils

import moetrace as mt
from moetrace import errors
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(2)
LAYER = "model.layers.1"
POINTS = (
    "", "model", "model.embed_tokens", "model.rotary_emb", LAYER, f"{LAYER}.input_layernorm",
    f"{LAYER}.self_attn", f"{LAYER}.self_attn.q_proj", f"{LAYER}.mlp", f"{LAYER}.mlp.gate",
    f"{LAYER}.mlp.experts", "model.norm", "lm_head",
)  # fmt: skip


def state(model: torch.nn.Module) -> Any:
    """Everything that a trace touches: tensors by identity and value, hooks, modes, settings."""
    tensors = {name: (id(t), t.data_ptr(), t._version, t.dtype) for name, t in tensors_of(model)}
    modules = [
        (list(m._forward_hooks), list(m._forward_pre_hooks), m.training, "forward" in vars(m))
        for m in model.modules()
    ]
    config = model.config
    settings = (config.to_dict(), config._attn_implementation, config._experts_implementation)
    masks = dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping)
    return tensors, modules, settings, masks, torch.is_grad_enabled(), signal.getsignal(signal.SIGINT)


def tensors_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextmanager
def trap(model: torch.nn.Module, point: str, before: bool, after: int, act: Callable[[], None]) -> Any:
    """Act at the ``after``-th call of a module."""
    calls = []

    def hook(*_: Any) -> None:
        calls.append(None)
        if len(calls) == after:
            act()

    module = model.get_submodule(point)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(hook)
    try:
        yield calls
    finally:
        handle.remove()


def raising(kind: type[BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise kind("from a hook of the user's")

    return act


def interrupting() -> None:
    signal.raise_signal(signal.SIGINT)


FAULTS: dict[str, tuple[Callable[[], None], type[BaseException]]] = {
    "error": (raising(RuntimeError), RuntimeError),
    "memory": (raising(torch.OutOfMemoryError), torch.OutOfMemoryError),
    "interrupt": (interrupting, KeyboardInterrupt),
    "exit": (raising(SystemExit), SystemExit),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_faults_at_every_hook_point(engine: str, fault: str, half: bool) -> None:
    model = make_model("qwen3_moe")
    model = model.bfloat16() if half else model
    model.train()
    before = state(model)
    values = {name: tensor.clone() for name, tensor in tensors_of(model)}
    act, kind = FAULTS[fault]
    reached, said = 0, []
    for point in POINTS:
        for first in (True, False):
            for after in (1, 2, 5, 9, 14):
                with trap(model, point, first, after, act) as calls:
                    try:
                        mt.trace_experts(model, CASES, layer=1, engine=engine)
                    except kind:
                        reached += 1
                    except errors.EngineError as error:
                        said.append(str(error))  # a check that failed says why
                        reached += 1
                    assert calls
                assert state(model) == before, (point, first, after)
    assert reached > 40
    assert all("from a hook of the user's" in text for text in said)
    for name, tensor in tensors_of(model):
        assert torch.equal(tensor, values[name]), name


@pytest.mark.parametrize("half", [False, True])
def test_an_interrupt_at_any_moment(half: bool) -> None:
    """SIGINT from a clock, wherever it falls."""
    model = make_model("qwen3_moe")
    model = model.bfloat16() if half else model
    mt.trace_experts(model, CASES, layer=1)
    before, interrupted = state(model), 0

    def clock(_signal: int, _frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGALRM, clock)
    try:
        for step in range(120):
            model.config.mark = step  # a setting that no trace has seen: the checks run anew
            expected = (before[0], before[1], {**before[2][0], "mark": step})
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0007 * step)
                mt.trace_experts(model, CASES, layer=1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            found = state(model)
            assert found[0] == expected[0], step
            changed = [m for (name, _), *m in zip(model.named_modules(), found[1], before[1], strict=True)]
            assert not [pair for pair in changed if pair[0] != pair[1]], step
            assert found[2][0] == expected[2], step
            assert found[3:] == (before[3], before[4], before[5]), step
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 20


def test_within_inference_mode_and_autocast() -> None:
    model = make_model("qwen3_moe")
    expected = mt.trace_experts(model, CASES, layer=1).effects
    with torch.inference_mode():
        np.testing.assert_allclose(mt.trace_experts(model, CASES, layer=1).effects, expected, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mt.trace_experts(model, CASES, layer=1)
    assert np.abs(rounded.effects - expected).max() <= max(0.1, rounded.noise_floor)


def test_a_captured_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(errors.EngineError, match="CUDA graph"):
        mt.trace_layers(make_model("qwen3_moe"), CASES)


def test_several_threads_trace_their_own_models() -> None:
    models = [make_model(family) for family in ("qwen3_moe", "olmoe", "mixtral_window")]
    expected = [mt.trace_experts(model, CASES, layer=1).effects for model in models]
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        try:
            for _ in range(4):
                found[index] = mt.trace_experts(models[index], CASES, layer=1).effects
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, effects in enumerate(expected):
        np.testing.assert_allclose(found[index], effects, atol=1e-5)


def test_two_traces_of_one_model_at_once_are_refused_or_right() -> None:
    model = make_model("qwen3_moe")
    expected = mt.trace_layers(model, CASES).effects
    before = state(model)
    found: list[Any] = []

    def work() -> None:
        for _ in range(6):
            try:
                found.append(mt.trace_layers(model, CASES).effects)
            except errors.MoetraceError as error:
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for effects in found:
        if not isinstance(effects, errors.MoetraceError):
            np.testing.assert_allclose(effects, expected, atol=1e-5)
    assert state(model) == before
