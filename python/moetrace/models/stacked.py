"""Experts that are given every token for every expert, already scaled by the router (Llama 4).

Their input is what the weight acts on, so a contribution isn't linear in the weight, and there is no call of
(hidden, index, weights) to read. What an expert adds to the block is still its row of the output.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from moetrace.errors import LayoutError


def is_stacked(experts: nn.Module) -> bool:
    """Whether a module of experts takes one tensor and no routing."""
    try:
        named = list(inspect.signature(type(experts).forward).parameters)
    except (TypeError, ValueError):
        return False
    return len(named) == 2


def weighed_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], experts: int) -> torch.Tensor | None:
    """What each expert is given of each row, (experts, rows, width), where it is weighed: zero for experts
    that a row isn't routed to. None for calls with routing, or of another shape.
    """
    given = (*args, *kwargs.values())
    if len(given) != 1 or not isinstance(given[0], torch.Tensor) or given[0].dim() != 2:
        return None
    rows, rest = divmod(len(given[0]), experts)
    return None if rest else stacked(given[0], experts, rows, "weighed inputs")


def stacked(value: Any, experts: int, rows: int, where: str) -> torch.Tensor:
    """Input or output of the module as (experts, rows, width). LayoutError for any other shape."""
    if (
        not isinstance(value, torch.Tensor)
        or value.dim() < 2
        or value.numel() != (experts * rows * value.shape[-1])
    ):
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise LayoutError(
            f"{where}: its experts take one tensor, of shape {shape}; expected {rows} rows for each of "
            f"{experts} experts. Experts of this layout can't be switched off; trace_layers serves the model"
        )
    return value.reshape(experts, rows, value.shape[-1])


def stacked_routing(given: torch.Tensor, where: str) -> torch.Tensor:
    """int64 (rows, k): which experts each row is routed to, from the module's input (experts, rows, width).

    An expert that a row isn't routed to is given zeros.
    """
    routed = (given != 0).any(dim=-1).T  # (rows, experts)
    counts = routed.sum(dim=1)
    if len(counts) and int(counts.min()) != int(counts.max()):
        raise LayoutError(
            f"{where}: its experts are given {int(counts.min())} to {int(counts.max())} rows of a token that "
            "aren't zero; expected the same number of experts for each token. trace_layers serves the model"
        )
    top_k = int(counts.max()) if len(counts) else 0
    return routed.nonzero()[:, 1].reshape(-1, top_k)
