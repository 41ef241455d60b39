"""One call of the model's own forward, read out at chosen rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.counts import count_forward
from moetrace.errors import EngineError
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import HeadTap, Readout


def accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of the model's forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def read_differences(
    anatomy: Anatomy,
    readout: Readout,
    inputs: dict[str, Any],
    rows: Sequence[int],
    objects: torch.Tensor,
    again: Callable[[], None] = lambda: None,
    joining: int = 0,
) -> torch.Tensor:
    """Run the model and give true minus foil logits (equation 1) at ``rows``: float64 (batch, rows).

    ``objects``: int64 (batch, 2), true and foil token of each sequence. The first row serves the check of
    the readout; where that fails ``again`` is called and the model run once more with its own head.
    ``joining``: token rows that join the pass after its start, for the count.
    """
    keep = torch.as_tensor(rows, dtype=torch.long)
    known = accepted(anatomy.model)
    call = {name: value for name, value in inputs.items() if value is not None}
    if "logits_to_keep" in known:
        call["logits_to_keep"] = keep.to(inputs["input_ids"].device)
    tap = HeadTap(readout, len(rows), keep)
    with _core.HookScope() as scope:
        scope.before(anatomy.head, tap)
        count_forward(inputs["input_ids"].numel() + joining)
        logits = anatomy.model(**call).logits
    if tap.hidden is None:
        raise EngineError(f"the head of {type(anatomy.model).__name__} was never called in a forward pass")
    if not readout.checked:
        readout.check(tap.hidden[:, 0].detach(), objects, _pick(logits[:, :1], objects)[:, 0].detach())
    if readout.own_head:
        if tap.narrow:  # the check failed, here or in a forward beside this one
            again()
            return read_differences(anatomy, readout, inputs, rows, objects, joining=joining)
        picked = _pick(logits, objects).double()
    else:
        batch, count, width = tap.hidden.shape
        tokens = objects.repeat_interleave(count, dim=0)
        picked = readout(tap.hidden.reshape(-1, width), tokens).reshape(batch, count, 2)
    return picked[..., 0] - picked[..., 1]


def _pick(logits: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """Logits (batch, rows, vocabulary) of two tokens of each sequence: (batch, rows, 2)."""
    index = objects.to(logits.device).unsqueeze(1).expand(-1, logits.shape[1], -1)
    return logits.gather(2, index)
