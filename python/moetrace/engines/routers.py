"""What routers say of a row: one logit for each expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetrace.models.anatomy import ROUTERS, Anatomy


def router_of(anatomy: Anatomy, layer: int) -> nn.Module | None:
    """The router of a layer, in its block or beside its experts; None where no usual name has one."""
    block = anatomy.site(layer).block
    for owner in (block, anatomy.layers[layer]):
        children = dict(owner.named_children())
        for name in ROUTERS:
            if name in children:
                return children[name]
    return None


class RouterTap:
    """Keeps the router logits of every row in the last call, as a forward hook of a router.

    Routers return logits alone or among weights and indices, in an order that differs between families:
    they are the first floating tensor with a column for each expert.
    """

    def __init__(self, experts: int) -> None:
        self._experts = experts
        self._logits: torch.Tensor | None = None

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Keep the logits, if they are recognised."""
        self._logits = None
        for value in output if isinstance(output, (tuple, list)) else (output,):
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            if floating and value.dim() >= 2 and value.shape[-1] == self._experts:
                self._logits = value.detach().reshape(-1, self._experts)
                return

    def rows(self, which: torch.Tensor, total: int) -> torch.Tensor:
        """float64 (n, experts) of some rows; (n, 0) where the router wasn't understood."""
        if self._logits is None or len(self._logits) != total:
            return torch.zeros(len(which), 0, dtype=torch.float64)
        return self._logits[which.to(self._logits.device)].to("cpu", torch.float64)
