"""What is read for a layer, where it lies in the layer's buffer, and which parameters come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.weights.checkpoint import Checkpoint, Entry
from moetrace.weights.conversion import Computed, Part, Placed

_ALIGNMENT = 64  # of a tensor in a buffer: a cache line


@dataclass(frozen=True)
class View:
    """A tensor in a buffer."""

    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor itself; it shares the buffer's memory."""
        return buffer[self.offset : self.offset + self.bytes].view(self.dtype).view(self.shape)


class LayerPlan:
    """Parameters that are read together.

    ``segments``: for the reader. A parameter is read into its place where its elements are those of
    checkpoint tensors. What transformers computes is computed from tensors in the buffer.
    """

    def __init__(
        self, checkpoint: Checkpoint, parts: Iterable[Part], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.segments: list[Any] = []
        self._size = 0
        self._placed: dict[str, View] = {}
        self._computed: list[tuple[Computed, dict[str, View]]] = []
        for part in parts:
            if isinstance(part, Placed):
                view = self._placed[part.target] = self._room(shapes[part.target], part.stored)
                for run in part.runs:
                    entry, item = checkpoint.entries[run.source], part.stored.itemsize
                    self._read(entry, run.start * item, run.count * item, view.offset + run.at * item)
                continue
            views: dict[str, View] = {}
            for source in part.sources:
                entry = checkpoint.entries[source.name]
                view = views[source.name] = self._room(entry.shape, entry.dtype)
                self._read(entry, 0, entry.bytes, view.offset)
            self._computed.append((part, views))

    def values(self, model: nn.Module, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, from the bytes that were read."""
        found = {name: view.of(buffer) for name, view in self._placed.items()}
        for part, views in self._computed:
            found |= part.compute(model, {name: view.of(buffer) for name, view in views.items()})
        return found

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> View:
        view = View(self._size, prod(shape) * dtype.itemsize, dtype, shape)
        self._size += -(-view.bytes // _ALIGNMENT) * _ALIGNMENT
        return view

    def _read(self, entry: Entry, start: int, count: int, destination: int) -> None:
        self.segments.append(_core.Segment(entry.shard, entry.offset + start, count, destination))
