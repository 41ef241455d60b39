"""What a patch puts in a place: a tensor, a function of what is there, or an ablation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from moetrace.arguments import as_choice, refuse_type, shown
from moetrace.errors import PatchError

ABLATIONS = ("zero", "mean", "resample", "reroute")
Mode = Literal["zero", "mean", "resample", "reroute"]
Mask = Callable[[], "torch.Tensor | None"]  # (batch, n): False for padding; None where nothing is known of it


@dataclass(frozen=True)
class Ablate:
    """Take away what a place says.

    >>> mt.patch(model, {mt.Expert(3, 17): mt.Ablate("zero")})

    - ``"zero"``: zeros; an expert's weight of 0, the others' as they are.
    - ``"mean"``: the mean over the patched tokens of the forward that aren't padding; of an expert over those
      that are routed to it, and in their place alone. For the mean over a reference set give that mean.
    - ``"resample"``: what another sequence of the batch has at the same token: of sequence i that of i - 1.
    - ``"reroute"``: of an expert: the router chooses as if it weren't there, and weighs what it then chooses.

    Raises:
        ArgumentError: another mode.
    """

    mode: Mode

    def __post_init__(self) -> None:
        as_choice(self.mode, "the mode of Ablate", ABLATIONS)


def check_value(site: Any, value: Any, width: int | None) -> None:
    """Refuse what can't stand in a place, as far as that is known before a forward.

    ``width``: of its last axis, where it is known.
    """
    expected = "a tensor that replaces, a function of the present value, or mt.Ablate(mode)"
    if isinstance(value, Ablate):
        if value.mode == "reroute":
            raise PatchError(
                f"{site}: 'reroute' is an ablation of one expert; expected {{mt.Expert(layer, expert): "
                "mt.Ablate('reroute')}, or one of 'zero', 'mean', 'resample' here"
            )
        return
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() or value.dim() < 1:
            raise PatchError(
                f"{site}: the value is a tensor of shape {tuple(value.shape)} and {value.dtype}; expected "
                "floating numbers (..., width)"
            )
        if width is not None and value.shape[-1] != width:
            raise PatchError(
                f"{site}: the value is a tensor of shape {tuple(value.shape)}; expected a last axis of "
                f"{width}, as (width,), (n, width) or (batch, n, width)"
            )
        refuse_nan(site, value, "the value is")
        return
    if callable(value) and not isinstance(value, type):
        check_takes(site, value, "the present value")
        return
    hint = "; mt.Ablate('zero') puts zeros there" if isinstance(value, int | float) else ""
    refuse_type(value, f"the value of {site}", expected + hint)


def check_takes(site: Any, function: Callable[..., Any], *arguments: str) -> None:
    """PatchError for a function that can't be called with that many arguments, as far as it says so."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some that are compiled don't say
        return
    try:
        signature.bind(*arguments)
    except TypeError as failure:
        raise PatchError(
            f"{site}: the function takes {signature} ({failure}); expected one of {' and '.join(arguments)}"
        ) from None


def refuse_nan(site: Any, value: torch.Tensor, what: str) -> None:
    """PatchError for a tensor with NaN, which would spread to every later value. Infinity may be meant: of a
    router's logits it takes an expert away."""
    if not value.is_meta and (count := int(value.isnan().sum())):
        raise PatchError(
            f"{site}: {what} a tensor of shape {tuple(value.shape)} in which {count} of {value.numel()} "
            "values are NaN; expected numbers"
        )


def new_value(site: Any, value: Any, present: torch.Tensor, attended: Mask) -> torch.Tensor:
    """What stands in the place of ``present`` (batch, n, ...). PatchError."""
    if isinstance(value, Ablate):
        return _ablated(site, value.mode, present, attended)
    if isinstance(value, torch.Tensor):
        found = fitting(site, value, present, "the value is")
        try:
            return found.expand(present.shape)
        except RuntimeError:
            raise PatchError(
                f"{site}: the value is a tensor of shape {tuple(value.shape)}; expected one that fits "
                f"{tuple(present.shape)}: (batch, patched tokens of this forward, width), or without the "
                "first axes"
            ) from None
    found = fitting(site, value(present), present, "the function returned")
    if found.shape != present.shape:
        raise PatchError(
            f"{site}: the function returned a tensor of shape {tuple(found.shape)}; expected that of what it "
            f"was given, {tuple(present.shape)}"
        )
    return found


def fitting(site: Any, value: Any, present: torch.Tensor, what: str) -> torch.Tensor:
    """A value in the dtype and on the device of what is there. PatchError for a wider dtype, or no tensor."""
    if not isinstance(value, torch.Tensor):
        raise PatchError(f"{site}: {what} {shown(value)} ({type(value).__name__}); expected a tensor")
    if torch.promote_types(value.dtype, present.dtype) != present.dtype:
        raise PatchError(
            f"{site}: {what} a tensor of {value.dtype}; expected {present.dtype}, as the model has there: "
            f"cast it with .to({present.dtype})"
        )
    return value.to(present.device, present.dtype)


def _ablated(site: Any, mode: str, present: torch.Tensor, attended: Mask) -> torch.Tensor:
    if mode == "zero":
        return torch.zeros_like(present)
    if mode == "resample":
        return resampled(site, present)
    return mean_of(present, attended()).expand(present.shape)


def resampled(site: Any, value: torch.Tensor) -> torch.Tensor:
    """What the sequence before has; the first what the last has. PatchError where there is one alone."""
    if value.shape[0] < 2:
        raise PatchError(
            f"{site}: 'resample' takes another sequence's value, and the batch has one; expected two at least"
        )
    return value.roll(1, 0)


def mean_of(value: torch.Tensor, among: torch.Tensor | None) -> torch.Tensor:
    """Mean over tokens (batch, n, ...), in float32 or better; ``among``: (batch, n), those that count."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if among is None or not among.any():
        return wide.flatten(0, 1).mean(0).to(value.dtype)
    return wide[among.to(value.device)].mean(0).to(value.dtype)
