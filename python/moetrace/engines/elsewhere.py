"""Whether a router that mustn't choose an expert also changes at tokens that don't choose it anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moetrace._native import _core
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.experts import routed_call
from moetrace.models.router import MaskedRouters

if TYPE_CHECKING:
    from moetrace.engines.clean_contributions import BlockRows

_UNITS = 16  # of rounding, by which weights that are renormalised may differ


class _Seen(Exception):
    """The routing is known: the experts needn't run."""


def changes_elsewhere(anatomy: Anatomy, layer: int, call: BlockRows, index: torch.Tensor) -> bool:
    """Whether masking an expert's logit changes the routing of any of these rows that isn't routed to it.

    It doesn't where the weights of the chosen experts are renormalised (Mixtral, Qwen3). It does where they
    are parts of a softmax over all experts (Qwen2, OLMoE), and may where groups of experts are chosen first.
    ``call``: rows of what the block is given; ``index``: (rows, k).
    """
    count, rows = expert_count(anatomy, layer), len(index)
    own, weights = _routing(anatomy, layer, call, torch.zeros(rows, count, dtype=torch.bool))
    apart = _UNITS * torch.finfo(weights.dtype).eps
    for expert in range(count):
        away = ~(own == expert).any(dim=1)
        mask = torch.zeros(rows, count, dtype=torch.bool)
        mask[:, expert] = True
        others, found = _routing(anatomy, layer, call, mask)
        same = (others == own).all(dim=1) & torch.isclose(found, weights, rtol=apart, atol=0.0).all(dim=1)
        if bool((away & ~same).any()):
            return True
    return False


def _routing(
    anatomy: Anatomy, layer: int, call: BlockRows, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of each row, (rows, k), ascending by expert, with some logits at minus infinity."""
    seen: list[torch.Tensor] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
        seen[:] = [index.cpu().long(), weights.cpu()]
        raise _Seen

    routers = MaskedRouters(anatomy, {layer: mask})
    try:
        with _core.HookScope() as scope, routers:
            routers.arm(scope)
            scope.before(anatomy.experts(layer), look)
            call.run()
    except _Seen:
        pass
    routers.check()
    index, weights = seen
    index, order = index.sort(dim=1)
    return index, weights.gather(1, order)
