"""How a model calls its experts, and what its blocks do with what they give."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import ContributionError, LayoutError
from moetrace.models.anatomy import LayerSite
from moetrace.models.stacked import weighed_inputs
from moetrace.models.state import fingerprint

_NAMES = ("hidden_states", "top_k_index", "top_k_weights")
_TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k", "num_experts_per_token")
# Of each block the state in which its scale was measured, and the scale.
_known_scales: weakref.WeakKeyDictionary[nn.Module, tuple[Any, float]] = weakref.WeakKeyDictionary()


def top_k_of(config: Any) -> int:
    """Experts that a token is routed to. LayoutError where the config doesn't say."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]  # dbrx: ffn_config
    for owner in (config, *parts):
        for name in _TOP_K:
            value = getattr(owner, name, None)
            if isinstance(value, (list, tuple)) and value:
                value = max(value)
            if isinstance(value, int) and value > 0:
                return value
    raise LayoutError(
        f"the config doesn't say how many experts a token is routed to: none of {', '.join(_TOP_K)}; "
        "trace_layers serves the model"
    )


def routed_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (n, width), index (n, k), weights (n, k) of a call of an experts module.

    Read from its arguments, not from the router's return, whose order differs between families.
    """
    given = dict(zip(_NAMES, args, strict=False)) | kwargs
    found: list[Any] = [given.get(name) for name in _NAMES]
    count = getattr(module, "num_experts", 0)
    if count and weighed_inputs(args, kwargs, count) is not None:
        raise ContributionError(
            f"{where}: {type(module).__name__} is given inputs that the router has weighed, so that an "
            "expert's contribution isn't its output times a weight; engine='reference' ablates it literally"
        )
    if isinstance(found[0], torch.Tensor) and found[0].dim() == 3:
        found[0] = found[0].flatten(0, 1)  # dbrx leaves the batch as it is
    good = all(isinstance(value, torch.Tensor) and value.dim() == 2 for value in found)
    if not good or found[1].is_floating_point() or found[1].shape != found[2].shape:
        shapes = {
            k: tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__ for k, v in given.items()
        }
        raise LayoutError(
            f"{where}: {type(module).__name__} is called with {shapes}; expected hidden_states (..., "
            "width), top_k_index (rows, k) and top_k_weights (rows, k). Experts of this layout can't be "
            "traced one by one; trace_layers serves the model"
        )
    return found[0], found[1], found[2]


def with_weights(
    args: tuple[Any, ...], kwargs: dict[str, Any], weights: torch.Tensor, index: torch.Tensor | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call of an experts module (see `routed_call`) with other routing weights, or other routing."""
    changed = {"top_k_weights": weights} | ({} if index is None else {"top_k_index": index})
    places = dict(zip(_NAMES, args, strict=False))
    given = [changed.get(name, value) for name, value in places.items()] + list(args[len(places) :])
    named = {name: value for name, value in changed.items() if name not in places}
    return tuple(given), kwargs | named


def block_scale(site: LayerSite, hidden: torch.Tensor, call: Callable[[], Any] | None = None) -> float:
    """What a block multiplies the sum of its experts by: 1, a routed scaling factor, a half, ...

    Measured on a few rows ``hidden`` (1, rows, width) of the block's input (or by ``call``, which runs the
    block on what else it needs), with the experts' output 64 times what it is: contributions are defined at
    the block's output (equation 5), and so are the norms of patch vectors (equation 10). ContributionError
    where the steps after the experts aren't one scale for all rows: a norm, a projection, a gate.
    """
    if site.block is site.experts or site.experts is None:
        return 1.0
    state = fingerprint(site.block)
    known = _known_scales.get(site.block)
    if known is None or known[0] != state:
        known = _known_scales[site.block] = (state, measure_scale(site, call or partial(site.block, hidden)))
    return known[1]


def measure_scale(site: LayerSite, call: Callable[[], Any]) -> float:
    """:func:`block_scale` by two calls of the block, whatever it is called with. ContributionError."""
    kept: list[torch.Tensor] = []

    def run(factor: float) -> torch.Tensor:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            kept.append(output)
            return output * factor

        assert site.experts is not None
        with _core.HookScope() as scope:
            scope.behind(site.experts, hook)
            output = call()
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first.double()

    change = ((run(64.0) - run(1.0)) / 63.0).flatten()
    whole = kept[0].double().flatten()
    if not whole.norm() > 0:  # nothing to scale
        return 1.0
    eps = torch.finfo(kept[0].dtype).eps
    scale = float(change @ whole / (whole @ whole)) if change.shape == whole.shape else 0.0
    if scale == 0.0 or (change - scale * whole).norm() > 64 * eps * change.norm():
        raise ContributionError(
            f"layer {site.layer}: {type(site.block).__name__} does more with the sum of its experts than "
            "scale it, so contributions at its output aren't those at the experts'; engine='reference' "
            "serves it"
        )
    return scale
