"""The user's model for the time of a trace, and as it was after it."""

from __future__ import annotations

import hashlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from moetrace.errors import EngineError
from moetrace.weights import origin

_IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
TREE_ATTENTION = ("sdpa", "eager")
_locks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


def configs_of(model: nn.Module) -> list[Any]:
    """Every configuration object that a module of the model reads, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """What a verdict about a module is true for: its weights, its hooks, its forwards.

    Weights by place, version and a few entries: an edit in place through ``.data`` raises no version, and
    shows where it reaches one of the entries. Weights that stay in a checkpoint by what is in its files.
    """
    weights = tuple(_weight_state(weight) for weight in (*module.parameters(), *module.buffers()))
    hooks = tuple(
        (
            type(child).__name__,
            *child._forward_hooks,
            *child._forward_pre_hooks,
            id(vars(child).get("forward")),
            id(type(child).forward),
        )
        for child in module.modules()
    )
    return weights, hooks


def _weight_state(weight: torch.Tensor) -> tuple[Any, ...]:
    found = origin(weight)
    if found is not None:  # it comes and goes, and is the same one as long as its file is
        return (found,)
    if weight.is_meta:
        return 0, 0, b""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version, few_entries(weight)


def settings_of(model: nn.Module) -> str:
    """A digest of every configuration that the model reads, attention and experts implementation included."""
    found = [
        (config.to_dict(), *(getattr(config, name, None) for name in _IMPLEMENTATIONS))
        for config in configs_of(model)
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def few_entries(weight: torch.Tensor) -> bytes:
    """Up to seven entries along each axis, spread evenly."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight.detach()  # of a DTensor
    spread = local[tuple(slice(None, None, max(1, size // 4)) for size in local.shape)]
    return spread.to("cpu", torch.float64).numpy().tobytes()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the end, so that what is changed or put back here is so wholly."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # other threads get no signals; a handler that isn't Python's raises nothing here
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[-1])


class Changes:
    """Attributes and entries that are other for a time: what was there comes back, the last changed first.

    A change is written down before it is made, and putting back is done wholly or, after Ctrl-C in the
    middle, once more.
    """

    def __init__(self) -> None:
        self._made: list[tuple[Callable[[Any], None], Any]] = []

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        self._make(partial(setattr, owner, name), getattr(owner, name), value)

    def entry(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Set an entry of a dictionary."""
        self._make(partial(owner.__setitem__, name), owner[name], value)

    def _make(self, put: Callable[[Any], None], before: Any, value: Any) -> None:
        self._made.append((put, before))
        put(value)

    def undo(self) -> None:
        """Put everything back."""
        try:
            self._undo()
        except KeyboardInterrupt:  # it came before it could be held back
            self._undo()
            raise

    def _undo(self) -> None:
        with undisturbed():
            while self._made:
                put, before = self._made[-1]
                put(before)
                self._made.pop()


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """The model as every engine needs it, and as it was afterwards, also after an exception or Ctrl-C.

    In eval mode without gradients and autocast; attention that takes a 4-D mask; no router logits and no loss
    over them, which ask for a plain batch; experts that take float64 where the weights are; and modules as
    they were before ``module.compile()``, since hooks inside a compiled graph don't fire. EngineError where
    another thread traces the model, or while a CUDA graph is captured.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise EngineError(
            "a CUDA graph is being captured on this stream; a trace chooses its steps by what it measures, "
            "which a graph can't hold: trace outside of the capture"
        )
    changes = Changes()
    device = next((weight.device.type for weight in model.parameters()), "cpu")
    with _by_one_thread(model):
        try:
            for module in model.modules():
                if module.training:
                    changes.attribute(module, "training", False)
                if getattr(module, "_compiled_call_impl", None) is not None:
                    changes.attribute(module, "_compiled_call_impl", None)
            for config, name, value in _settings(model):
                changes.attribute(config, name, value)
            with torch.no_grad(), torch.autocast("cpu" if device == "meta" else device, enabled=False):
                yield
        finally:
            changes.undo()


def _settings(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Configuration objects, and what of them has to be other during a trace."""
    sdpa = all(getattr(m, "_supports_sdpa", True) for m in model.modules() if hasattr(m, "_supports_sdpa"))
    double = any(weight.dtype is torch.float64 for weight in model.parameters())
    for config in configs_of(model):
        attention = config._attn_implementation_internal
        if attention is not None and attention not in TREE_ATTENTION:
            yield config, "_attn_implementation_internal", "sdpa" if sdpa else "eager"
        if getattr(config, "output_router_logits", False):
            yield config, "output_router_logits", False
        # torch has grouped products up to float32 only.
        if double and getattr(config, "_experts_implementation_internal", None) == "grouped_mm":
            yield config, "_experts_implementation_internal", "eager"


@contextmanager
def _by_one_thread(model: nn.Module) -> Iterator[None]:
    """Refuse a second thread, whose forwards would run into the first one's hooks."""
    with _locks_lock:
        lock = _locks.setdefault(model, threading.RLock())
    if not lock.acquire(blocking=False):
        raise EngineError(
            f"{type(model).__name__} is being traced by another thread, and hooks of one trace would act in "
            "the other; wait for it, or give each thread a copy of the model"
        )
    try:
        yield
    finally:
        lock.release()


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states that a module returns, alone or first in a tuple."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
