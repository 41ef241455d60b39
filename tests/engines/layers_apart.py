"""A stand-in for weights on disk: a model in memory whose layers' weights are taken away between visits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetrace.models.anatomy import find_anatomy
from moetrace.weights import attach


class LayersApart:
    """Keeps every layer's weights aside, and counts what a sweep would read."""

    def __init__(self, model: Any) -> None:
        self.layers = find_anatomy(model).layers
        self.kept = [
            [
                (module, name, weight)
                for module in layer.modules()
                for name, weight in module._parameters.items()
            ]
            for layer in self.layers
        ]
        self.sizes = [
            sum(w.nbytes for w in {id(w): w for _, _, w in own if w is not None}.values())
            for own in self.kept
        ]
        self.inside: list[int] = []
        self.log: list[Any] = []
        self.bytes_read = 0
        for layer in range(len(self.layers)):
            self._take_away(layer)
        attach(model, self)

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def begin(self) -> None:
        self.log.append("begin")

    def enter(self, layer: int) -> None:
        assert not self.inside, "a second layer while one is in memory"
        self.inside.append(layer)
        self.log.append(layer)
        self.bytes_read += self.sizes[layer]
        for module, name, weight in self.kept[layer]:
            module._parameters[name] = weight

    def leave(self, layer: int) -> None:
        assert self.inside == [layer]
        self.inside.clear()
        self._take_away(layer)

    def end(self) -> None:
        self.log.append("end")

    def _take_away(self, layer: int) -> None:
        for module, name, weight in self.kept[layer]:
            if weight is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(weight, device="meta"), requires_grad=False
                )
