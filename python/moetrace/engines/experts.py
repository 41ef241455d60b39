"""Contributions of routed experts, from the model's own weights and its own experts module."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.integrations import moe as hf_moe

from moetrace._native import _core
from moetrace.engines.patches import ExpertPatch
from moetrace.engines.routing import LayerRouting
from moetrace.errors import ContributionError, LayoutError
from moetrace.models.anatomy import LayerSite
from moetrace.models.state import hooked

_NAMES = ("hidden_states", "top_k_index", "top_k_weights")
_TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_top_k", "num_experts_per_token")
# How far the contributions may sum from the experts' output, in units of its largest entry.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}
_known_scales: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()
KINDS = {
    "clean": _core.Kind.CLEAN,
    "union": _core.Kind.UNION,
    "place": _core.Kind.PLACE,
    "subset": _core.Kind.SUBSET,
    "experts": _core.Kind.EXPERTS,
    "anchor": _core.Kind.ANCHOR,
    "matched": _core.Kind.MATCHED,
}


def recipe(patch: ExpertPatch) -> _core.Recipe:
    """The compiled form of a patch."""
    return _core.Recipe(KINDS[patch.kind], patch.place, patch.subset, list(patch.experts), patch.equal_norm)


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


def is_standard(module: nn.Module) -> bool:
    """Whether the compiled routine knows the layout: fused silu-gated weights without biases, in memory."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor) and up.dim() == down.dim() == 3):
        return False
    gate = getattr(type(module), "_apply_gate", None)
    plain_gate = gate is None or gate is hf_moe._default_apply_gate
    activation = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    flags = (
        not getattr(module, "has_bias", False)
        and not getattr(module, "is_transposed", False)
        and getattr(module, "is_concatenated", True)
        and getattr(module, "has_gate", True)
    )
    in_memory = not up.is_meta and not down.is_meta and up.is_floating_point()
    shapes = up.shape[0] == down.shape[0] and up.shape[1] == 2 * down.shape[2]  # not with identity experts
    return bool(plain_gate and activation and flags and in_memory and shapes and up.device == down.device)


def contributions(
    module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """c_e of every routed (row, expert) pair (equation 5): (n, k, width), float32 or wider.

    The compiled routine for the standard gated layout; else the module itself with one expert a row.
    """
    fused: Any = module
    if is_standard(module) and int(index.max()) < fused.down_proj.shape[0]:
        return _core.gated_contributions(fused.gate_up_proj, fused.down_proj, hidden, index, weights)
    rows, top_k = index.shape
    # A second slot of weight 0: longcat_flash squeezes a single one away.
    one, weight = index.reshape(-1, 1).expand(-1, 2), nn.functional.pad(weights.reshape(-1, 1), (0, 1))
    # forward, not the call: the trace's own hooks hang on the call.
    output: torch.Tensor = module.forward(hidden.repeat_interleave(top_k, dim=0), one, weight)
    wide = output.dtype if output.dtype == torch.float64 else torch.float32
    return output.reshape(rows, top_k, -1).to(wide)


Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def expert_hook(
    site: _core.ExpertSite, where: str, wanted: Callable[[], torch.Tensor], known: Callable[[], Routed | None]
) -> Callable[..., Any]:
    """Forward hook with kwargs of an experts module: tells the site the routing and fires it.

    ``wanted``: the site's rows as rows of the call; ``known``: index, weights and contributions of these rows
    where they were computed already.
    """

    def routed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Routed:
        hidden, index, weights = routed_call(module, args, kwargs, where)
        rows = wanted().to(hidden.device)
        index, weights = index[rows], weights[rows]
        return index, weights, contributions(module, hidden[rows], index, weights)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> Any:
        site.route(*(known() or routed(module, args, kwargs)))
        patched = site.fire(output)
        check_sum(site, output.dtype, where)
        return patched

    return hook


def check_sum(site: _core.ExpertSite, dtype: torch.dtype, where: str) -> None:
    """ContributionError unless the contributions sum to the routed part of the block's output."""
    allowed = TOLERANCE.get(dtype, 8e-2) * max(site.output_size, 1e-6)
    if not site.sum_error <= allowed and site.sum_error == site.sum_error:
        raise ContributionError(
            f"{where}: the experts' contributions sum to the experts' output only up to "
            f"{site.sum_error:.3g} (allowed {allowed:.3g}); this layout of experts isn't understood, so no "
            "patch vector would be right"
        )


def scale_after(site: LayerSite, hidden: torch.Tensor) -> float:
    """What a block multiplies the sum of its experts by: 1, a routed scaling factor, a half, ...

    Measured on one row ``hidden`` (1, 1, width) of the block's input, with the experts' output 64 times what
    it is: contributions are defined at the block's output (equation 5). Where the steps after the experts
    aren't a scale, the ratio of the norms.
    """
    if site.block is site.experts or site.experts is None:
        return 1.0
    if site.block in _known_scales:
        return _known_scales[site.block]
    kept: list[torch.Tensor] = []

    def run(factor: float) -> torch.Tensor:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            kept.append(output.double())
            return output * factor

        assert site.experts is not None
        handles = [site.experts.register_forward_hook(hook)]
        with hooked(handles):
            output = site.block(hidden)
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first.double()

    change = (run(64.0) - run(1.0)).norm() / 63.0
    whole = kept[0].norm()
    if not whole > 0:
        return 1.0
    scale = _known_scales[site.block] = float(change / whole)
    return scale


def layer_routing(
    site: _core.ExpertSite, logits: tuple[torch.Tensor, torch.Tensor], cases: int, draws: int, scale: float
) -> LayerRouting:
    """What a site saw, as numpy; ``logits``: clean, noised, by item; ``scale``: :func:`scale_after`."""
    players = site.players

    def grid(value: torch.Tensor) -> Any:
        return value.cpu().numpy().reshape(cases, draws, -1)

    return LayerRouting(
        grid(players.expert),
        grid(players.valid),
        grid(players.noised_active),
        grid(players.clean_weight).astype(float),
        grid(players.noised_weight).astype(float),
        grid(players.norm).astype(float) * scale,
        *(value.numpy().reshape(cases, draws, value.shape[1]) for value in logits),
    )
