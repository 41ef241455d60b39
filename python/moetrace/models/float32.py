"""A half-precision model in float32 for a time, one decoder layer's weights at once.

What two ways of computing differ by is then their meaning, and not what half precision rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moetrace.models.anatomy import Anatomy

HALF = (torch.bfloat16, torch.float16)
_Swapped = list[tuple[dict[str, Any], str, Any]]


def is_half(model: nn.Module) -> bool:
    """Whether any weight is in half precision."""
    return any(weight.dtype in HALF for weight in model.parameters())


def can_be_wide(anatomy: Anatomy) -> bool:
    """Whether all weights are in memory, plain ones, so that :func:`in_float32` reaches them."""
    return all(
        not weight.is_meta and type(weight) in (torch.Tensor, nn.Parameter)
        for weight in anatomy.model.parameters()
    )


@contextmanager
def in_float32(anatomy: Anatomy) -> Iterator[None]:
    """Weights and buffers in float32: a layer's while it or its block runs, all others for the whole time.

    Needs memory for one layer and for the embedding and the head. What the modules hold is put back, the
    same tensors, also after an exception. Weights that aren't in memory stay what they are.
    """
    inside = {module for layer in anatomy.layers for module in layer.modules()}
    whole: _Swapped = []
    running: dict[nn.Module, _Swapped] = {}
    handles: list[Any] = []

    def widen(layer: nn.Module, _args: Any) -> None:
        running[layer] = _swap(list(layer.modules()))

    def restore(layer: nn.Module, _args: Any, _output: Any) -> None:
        _put_back(running.pop(layer, []))

    try:
        blocks = [site.block for site in anatomy.sites if site is not None]
        for layer in dict.fromkeys((*anatomy.layers, *blocks)):
            handles.append(layer.register_forward_pre_hook(widen, prepend=True))
            handles.append(layer.register_forward_hook(restore, always_call=True))
        whole += _swap([module for module in anatomy.model.modules() if module not in inside])
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()
        for swapped in (*running.values(), whole):
            _put_back(swapped)


def _swap(modules: list[nn.Module]) -> _Swapped:
    """Put float32 copies in the place of half-precision tensors; one copy of a tensor that is tied."""
    swapped: _Swapped = []
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
                swapped.append((holder, name, tensor))
                holder[name] = copies[id(tensor)]
    return swapped


def _put_back(swapped: _Swapped) -> None:
    for holder, name, tensor in reversed(swapped):
        holder[name] = tensor
    swapped.clear()
