"""The user's model for the time of a trace, and as it was after it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from moetrace.changes import Changes as Changes
from moetrace.changes import undisturbed as undisturbed
from moetrace.errors import EngineError
from moetrace.models.anatomy import find_anatomy
from moetrace.models.quantised import explained
from moetrace.weights import origin
from moetrace.weights.held import placed
from moetrace.weights.offloaded import sourced
from moetrace.weights.stored import offloaded_modules
from moetrace.weights.tensors import few_entries as few_entries
from moetrace.weights.tensors import is_coded, parts_of
from moetrace.weights.walk import walk

_IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
TREE_ATTENTION = ("sdpa", "eager")
_using = threading.RLock()
_traced: dict[int, list[int]] = {}  # of each module in use: the thread that traces it, and how deep
_traces = threading.local()
_shared: dict[int, _Shared] = {}  # of each configuration in use


def configs_of(model: nn.Module) -> list[Any]:
    """Every configuration object that a module of the model reads, each once."""
    found: dict[int, Any] = {}
    for module in walk(model):
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """What a verdict about a module is true for: its weights, its hooks, its forwards.

    Weights by place, version and a few entries: an edit in place through ``.data`` raises no version, and
    shows where it reaches one of the entries. Offloaded ones by what is kept of them, in or out; those that
    stay in a checkpoint by what is in its files. A copy that computes in the place of a weight for a time
    counts as the weight.
    """
    elsewhere = {}
    for own in offloaded_modules(module):
        for name in own.names:
            holder, leaf = own.holder(name)
            elsewhere[id(holder), leaf] = own.identity(name)
    weights = tuple(
        elsewhere.get((id(holder), leaf)) or _weight_state(stored(weight))
        for child in walk(module)
        for holder in (child._parameters, child._buffers)
        for leaf, weight in holder.items()
        if weight is not None
    )
    hooks = tuple(
        (
            type(child).__name__,
            *child._forward_hooks,
            *child._forward_pre_hooks,
            id(vars(child).get("forward")),
            id(type(child).forward),
        )
        for child in walk(module)
    )
    return weights, hooks


def _weight_state(weight: torch.Tensor) -> tuple[Any, ...]:
    """Place, version and a few entries of what a weight is made of."""
    found = origin(weight)
    if found is not None:  # it comes and goes, and is the same one as long as its file is
        return (found,)
    return tuple(
        (part.data_ptr(), 0 if weight.is_inference() else weight._version, few_entries(part))
        for part in parts_of(weight)
    )


def mark_stored(copy: torch.Tensor, weight: torch.Tensor) -> None:
    """Say that a copy stands in a weight's place."""
    copy._moetrace_stored = weight  # type: ignore[attr-defined]


def stored(weight: torch.Tensor) -> torch.Tensor:
    """The weight that a copy stands for; any other tensor itself."""
    found: torch.Tensor = getattr(weight, "_moetrace_stored", weight)
    return found


def settings_of(model: nn.Module) -> str:
    """A digest of every configuration that the model reads, attention and experts implementation included."""
    found = [
        (config.to_dict(), *(getattr(config, name, None) for name in _IMPLEMENTATIONS))
        for config in configs_of(model)
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """The model as every engine needs it, and as it was afterwards, also after an exception or Ctrl-C.

    In eval mode without gradients and autocast; attention that takes a 4-D mask; no router logits and no loss
    over them, which ask for a plain batch; experts that take float64 or codes where the weights are; and
    modules as they were before ``module.compile()``, since hooks inside a compiled graph don't fire.
    Offloaded weights beside the layers (embedding, final norm, head) are in memory for the time, and layers'
    come from a source. EngineError where another thread traces the model, or while a CUDA graph is captured;
    QuantizationError where a package of quantised weights fails.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise EngineError(
            "a CUDA graph is being captured on this stream; a trace chooses its steps by what it measures, "
            "which a graph can't hold: trace outside of the capture"
        )
    changes = Changes()
    layers = find_anatomy(model).layers
    with by_one_thread(model), placed(model, layers), sourced(model, layers), explained(model):
        device = next((weight.device.type for weight in model.parameters() if not weight.is_meta), "cpu")
        try:
            for module in walk(model):
                if module.training:
                    changes.attribute(module, "training", False)
                if getattr(module, "_compiled_call_impl", None) is not None:
                    changes.attribute(module, "_compiled_call_impl", None)
            _settle(model, changes)
            with torch.no_grad(), torch.autocast(device, enabled=False), _marked_as_trace():
                yield
        finally:
            changes.undo()


@contextmanager
def _marked_as_trace() -> Iterator[None]:
    before = getattr(_traces, "depth", 0)
    try:
        try:
            _traces.depth = before + 1
            yield
        finally:
            _traces.depth = before
    finally:
        _traces.depth = before  # where Ctrl-C came at the first


def is_tracing() -> bool:
    """Whether a trace of this thread runs a model: its forwards aren't the user's own."""
    return bool(getattr(_traces, "depth", 0))


def _settings(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Configuration objects, and what of them has to be other during a trace."""
    sdpa = all(getattr(m, "_supports_sdpa", True) for m in walk(model) if hasattr(m, "_supports_sdpa"))
    double = any(weight.dtype is torch.float64 for weight in model.parameters())
    coded = any(weight.dim() == 3 and is_coded(weight) for weight in model.parameters())
    for config in configs_of(model):
        attention = config._attn_implementation_internal
        if attention is not None and attention not in TREE_ATTENTION:
            yield config, "_attn_implementation_internal", "sdpa" if sdpa else "eager"
        if getattr(config, "output_router_logits", False):
            yield config, "output_router_logits", False
        # torch has grouped products up to float32 only, and codes have none at all.
        experts = getattr(config, "_experts_implementation_internal", None)
        if (double and experts == "grouped_mm") or (coded and experts is not None):
            yield config, "_experts_implementation_internal", "eager"


class _Shared:
    """What of a configuration is other for a time: it may be that of several models that are traced at once.

    The first of them changes it, the last puts it back.
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self.users: set[Changes] = set()  # each by the changes that are undone when it is done

    def leave(self, config: Any, user: Changes) -> None:
        """One of them is done with it."""
        with _using:
            self.users.discard(user)
            if not self.users:
                self.changes.undo()
                _shared.pop(id(config), None)


def _settle(model: nn.Module, changes: Changes) -> None:
    """Give the model's configurations what a trace needs; ``changes`` puts back. EngineError where another
    thread's model has one of them too and needs it otherwise.
    """
    with _using:
        wanted = list(_settings(model))
        for config in configs_of(model):
            own = [(name, value) for other, name, value in wanted if other is config]
            shared = _shared.setdefault(id(config), _Shared())
            if own and shared.users:
                raise EngineError(
                    f"{type(model).__name__} shares its configuration with a model that is being traced by "
                    f"another thread, and needs {own[0][0].strip('_')} otherwise; wait for it, or make each "
                    "model of a copy.deepcopy of the configuration"
                )
            changes.later(partial(shared.leave, config, changes))
            shared.users.add(changes)
            for name, value in own:
                shared.changes.attribute(config, name, value)


@contextmanager
def by_one_thread(model: nn.Module) -> Iterator[None]:
    """Refuse a second thread, whose forwards would run into the first one's hooks.

    What counts are modules: a wrapper, or a model that shares layers with another, is the same model here.
    """
    thread, modules = threading.get_ident(), list(walk(model))
    marked: list[nn.Module] = []

    def unmark() -> None:
        with undisturbed(), _using:
            while marked:
                own = _traced[id(marked[-1])]
                own[1] -= 1
                if not own[1]:
                    del _traced[id(marked[-1])]
                marked.pop()

    try:
        with undisturbed(), _using:  # Ctrl-C that was held back comes at the end of it
            if any(_traced.get(id(module), [thread])[0] != thread for module in modules):
                raise EngineError(
                    f"{type(model).__name__} is being traced by another thread, and hooks of one trace would "
                    "act in the other; wait for it, or give each thread a copy of the model"
                )
            for module in modules:
                _traced.setdefault(id(module), [thread, 0])[1] += 1
                marked.append(module)
        yield
    finally:
        try:
            unmark()
        except KeyboardInterrupt:  # it came before it could be held back
            unmark()
            raise


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states that a module returns, alone or first in a tuple."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
