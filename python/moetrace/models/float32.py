"""A half-precision model in float32 for a time, one decoder layer's weights at once.

What two ways of computing differ by is then their meaning, and not what half precision rounds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from moetrace.changes import Changes, undisturbed
from moetrace.errors import ModelError
from moetrace.models.anatomy import Anatomy
from moetrace.models.state import mark_stored
from moetrace.weights import source_of
from moetrace.weights.tensors import is_plain

HALF = (torch.bfloat16, torch.float16)
ComputeDtype = Literal["float32"]
COMPUTE_DTYPES: tuple[ComputeDtype | None, ...] = (None, "float32")
_LARGE = 1 << 18  # entries of a copy whose memory is used again
Hold = Callable[[nn.Module], AbstractContextManager[None]]
_wide: weakref.WeakKeyDictionary[nn.Module, Hold] = weakref.WeakKeyDictionary()


def is_half(model: nn.Module) -> bool:
    """Whether any weight is in half precision and computes in it."""
    return model not in _wide and any(weight.dtype in HALF for weight in model.parameters())


def is_wide(model: nn.Module) -> bool:
    """Whether the model computes in float32 from half-precision weights now."""
    return model in _wide


def held_wide(model: nn.Module, layer: nn.Module) -> AbstractContextManager[None]:
    """Where the model computes in float32: a layer's copies for several calls of it. Nothing elsewhere."""
    return _wide[model](layer) if model in _wide else nullcontext()


def is_coarse(model: nn.Module) -> bool:
    """Whether rounding in it shows in logits: weights in half precision, or codes, with which activations are
    often coded too."""
    return is_half(model) or not all(map(is_plain, model.parameters()))


def can_be_wide(anatomy: Anatomy) -> bool:
    """Whether all weights are in memory, plain ones, so that :func:`in_float32` reaches them."""
    return all(is_plain(weight) and not weight.is_meta for weight in anatomy.model.parameters())


def computing_in(anatomy: Anatomy, dtype: ComputeDtype | None) -> AbstractContextManager[None]:
    """The model in the dtype that a trace asks for: None is its own. ModelError where float32 can't reach
    some weights: those that aren't in memory, and have no source that puts them there while a layer runs.
    """
    if dtype is None or not is_half(anatomy.model):
        return nullcontext()
    sourced = source_of(anatomy.model) is not None
    unreachable = [
        name
        for name, weight in anatomy.model.named_parameters()
        if not is_plain(weight) or (weight.is_meta and not sourced)
    ]
    if unreachable:
        names = ", ".join(unreachable[:3]) + (", …" if len(unreachable) > 3 else "")
        raise ModelError(
            f"compute_dtype={dtype!r} makes float32 of plain weights that are in memory, and "
            f"{len(unreachable)} of {type(anatomy.model).__name__} are quantised or offloaded ({names}); "
            "load the model without, or leave compute_dtype out"
        )
    return in_float32(anatomy)


@contextmanager
def in_float32(anatomy: Anatomy) -> Iterator[None]:
    """Weights and buffers in float32: a layer's while it or its block runs, all others for the whole time.

    Needs memory for one layer and for the embedding and the head. What the modules hold is put back, the
    same tensors, also after an exception. Weights that aren't in memory stay what they are: what fills a
    layer when it is entered must come before these hooks, and take its weights back behind them.
    """
    inside = {module for layer in anatomy.layers for module in layer.modules()}
    whole, pool = Changes(), _Pool()
    running: dict[nn.Module, tuple[Changes, list[Any]]] = {}
    held: set[nn.Module] = set()
    handles: list[Any] = []

    def widen(module: nn.Module, _args: Any = None) -> None:
        if module in held:
            return
        changes, copies = running.setdefault(module, (Changes(), []))
        _widen(list(module.modules()), changes, pool, copies)

    def restore(module: nn.Module, _args: Any = None, _output: Any = None) -> None:
        if module in held:
            return
        changes, copies = running[module]
        changes.undo()
        pool.take_back(copies)

    @contextmanager
    def hold(layer: nn.Module) -> Iterator[None]:
        widen(layer)
        held.add(layer)
        try:
            yield
        finally:
            held.discard(layer)
            restore(layer)

    def end() -> None:
        _wide.pop(anatomy.model, None)
        for handle in reversed(handles):
            handle.remove()
        for changes in (*(own for own, _ in running.values()), whole):
            changes.undo()

    if is_wide(anatomy.model):
        yield
        return
    try:
        blocks = [site.block for site in anatomy.sites if site is not None]
        with undisturbed():
            for layer in dict.fromkeys((*anatomy.layers, *blocks)):
                handles.append(layer.register_forward_pre_hook(widen, prepend=True))
                handles.append(layer.register_forward_hook(restore, always_call=True))
        _wide[anatomy.model] = hold
        _widen([module for module in anatomy.model.modules() if module not in inside], whole, pool, [])
        yield
    finally:
        try:
            end()
        except KeyboardInterrupt:
            end()
            raise


class _Pool:
    """Memory of large copies that one layer has done with, for those of the next: new pages are slow."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.Size, torch.device], list[torch.Tensor]] = {}

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """A float32 copy."""
        free = self._free.get((tensor.shape, tensor.device))
        wide = free.pop() if free else torch.empty_like(tensor, dtype=torch.float32)
        return wide.copy_(tensor.detach())

    def take_back(self, copies: list[Any]) -> None:
        """Keep the large ones of copies that nobody needs any more, and empty the list."""
        while copies:
            wide = copies.pop().data
            if wide.numel() >= _LARGE:
                self._free.setdefault((wide.shape, wide.device), []).append(wide)


def _widen(modules: list[nn.Module], changes: Changes, pool: _Pool, made: list[Any]) -> None:
    """Put float32 copies in the place of half-precision tensors; one copy of a tensor that is tied."""
    copies: dict[int, Any] = {}
    for module in modules:
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is None or tensor.dtype not in HALF or tensor.is_meta:
                    continue
                if id(tensor) not in copies:
                    wide = pool.copy_of(tensor)
                    trained = isinstance(tensor, nn.Parameter)
                    wide = nn.Parameter(wide, requires_grad=False) if trained else wide
                    mark_stored(wide, tensor)
                    copies[id(tensor)] = wide
                    made.append(wide)
                changes.entry(holder, name, copies[id(tensor)])
