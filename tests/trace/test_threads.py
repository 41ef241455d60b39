"""Two threads: two models work as one after the other, one model is refused."""

from __future__ import annotations

import copy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace.errors import EngineError
from moetrace.models import state
from moetrace.models.anatomy import find_anatomy
from moetrace.models.readout import make_readout
from tests.engines.tiny import make_cases, make_model
from tests.trace.test_faults import state as state_of

CASES = make_cases(5)


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Threads take turns so often that they meet everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """What each gives, or the exception that it raises, in a thread of its own each."""
    found: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(index: int) -> None:
        start.wait()
        try:
            found[index] = works[index]()
        except Exception as failure:
            found[index] = failure

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def everything(model: torch.nn.Module) -> list[np.ndarray]:
    """The kinds of traces that use different parts of a model."""
    scored = mt.select_cases(model, CASES, n=3, margin=-99, drop=-99)
    layers = mt.trace_layers(model, CASES, batch_tokens=60)
    plain = mt.trace_layers(model, CASES, engine="reference")
    experts = mt.trace_experts(model, CASES, batch_tokens=60)
    sets = mt.trace_coalitions(model, CASES, layer=1, sets="all", batch_tokens=60)
    ids = np.array([case.case_id for case in scored])
    traces = [layers, plain, experts, sets]
    return [ids, layers.direct, *(np.asarray(trace.effects) for trace in traces)]


def test_two_models_of_two_families_in_two_threads():
    families = ("qwen3_moe", "deepseek_v3", "gpt_oss")
    expected = [everything(make_model(family)) for family in families]
    models = [make_model(family) for family in families]  # about which nothing is known yet
    before = [state_of(model) for model in models]
    found = at_once(*(partial(everything, model) for model in models))
    for mine, theirs in zip(found, expected, strict=True):
        assert not isinstance(mine, Exception), mine
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert [state_of(model)[1:4] for model in models] == [own[1:4] for own in before]


def test_slopes_of_readouts_in_threads():
    """torch has one level of forward differentiation for the whole process."""
    tokens = torch.tensor([[3, 4]])

    def slopes(readout: Any) -> list[torch.Tensor]:
        return [readout.slopes(torch.ones(1, 32), tokens) for _ in range(200)]

    readouts = []
    for seed in range(3):
        readout = make_readout(find_anatomy(make_model("granitemoe", seed)))
        readout._chosen = lambda logits: logits / 2.0
        readouts.append(readout)
    for found in at_once(*(partial(slopes, readout) for readout in readouts)):
        assert not isinstance(found, Exception), found
        assert all(torch.equal(own, torch.full((1, 2), 0.5, dtype=torch.float64)) for own in found)


def test_one_model_in_two_threads_is_refused_and_left_as_it_was():
    model = make_model("qwen3_moe")
    expected = mt.trace_layers(model, CASES).effects
    before = state_of(model)
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        entered.set()
        leave.wait(30)

    handle = model.model.layers[1].register_forward_pre_hook(wait)
    first: list[Any] = []
    thread = threading.Thread(target=lambda: first.append(mt.trace_layers(model, CASES).effects))
    thread.start()
    assert entered.wait(30)
    calls: list[Callable[[], Any]] = [
        lambda: mt.trace_layers(model, CASES),
        lambda: mt.trace_experts(model, CASES),
        lambda: mt.select_cases(model, CASES, n=2, margin=-99, drop=-99),
        lambda: mt.trace_layers(Wrapped(model), CASES),  # the same layers under another name
    ]
    for call in calls:
        with pytest.raises(EngineError, match=r"traced by another thread.*copy of the model"):
            call()
    leave.set()
    thread.join()
    handle.remove()
    np.testing.assert_array_equal(first[0], expected)
    assert state_of(model) == before
    np.testing.assert_array_equal(mt.trace_layers(model, CASES).effects, expected)
    assert not state._traced
    assert not state._shared


class Wrapped(torch.nn.Module):
    """As a user wraps a model."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = model.model, model.lm_head, model.config
        self._whole = [model]

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def forward(self, input_ids: Any, **kwargs: Any) -> Any:
        return self._whole[0](input_ids=input_ids, **kwargs)


def twins(family: str = "qwen3_moe") -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two models of one configuration object."""
    first = make_model(family)
    second = tf.AutoModelForCausalLM.from_config(first.config).float().eval()
    second.load_state_dict(first.state_dict())
    assert second.config is first.config
    return first, second


def test_two_models_of_one_configuration():
    first, second = twins()
    expected = mt.trace_layers(copy.deepcopy(first), CASES).effects
    for model in (first, second):
        for config in state.configs_of(model):
            config._attn_implementation_internal = "flex_attention"  # a trace switches it
    first.config.output_router_logits = True

    def trace(model: torch.nn.Module) -> list[np.ndarray]:
        return [mt.trace_layers(model, CASES).effects for _ in range(4)]

    found = at_once(partial(trace, first), partial(trace, second))
    for own in found:
        assert not isinstance(own, Exception), own
        for effects in own:
            np.testing.assert_allclose(effects, expected, atol=1e-5)
    assert first.config._attn_implementation_internal == "flex_attention"
    assert first.config.output_router_logits
    assert not state._shared


def test_a_configuration_that_another_model_needs_otherwise_is_refused():
    first, second = twins()
    second.double()
    second.config._experts_implementation_internal = "grouped_mm"  # which has no float64
    with state.prepared(first):
        with pytest.raises(EngineError, match=r"shares its configuration.*deepcopy"), state.prepared(second):
            pass
        assert second.config._experts_implementation_internal == "grouped_mm"
    with state.prepared(second):
        assert second.config._experts_implementation_internal == "eager"
    assert second.config._experts_implementation_internal == "grouped_mm"


def test_a_model_is_free_again_after_an_error():
    model = make_model("qwen3_moe")
    with pytest.raises(RuntimeError, match="boom"), state.prepared(model):
        raise RuntimeError("boom")
    assert not isinstance(at_once(lambda: mt.trace_layers(model, CASES))[0], Exception)


def test_an_interrupt_at_any_moment_leaves_no_model_marked():
    model = make_model("qwen3_moe")
    mt.trace_layers(model, CASES)
    interrupted = 0

    def clock(_signal: int, _frame: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGALRM, clock)
    try:
        for step in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0001 * step)
                with state.by_one_thread(model):
                    time.sleep(0.003)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert not state._traced
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted


def test_an_interrupt_that_was_held_back_leaves_no_model_marked(monkeypatch):
    """It comes when all modules are marked, at the end of what must not be interrupted."""
    model = make_model("qwen3_moe")

    class Using:
        def __enter__(self) -> None:
            signal.raise_signal(signal.SIGINT)

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(state, "_using", Using())
    with pytest.raises(KeyboardInterrupt), state.by_one_thread(model):
        pass
    assert not state._traced
