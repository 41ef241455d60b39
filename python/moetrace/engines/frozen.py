"""Sequences of one forward that are held to the first of them, but for the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from moetrace.errors import LayoutError
from moetrace.models.anatomy import Anatomy
from moetrace.models.state import first_tensor

_LOST = 1e-3  # part of a change that may be lost on its way beyond rounding


def mixers(anatomy: Anatomy, layer: int) -> Iterator[tuple[nn.Module, bool]]:
    """Modules of a layer that mix or transform its stream, and whether each belongs to its block.

    Those with weights of two dimensions and more, the block, and its router wherever that stands. Norms and
    scales, which have vectors only, act on what these give, and on the stream on its way into them.
    """
    site = anatomy.sites[layer]
    own: set[nn.Module] = set() if site is None else set(site.block.modules())
    if site is not None and site.router is not None:
        own |= set(site.router.modules())
    for module in anatomy.layers[layer].modules():
        of_block = module in own
        weights = [*module._parameters.values(), *module._buffers.values()]
        transforms = any(weight is not None and weight.dim() > 1 for weight in weights)
        if module is not anatomy.layers[layer] and (
            transforms or (site is not None and module in (site.block, site.router))
        ):
            yield module, of_block


def frozen_hook(sequences: Sequence[int], shape: tuple[int, int]) -> Callable[..., Any]:
    """Behind a module: these sequences get what sequence 0 got. ``shape``: sequences, tokens."""

    def held(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(held(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or not value.numel():
            return value
        if len(value) not in (shape[0], shape[0] * shape[1]):
            return value
        rows = value.reshape(shape[0], -1, *value.shape[1:]).clone()
        rows[list(sequences)] = rows[:1].clone()
        return rows.reshape(value.shape)

    def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        return held(output)

    return hook


class Stream:
    """How far each sequence's patch moves the stream behind its own layer, and whether it arrives so."""

    def __init__(self, anatomy: Anatomy, tokens: int, position: int, layers: Sequence[int]) -> None:
        self._anatomy, self._tokens, self._position = anatomy, tokens, position
        self._layers = {1 + index: layer for index, layer in enumerate(layers)}
        self._changes: dict[int, torch.Tensor] = {}

    def hooks(self) -> list[tuple[Any, Any]]:
        """The senders' layers, and what to hang behind them."""
        return [
            (self._anatomy.layers[layer], partial(self._keep, layer))
            for layer in sorted(set(self._layers.values()))
        ]

    def forget(self) -> None:
        """The forward is run again."""
        self._changes.clear()

    def _keep(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        value = self._rows(first_tensor(output))
        for sequence, own in self._layers.items():
            if own == layer:
                self._changes[sequence] = value[sequence] - value[0]

    def _rows(self, value: torch.Tensor) -> torch.Tensor:
        """float64 (sequences, width) at the position."""
        rows = value.reshape(-1, self._tokens, value.shape[-1])
        return rows[:, self._position].double()

    def check(self, layer: int, sequences: set[int], value: Any, what: str) -> None:
        """LayoutError unless ``value`` is the stream in a layer, changed by each sequence's own patch."""
        name = type(self._anatomy.model).__name__
        good = isinstance(value, torch.Tensor) and value.numel() % self._tokens == 0
        lost = float("inf")
        if good:
            rows = self._rows(value)
            lost = 0.0
            for sequence in sequences:
                change = self._changes[sequence].to(rows.device)
                off = (rows[sequence] - rows[0] - change).norm()
                rounding = 16 * torch.finfo(value.dtype).eps * max(rows.abs().max(), change.abs().max())
                size = float(change.norm())
                allowed = _LOST * size + float(rounding) * change.numel() ** 0.5
                lost = max(lost, float(off) / size if float(off) > allowed and size else 0.0)
        if lost:
            raise LayoutError(
                f"{name}: the residual stream isn't found: with all between frozen, a patch arrives "
                f"at {what} of layer {layer} changed by {lost:.2g} of its norm. Paths need layers that add "
                "to one stream; trace_layers and trace_routes serve the model"
            )
