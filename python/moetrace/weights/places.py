"""Where modules keep their parameters and buffers, and what they hold there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """One name of one module."""

    module: nn.Module
    name: str

    @property
    def _holder(self) -> dict[str, Any]:
        own: dict[str, Any] = self.module._parameters
        return own if self.name in own else self.module._buffers

    def held(self) -> Any:
        """What is there now."""
        return self._holder[self.name]

    def put(self, value: Any) -> None:
        """Hold something else; neither its kind nor its shape are looked at."""
        self._holder[self.name] = value


class Places:
    """The places of every weight of a model, tied ones together, by any of its names."""

    def __init__(self, model: nn.Module) -> None:
        named = [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]
        by_tensor: dict[int, list[Place]] = {}
        for name, tensor in named:
            path, _, own = name.rpartition(".")
            by_tensor.setdefault(id(tensor), []).append(Place(model.get_submodule(path), own))
        self.of = {name: by_tensor[id(tensor)] for name, tensor in named}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in named}


def like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The values in the dtype and kind of another tensor, a parameter where that is one."""
    value = value.to(other.dtype)
    if isinstance(other, nn.Parameter):
        return nn.Parameter(value, requires_grad=other.requires_grad)
    return value
