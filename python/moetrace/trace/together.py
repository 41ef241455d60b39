"""All that is held against one expert, in one pass: it shares the clean and the noised runs.

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
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.ranks import on_all_ranks
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.expert_name import ExpertLike, NeverActiveError
from moetrace.results.experts import ExpertTrace
from moetrace.results.matched import SITES, MatchedTrace
from moetrace.trace.coalitions import coalition_trace_of, wanted_of
from moetrace.trace.experts import expert_trace_of
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

    experts: ExpertTrace
    matched: MatchedTrace | None
    coalitions: CoalitionTrace
    shapley: CoalitionTrace | None


@on_all_ranks
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
    """The experts of a star's layer, its matched control, and the layer's coalitions, in one pass.

    >>> around = trace_around(model, validation, "L44E069")
    >>> around.experts.specificity(star), around.matched.table()
    >>> around.coalitions.summary(), around.shapley.shapley()

    ``shapley``: patch all subsets of the clean-routed experts, or, where they are more than 255, those of
    sampled orders. ``seed``: of these. ``out`` holds the parts alone: save the results elsewhere. Errors: as
    trace_matched and trace_coalitions.
    """
    common = checked(dict(options), trace_around)
    anatomy = find_anatomy(model)
    chosen = check_expert(anatomy, star)
    game = "all" if top_k_of(anatomy.config) <= LARGEST_GAME else "sampled"
    asked: list[tuple[str, ...] | str] = [("clean", "union"), *([game] if shapley else [])]
    limits = (SAMPLED_ORDERS, "clean", coalition.LIMIT)
    wanted = [wanted_of(anatomy, chosen.layer, sets, *limits, seed) for sets in asked]
    matched = matched_patches(chosen)
    patches = [*matched, *(patch for own in wanted for patch in own.patches), Patch.null(chosen.layer)]
    session = trace(
        model,
        cases,
        patches,
        sweeps=[Sweep(chosen.layer, top_k_of(anatomy.config), False)],
        anatomy=anatomy,
        what="around",
        details={"star": str(chosen), "seed": seed},
        **common,
    )
    if session.asked.several:
        raise ArgumentError(f"metric is {session.asked.names}; expected one metric here: a trace for each")
    null, found, begin = len(patches) - 1, [], len(SITES)
    for own in wanted:
        columns = [*range(begin, begin + len(own.patches)), null]
        found.append(coalition_trace_of(session.only(columns), chosen.layer, own))
        begin += len(own.patches)
    try:
        pairs = matched_trace_of(session.only([*range(len(SITES)), null]), chosen)
    except NeverActiveError:
        pairs = None
    experts = expert_trace_of(session, (chosen.layer,), False)
    return Around(experts, pairs, found[0], found[1] if shapley else None)
