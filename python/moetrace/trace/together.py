"""Several kinds of trace in one pass: what shares its clean and noised runs is run together.

The results are those of the single calls; only the passes are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import Unpack

from moetrace import coalition
from moetrace.engines.job import Patch, Sweep
from moetrace.models.anatomy import find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.expert_name import ExpertLike, NeverActiveError
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace
from moetrace.results.matched import SITES, MatchedTrace
from moetrace.trace.coalitions import coalition_trace_of, wanted_of
from moetrace.trace.experts import expert_layers_of, expert_trace_of
from moetrace.trace.layers import layer_trace_of
from moetrace.trace.matched import check_expert, matched_patches, matched_trace_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.session import trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet

LARGEST_GAME = 8  # routed experts of which all subsets are patched
SAMPLED_ORDERS = 16  # of more: each costs a patch for every expert


@dataclass(frozen=True)
class Around:
    """What :func:`trace_around` gives. ``matched``: None where the star is clean-active beside no other."""

    matched: MatchedTrace | None
    coalitions: CoalitionTrace
    shapley: CoalitionTrace | None


@shows_options
def trace_sweep(
    model: torch.nn.Module, cases: Sequence[Case] | CaseSet, **options: Unpack[TraceOptions]
) -> tuple[LayerTrace, ExpertTrace | None]:
    """:func:`moetrace.trace_layers` and, of every layer, :func:`moetrace.trace_experts`, in one pass.

    >>> layers, experts = trace_sweep(model, usable, out="runs/sweep")

    None in place of experts for a model without routed ones. ``out`` holds the parts alone: save the results
    elsewhere. Errors: as the two.
    """
    common = checked(dict(options), trace_sweep)
    anatomy = find_anatomy(model)
    layers = anatomy.resolve_layers(None)
    routed = expert_layers_of(anatomy, None) if anatomy.sparse_layers else ()
    patches: list[Patch] = [*(Patch.block(layer) for layer in layers), Patch.null(min(layers))]
    sweeps = [Sweep(layer, top_k_of(anatomy.config), False) for layer in routed]
    session = trace(model, cases, patches, sweeps=sweeps, anatomy=anatomy, what="sweep", **common)
    return layer_trace_of(session, layers), expert_trace_of(session, routed, False) if routed else None


@shows_options
def trace_around(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    star: ExpertLike,
    *,
    shapley: bool = True,
    seed: int = 0,
    **options: Unpack[TraceOptions],
) -> Around:
    """What is held against one expert, in one pass: its matched control and its layer's coalitions.

    >>> around = trace_around(model, validation, "L44E069")
    >>> around.matched.table(), around.coalitions.summary(), around.shapley.shapley()

    ``shapley``: patch all subsets of the clean-routed experts, or, where they are more than 255, those of
    sampled orders. Errors: as trace_matched and trace_coalitions.
    """
    common = checked(dict(options), trace_around)
    anatomy = find_anatomy(model)
    chosen = check_expert(anatomy, star)
    game = "all" if top_k_of(anatomy.config) <= LARGEST_GAME else "sampled"
    asked: list[tuple[str, ...] | str] = [("clean", "union"), *([game] if shapley else [])]
    wanted = [
        wanted_of(anatomy, chosen.layer, sets, SAMPLED_ORDERS, "clean", coalition.LIMIT, seed)
        for sets in asked
    ]
    matched = matched_patches(chosen)
    patches = [*matched, *(patch for own in wanted for patch in own.patches), Patch.null(chosen.layer)]
    session = trace(
        model, cases, patches, anatomy=anatomy, what="around", details={"star": str(chosen)}, **common
    )
    null, found, begin = len(patches) - 1, [], len(SITES)
    for own in wanted:
        columns = [*range(begin, begin + len(own.patches)), null]
        found.append(coalition_trace_of(session.only(columns), chosen.layer, own))
        begin += len(own.patches)
    try:
        pairs = matched_trace_of(session.only([*range(len(SITES)), null]), chosen)
    except NeverActiveError:
        pairs = None
    return Around(pairs, found[0], found[1] if shapley else None)
