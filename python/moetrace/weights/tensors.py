"""Weights that aren't plain tensors: parts that quantised and sharded ones are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import nn

PLAIN = (torch.Tensor, nn.Parameter)
# Float8 is a code without its scale.
NUMBERS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def is_plain(weight: object) -> TypeGuard[torch.Tensor]:
    """Whether a weight is an ordinary tensor of numbers, whose entries are what they seem."""
    if not isinstance(weight, torch.Tensor) or type(weight) not in PLAIN:
        return False
    return type(weight.data) is torch.Tensor and weight.dtype in NUMBERS


def is_coded(weight: torch.Tensor) -> bool:
    """Whether a weight is codes and scales behind a tensor's looks; a shard of a plain one isn't."""
    return not hasattr(weight, "to_local") and hasattr(weight, "__tensor_flatten__")


def parts_of(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The ordinary tensors in memory that a weight is made of: itself, codes and scales, or its shard here.

    None where a subclass doesn't show them.
    """
    if hasattr(weight, "to_local"):  # DTensor
        yield from parts_of(weight.to_local())
    elif hasattr(weight, "__tensor_flatten__"):  # torchao and other wrappers, whose own memory is empty
        names, _ = weight.__tensor_flatten__()
        for name in names:
            yield from parts_of(getattr(weight, name))
    elif not weight.is_meta:
        # bitsandbytes' parameters are their codes.
        yield weight.detach() if type(weight) in PLAIN else weight.detach().as_subclass(torch.Tensor)


def few_entries(weight: torch.Tensor) -> bytes:
    """Up to seven entries along each axis of every part, spread evenly."""
    return b"".join(_few(part) for part in parts_of(weight))


def _few(part: torch.Tensor) -> bytes:
    spread = part[tuple(slice(None, None, max(1, size // 4)) for size in part.shape)]
    return spread.to("cpu", torch.float64).numpy().tobytes()
