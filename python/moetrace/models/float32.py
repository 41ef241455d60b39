"""A half-precision model in float32 for a time, one decoder layer's weights at once.

What two ways of computing differ by is then their meaning, and not what half precision rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moetrace.changes import Changes, undisturbed
from moetrace.models.anatomy import Anatomy
from moetrace.weights.tensors import is_plain

HALF = (torch.bfloat16, torch.float16)


def is_half(model: nn.Module) -> bool:
    """Whether any weight is in half precision."""
    return any(weight.dtype in HALF for weight in model.parameters())


def is_coarse(model: nn.Module) -> bool:
    """Whether rounding in it shows in logits: weights in half precision, or codes, with which activations are
    often coded too."""
    return is_half(model) or not all(map(is_plain, model.parameters()))


def can_be_wide(anatomy: Anatomy) -> bool:
    """Whether all weights are in memory, plain ones, so that :func:`in_float32` reaches them."""
    return all(is_plain(weight) and not weight.is_meta for weight in anatomy.model.parameters())


@contextmanager
def in_float32(anatomy: Anatomy) -> Iterator[None]:
    """Weights and buffers in float32: a layer's while it or its block runs, all others for the whole time.

    Needs memory for one layer and for the embedding and the head. What the modules hold is put back, the
    same tensors, also after an exception. Weights that aren't in memory stay what they are.
    """
    inside = {module for layer in anatomy.layers for module in layer.modules()}
    whole = Changes()
    running: dict[nn.Module, Changes] = {}
    handles: list[Any] = []

    def widen(module: nn.Module, _args: Any) -> None:
        _widen(list(module.modules()), running.setdefault(module, Changes()))

    def restore(module: nn.Module, _args: Any, _output: Any) -> None:
        running[module].undo()

    def end() -> None:
        for handle in reversed(handles):
            handle.remove()
        for changes in (*running.values(), whole):
            changes.undo()

    try:
        blocks = [site.block for site in anatomy.sites if site is not None]
        with undisturbed():
            for layer in dict.fromkeys((*anatomy.layers, *blocks)):
                handles.append(layer.register_forward_pre_hook(widen, prepend=True))
                handles.append(layer.register_forward_hook(restore, always_call=True))
        _widen([module for module in anatomy.model.modules() if module not in inside], whole)
        yield
    finally:
        try:
            end()
        except KeyboardInterrupt:
            end()
            raise


def _widen(modules: list[nn.Module], changes: Changes) -> None:
    """Put float32 copies in the place of half-precision tensors; one copy of a tensor that is tied."""
    copies: dict[int, Any] = {}
    for module in modules:
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is None or tensor.dtype not in HALF or tensor.is_meta:
                    continue
                if id(tensor) not in copies:
                    wide = tensor.detach().float()
                    trained = isinstance(tensor, nn.Parameter)
                    copies[id(tensor)] = nn.Parameter(wide, requires_grad=False) if trained else wide
                changes.entry(holder, name, copies[id(tensor)])
