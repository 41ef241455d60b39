"""Contributions by the literal ablation difference (equation 5), for the reference engine.

The block is run again on the input that it had, with one expert's weight set to zero at the patched token:
no rerouting, no renormalising, and whatever the block does after its experts is done as it does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from moetrace.engines.experts import routed_call
from moetrace.engines.patches import ExpertPatch
from moetrace.engines.routers import RouterTap, router_of
from moetrace.engines.routing import LayerRouting
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.state import hooked


@dataclass
class BlockCall:
    """What a block was called with in one run of one sequence, and what it gave."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: torch.Tensor | None = None


@dataclass(frozen=True)
class Ablated:
    """One run's routed experts at the patched token, in the router's order."""

    experts: list[int]
    weights: list[float]
    values: list[torch.Tensor]
    logits: torch.Tensor  # of the router, (1, experts); (1, 0) where it wasn't understood

    def contribution(self, expert: int) -> torch.Tensor:
        """c_e; zero where the run doesn't route to e."""
        if expert in self.experts:
            return self.values[self.experts.index(expert)]
        return torch.zeros_like(self.values[0])

    def weight(self, expert: int) -> float:
        """Routing weight as applied; zero where the run doesn't route to e."""
        return self.weights[self.experts.index(expert)] if expert in self.experts else 0.0


def ablate(anatomy: Anatomy, layer: int, call: BlockCall, position: int) -> Ablated:
    """Equation 5 for every expert that the run routes the patched token to."""
    site = anatomy.site(layer)
    tap = RouterTap(expert_count(anatomy, layer))
    router = router_of(anatomy, layer)
    if any(router is inner for inner in site.block.modules()):
        assert router is not None
    else:
        router = None  # outside the block, so that running the block again says nothing of it
    module = site.experts
    assert module is not None
    where = f"layer {site.layer}"
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, index, weights = routed_call(module, args, kwargs, where)
        routed.append((index[position].clone(), weights[position].clone()))

    def output_without(place: int | None) -> torch.Tensor:
        def silence(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, index, weights = routed_call(module, args, kwargs, where)
            weights = weights.clone()
            weights[position, place] = 0.0
            return (hidden, index, weights), {}

        handles: list[Any] = []
        with hooked(handles):
            hook = look if place is None else silence
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if router is not None:
                handles.append(router.register_forward_hook(tap))
            output = site.block(*call.args, **call.kwargs)
        value: torch.Tensor = output[0] if isinstance(output, tuple) else output
        flat = value.reshape(-1, value.shape[-1])[position]
        return flat.to(torch.float64)

    whole = output_without(None)
    index, weights = routed[0]
    assert call.output is not None
    logits = tap.rows(torch.tensor([position]), call.output.reshape(-1, call.output.shape[-1]).shape[0])
    values = [whole - output_without(place) for place in range(len(index))]
    return Ablated([int(e) for e in index], [float(w) for w in weights], values, logits)


def union_of(clean: Ablated, noised: Ablated) -> list[int]:
    """Clean-routed experts, then those that only the noised run routes to."""
    return [*clean.experts, *(e for e in noised.experts if e not in clean.experts)]


def patch_vector(patch: ExpertPatch, clean: Ablated, noised: Ablated) -> torch.Tensor:
    """The sum of the patch vectors (equation 6) that a patch names in this case."""

    def delta(expert: int) -> torch.Tensor:
        return clean.contribution(expert) - noised.contribution(expert)

    # Places: clean-routed in the router's order, then noised-routed, empty where the clean run has them too.
    places = [*clean.experts, *(None if e in clean.experts else e for e in noised.experts)]
    chosen: list[int | None]
    if patch.kind == "clean":
        chosen = list(clean.experts)
    elif patch.kind == "union":
        chosen = list(union_of(clean, noised))
    elif patch.kind == "place":
        chosen = [places[patch.place]]
    elif patch.kind == "subset":
        chosen = [e for place, e in enumerate(places) if patch.subset >> place & 1]
    elif patch.kind == "experts":
        chosen = [e for e in union_of(clean, noised) if e in patch.experts]
    else:
        return _pair_vector(patch, clean, delta)
    nothing = torch.zeros_like(clean.values[0])
    return sum((delta(expert) for expert in chosen if expert is not None), start=nothing)


def _pair_vector(patch: ExpertPatch, clean: Ablated, delta: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Anchor or gate-weight-matched control (equations 8 and 10)."""
    anchor = patch.experts[0]
    others = [e for e in clean.experts if e != anchor]
    if anchor not in clean.experts or not others:
        return torch.zeros_like(clean.values[0])
    control = min(others, key=lambda e: (abs(clean.weight(e) - clean.weight(anchor)), e))
    vector = delta(anchor if patch.kind == "anchor" else control)
    if not patch.equal_norm:
        return vector
    smaller = min(delta(anchor).norm(), delta(control).norm())
    return vector * (smaller / vector.norm()) if vector.norm() > 0 else vector


def routing_of(clean: Ablated, noised: Ablated) -> LayerRouting:
    """The same table that the tree engine gives: one case, one draw."""
    expert = [*clean.experts, *noised.experts]
    top_k = len(clean.experts)
    valid = [True] * top_k + [e not in clean.experts for e in noised.experts]
    active = [e in noised.experts for e in clean.experts] + valid[top_k:]
    norm = [
        float((clean.contribution(e) - noised.contribution(e)).norm()) if good else 0.0
        for e, good in zip(expert, valid, strict=True)
    ]
    columns = (
        np.array(expert),
        np.array(valid),
        np.array(active),
        np.array([clean.weight(e) if good else 0.0 for e, good in zip(expert, valid, strict=True)]),
        np.array([noised.weight(e) if good else 0.0 for e, good in zip(expert, valid, strict=True)]),
        np.array(norm),
        clean.logits.numpy(),
        noised.logits.numpy(),
    )
    return LayerRouting(*(column.reshape(1, 1, column.size) for column in columns))
