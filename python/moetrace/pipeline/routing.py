"""What experts a token is sent to, in a user's forward: read, suppressed, forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from moetrace.arguments import as_count, as_flag, as_list, as_number, is_integer
from moetrace.errors import ArgumentError, ContributionError, LayoutError, PatchError
from moetrace.models.experts import routed_call

Route = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Routed(NamedTuple):
    """Experts and their weights as applied: (batch, tokens, k) each, in the router's order.

    >>> tap.routing[3].experts[0, -1]
    tensor([17,  4])
    """

    experts: torch.Tensor
    weights: torch.Tensor


def linear_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`routed_call` for a place where nothing but experts that are linear in their weights will do."""
    try:
        return routed_call(module, args, kwargs, where)
    except (LayoutError, ContributionError) as failure:
        raise ContributionError(
            f"{where}: {type(module).__name__} isn't given each token's experts and weights, so that an "
            "expert's output needn't be linear in its weight (the router may scale what goes in, as in "
            "Llama 4), and experts can't be read or patched one by one; expected index and weights "
            "beside the hidden states. Router, Block and SharedExpert serve the layer, as do router_logits "
            "and block: lower an expert's logit to see the block without it"
        ) from failure


@dataclass(frozen=True)
class Suppress:
    """Experts whose weights become 0, wherever they are chosen; no other expert takes their place.

    >>> mt.patch(model, {mt.Routing(3): mt.Suppress([17, 4], renormalise=True)})

    ``renormalise``: the others' weights are scaled to the sum that all of the token's had. (To let the router
    choose its next experts: ``{mt.Expert(3, 17): mt.Ablate("reroute")}``.)

    Raises:
        ArgumentError: no expert, a number below 0, or one twice.
    """

    experts: int | Sequence[int]
    renormalise: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", _numbers(self.experts))
        object.__setattr__(self, "renormalise", as_flag(self.renormalise, "renormalise"))

    def __call__(self, experts: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights, (batch, n, k) each, as they are called with."""
        found = weights.masked_fill(_among(experts, self.experts), 0.0)
        return experts, _scaled_to(found, weights) if self.renormalise else found


@dataclass(frozen=True)
class Force:
    """Experts that every token is sent to.

    One that isn't chosen takes the place of the chosen expert with the smallest weight, and that weight.

    >>> mt.patch(model, {mt.Routing(3): mt.Force([17])})
    >>> mt.patch(model, {mt.Routing(3): mt.Force([17], weights=[0.5], renormalise=True)})

    ``weights``: of the forced experts instead; ``renormalise``: all weights of the token are then scaled to
    the sum that they had.

    Raises:
        ArgumentError: no expert, a number below 0, one twice, not as many weights, or one that is negative or
            no number.
        PatchError: in the forward, more experts than a token has.
    """

    experts: int | Sequence[int]
    weights: float | Sequence[float] | None = None
    renormalise: bool = False

    def __post_init__(self) -> None:
        experts = _numbers(self.experts)
        object.__setattr__(self, "experts", experts)
        object.__setattr__(self, "renormalise", as_flag(self.renormalise, "renormalise"))
        if self.weights is None:
            return
        given = [self.weights] if isinstance(self.weights, float | int) else self.weights
        weights = tuple(
            as_number(x, "weights", 0) for x in as_list(given, "weights", "a number for each expert")
        )
        if len(weights) != len(experts):
            raise ArgumentError(
                f"{len(weights)} weights are given for {len(experts)} experts; expected one each"
            )
        object.__setattr__(self, "weights", weights)

    def __call__(self, experts: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and weights, (batch, n, k) each, as they are called with."""
        forced = self.experts
        assert isinstance(forced, tuple)
        if len(forced) > experts.shape[-1]:
            raise PatchError(
                f"{len(forced)} experts are forced where a token has {experts.shape[-1]}; expected no more"
            )
        index, found = experts.clone(), weights.clone()
        given: Any = self.weights or (None,) * len(forced)
        for expert, weight in zip(forced, given, strict=True):
            # Its own place where it has one, else the smallest weight of an expert that isn't forced.
            has = index == expert
            rank = found.abs().masked_fill(_among(index, forced), torch.inf).masked_fill(has, -1.0)
            place = torch.zeros_like(has).scatter(-1, rank.argmin(-1, keepdim=True), True)
            index = index.masked_fill(place, expert)
            if weight is not None:
                found = found.masked_fill(place, weight)
        return index, _scaled_to(found, weights) if self.renormalise else found


def _numbers(experts: Any) -> tuple[int, ...]:
    given = (
        [experts]
        if is_integer(experts)
        else as_list(experts, "experts", "an expert's number or a list of them")
    )
    found = tuple(as_count(expert, "experts", 0) for expert in given)
    if not found or len(set(found)) != len(found):
        raise ArgumentError(f"experts is {list(found)}; expected one at least, and each once")
    return found


def _among(experts: torch.Tensor, wanted: Any) -> torch.Tensor:
    return torch.isin(experts, torch.tensor(wanted, dtype=experts.dtype, device=experts.device))


def _scaled_to(weights: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Weights with the sum that they had; all 0 stay so."""
    own = weights.sum(-1, keepdim=True)
    factor = torch.where(
        own == 0,
        torch.ones_like(own),
        before.sum(-1, keepdim=True) / torch.where(own == 0, torch.ones_like(own), own),
    )
    return weights * factor
