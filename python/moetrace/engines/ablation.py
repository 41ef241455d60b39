"""Contributions by ablation (equation 5), for the reference engine.

The block is run again on the input that it had, with one expert's weight set to zero at the patched token:
no rerouting, no renormalising, and whatever the block does after its experts is done as it does it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.job import Patch
from moetrace.engines.outcome import LayerRouting
from moetrace.errors import LayoutError
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.experts import routed_call
from moetrace.models.stacked import weighed_inputs

SWEPT = ("patched", "direct", "direct_linear")  # tables of what a sweep's runs gave


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
    experts = expert_count(anatomy, layer)
    said: list[torch.Tensor] = []
    module = site.experts
    assert module is not None
    where = f"layer {site.layer}"
    routed: list[tuple[torch.Tensor, torch.Tensor]] = []
    weighed = False  # whether the router weighs its experts' inputs, and gives those scores before its logits

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal weighed
        inputs = weighed_inputs(args, kwargs, experts)
        if inputs is not None:
            weighed = True
            scores = _scores_of(said, inputs[:, position].any(-1), position, where)
            index = scores.argsort(descending=True, stable=True)[: int(scores.count_nonzero())]
            routed.append((index, scores[index]))
            return
        _, index, weights = routed_call(module, args, kwargs, where)
        routed.append((index[position].clone(), weights[position].clone()))

    def listen(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        for value in output if isinstance(output, (tuple, list)) else (output,):
            floating = isinstance(value, torch.Tensor) and value.is_floating_point()
            if floating and value.dim() >= 2 and value.shape[-1] == experts:
                said.append(value.reshape(-1, experts))

    def output_without(place: int | None) -> torch.Tensor:
        def silence(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            inputs = weighed_inputs(args, kwargs, experts)
            if inputs is not None:
                assert place is not None
                inputs = inputs.clone()
                inputs[routed[0][0][place], position] = 0.0
                return (inputs.flatten(0, 1),), {}
            hidden, index, weights = routed_call(module, args, kwargs, where)
            weights = weights.clone()
            weights[position, place] = 0.0
            return (hidden, index, weights), {}

        with _core.HookScope() as scope:
            scope.before(module, look if place is None else silence)
            if place is None and any(site.router is inner for inner in site.block.modules()):
                scope.behind(site.router, listen)
            output = site.block(*call.args, **call.kwargs)
        value: torch.Tensor = output[0] if isinstance(output, tuple) else output
        flat = value.reshape(-1, value.shape[-1])[position]
        return flat.to(torch.float64)

    whole = output_without(None)
    index, weights = routed[0]
    if len(set(index.tolist())) < len(index):
        raise LayoutError(
            f"{where}: {type(module).__name__} is given one expert twice for a token (experts "
            f"{index.tolist()}), so that an expert's weight isn't one number; trace_layers serves the model"
        )
    assert call.output is not None
    rows = call.output.reshape(-1, call.output.shape[-1]).shape[0]
    logits = torch.zeros(1, 0, dtype=torch.float64)
    own = said[-1:] if weighed else said[:1]
    if own and len(own[0]) == rows:
        logits = own[0][position : position + 1].to("cpu", torch.float64)
    values = [whole - output_without(place) for place in range(len(index))]
    return Ablated([int(e) for e in index], [float(w) for w in weights], values, logits)


def _scores_of(said: list[torch.Tensor], active: torch.Tensor, position: int, where: str) -> torch.Tensor:
    """A token's score of every expert, zero for those that aren't ``active``, among what the router gave."""
    for values in said:
        if position < len(values) and torch.equal(values[position] != 0, active):
            return values[position].clone()
    raise LayoutError(
        f"{where}: the router gives no scores that are zero for the experts a token isn't routed to, so the "
        "weights of its experts' inputs can't be read; trace_layers serves the model"
    )


@dataclass(frozen=True)
class Token:
    """What the clean and the noised run route one patched token to."""

    clean: Ablated
    noised: Ablated


Experts = Sequence[Token]  # of the tokens that one patch changes together


def clean_of(tokens: Experts) -> list[int]:
    """Clean-routed experts of any of the tokens, in the order of tokens and then of the router."""
    return list(dict.fromkeys(e for token in tokens for e in token.clean.experts))


def union_of(tokens: Experts) -> list[int]:
    """Clean-routed experts, then those that only the noised run routes to."""
    return list(dict.fromkeys([*clean_of(tokens), *(e for token in tokens for e in token.noised.experts)]))


def slots_of(tokens: Experts, most: int, experts: int) -> list[tuple[int, bool]]:
    """The expert of each slot, and whether the slot counts.

    Of one token the clean-routed ones in the router's order, then the noised-routed ones, which count where
    the clean run doesn't have them. Where places have several tokens (``most``), so many slots of either kind
    that those of any case fit.
    """
    clean = clean_of(tokens)
    if most == 1:
        (token,) = tokens
        noised = [(expert, expert not in clean) for expert in token.noised.experts]
        return [*((expert, True) for expert in clean), *noised]
    count = min(experts, most * len(tokens[0].clean.experts))
    found = []
    for own in (clean, [expert for expert in union_of(tokens) if expert not in clean]):
        found += [(expert, True) for expert in own] + [(0, False)] * (count - len(own))
    return found


def patch_vectors(patch: Patch, tokens: Experts, most: int, experts: int) -> list[torch.Tensor]:
    """Of each token the sum of the patch vectors (equation 6) that a patch names in this case (equations 14
    and 15).
    """
    named: Collection[int] = patch.experts
    if patch.chosen is _core.Chosen.SUBSET:
        slots = enumerate(slots_of(tokens, most, experts))
        named = [expert for slot, (expert, counts) in slots if counts and patch.subset >> slot & 1]
    return [_patch_vector(patch, token, named) for token in tokens]


def _patch_vector(patch: Patch, token: Token, named: Collection[int]) -> torch.Tensor:
    clean, noised = token.clean, token.noised
    if patch.chosen in (_core.Chosen.ANCHOR, _core.Chosen.MATCHED):
        return _pair_vector(patch, clean, noised)
    chosen = clean.experts if patch.chosen is _core.Chosen.CLEAN else union_of([token])
    if patch.chosen in (_core.Chosen.EXPERTS, _core.Chosen.SUBSET):
        chosen = [expert for expert in chosen if expert in named]
    nothing = torch.zeros_like(clean.values[0])
    return sum((delta(expert, clean, noised) for expert in chosen), start=nothing)


def delta(expert: int, clean: Ablated, noised: Ablated) -> torch.Tensor:
    """An expert's patch vector (equation 6)."""
    return clean.contribution(expert) - noised.contribution(expert)


def _pair_vector(patch: Patch, clean: Ablated, noised: Ablated) -> torch.Tensor:
    """Anchor or gate-weight-matched control, scaled to the smaller norm where asked for (equation 10)."""
    anchor = patch.experts[0]
    if anchor not in clean.experts:
        return torch.zeros_like(clean.values[0])
    place = _core.matched_control(clean.experts, clean.weights, clean.experts.index(anchor))
    if place < 0:
        return torch.zeros_like(clean.values[0])
    selected, control = (delta(e, clean, noised) for e in (anchor, clean.experts[place]))
    vector = selected if patch.chosen is _core.Chosen.ANCHOR else control
    if not patch.equal_norm or not vector.norm() > 0:
        return vector
    scaled: torch.Tensor = vector * (min(selected.norm(), control.norm()) / vector.norm())
    return scaled


def routing_of(
    tokens: Experts, most: int, experts: int, swept: dict[int, tuple[float, float, float]]
) -> LayerRouting:
    """The same tables that the tree engine gives: one case, one draw, one place.

    ``swept``: by expert of a sweep the run's logit difference, and its direct effect, exact and linear.
    """
    tables = {
        name: np.zeros(experts, dtype=bool if name.endswith("active") else float)
        for name in ("clean_active", "noised_active", "patched_active", "clean_weight", "noised_weight",
                     "delta_norm", *SWEPT)
    }  # fmt: skip
    for name in SWEPT:
        tables[name][:] = np.nan
    for expert in union_of(tokens):
        for token in tokens:
            clean, noised = token.clean, token.noised
            tables["clean_active"][expert] |= expert in clean.experts
            tables["noised_active"][expert] |= expert in noised.experts
            tables["clean_weight"][expert] += clean.weight(expert)
            tables["noised_weight"][expert] += noised.weight(expert)
        norms = [float(delta(expert, token.clean, token.noised).norm()) for token in tokens]
        tables["delta_norm"][expert] = np.linalg.norm(norms)
    for expert, values in swept.items():
        tables["patched_active"][expert] = True
        for name, value in zip(SWEPT, values, strict=True):
            tables[name][expert] = value
    slots = slots_of(tokens, most, experts) if tokens else []
    tables["routed"] = np.array([expert for expert, _ in slots], dtype=int)
    tables["valid"] = np.array([counts for _, counts in slots], dtype=bool)
    unknown = torch.zeros(1, 0, dtype=torch.float64)
    tables["clean_logit"], tables["noised_logit"] = (
        (unknown if token is None else token).numpy()
        for token in ((tokens[-1].clean.logits, tokens[-1].noised.logits) if tokens else (None, None))
    )
    return LayerRouting(**{name: table.reshape(1, 1, table.size) for name, table in tables.items()})
