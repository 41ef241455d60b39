"""One expert's contribution, replaced at its block's output."""

from __future__ import annotations

from typing import Any

import torch

from moetrace.errors import HookError
from moetrace.pipeline.values import Ablate, Mask, mean_of, new_value
from moetrace.results.expert_name import Expert


class ExpertPatch:
    """What is added to a block's output so that an expert contributes another value than it does.

    Between the experts' call and the block's output, where it is put, it is kept here.
    """

    def __init__(self, site: Expert, value: Any, attended: Mask) -> None:
        self._site, self._value, self._attended = site, value, attended
        self._change: torch.Tensor | None = None
        self.fired = 0

    def at_experts(self, present: torch.Tensor, routed: torch.Tensor) -> None:
        """Contribution (batch, n, width) and where tokens are routed to it, ones of (batch, n, 1)."""
        if self._value == Ablate("mean"):
            here = routed[..., 0].bool()
            attended = self._attended()
            among = here if attended is None else here & attended.to(here.device)
            new = mean_of(present, among) * here.unsqueeze(-1)
        else:
            new = new_value(self._site, self._value, present, self._attended)
        self._change = new - present
        self.fired += bool(present.shape[1])

    def taken(self) -> torch.Tensor:
        """What is added to the block's output, once. HookError where the experts weren't called."""
        change, self._change = self._change, None
        if change is None:
            raise HookError(f"{self._site}: the block returns, and its experts weren't called in it")
        return change


def rerouted(experts: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., experts) with which a router chooses as if some weren't there."""
    lowest = torch.finfo(logits.dtype).min
    away = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    away[experts] = True
    return logits.masked_fill(away, lowest)
