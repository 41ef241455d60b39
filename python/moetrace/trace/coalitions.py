"""Coalitions of routed experts: several patch vectors added together (appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace import coalition
from moetrace._native import _core
from moetrace.arguments import as_choice, as_count, as_integer, as_list, as_seed, nearest, shown
from moetrace.effects import rescue
from moetrace.engines.job import Patch
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.ranks import on_all_ranks
from moetrace.results.coalitions import CoalitionTrace
from moetrace.trace.experts import expert_layers_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet

EXPECTED = "'clean', 'union', both, 'all', 'sampled', or lists of experts"
NAMED = {"clean": _core.Chosen.CLEAN, "union": _core.Chosen.UNION}
MOST_PERMUTATIONS = 4096
Sets = str | Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Wanted:
    """What to patch: a label and a patch for each coalition, and which game they are the values of."""

    labels: list[str]
    patches: list[Patch]
    masks: list[int]  # of the slots; 0 where the coalition isn't one of slots
    players: int  # slots that the game is over; 0 where there is no game
    orders: np.ndarray | None  # sampled permutations of the slots


@on_all_ranks
@shows_options
def trace_coalitions(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    layer: int,
    sets: Sets = ("clean", "union"),
    *,
    n_permutations: int = 64,
    sampled_players: str = "clean",
    limit: int = coalition.LIMIT,
    seed: int = 0,
    **options: Unpack[TraceOptions],
) -> CoalitionTrace:
    """Patch several experts of a layer together (appendix G, equations 14 and 15).

    >>> coal = mt.trace_coalitions(model, validation, layer=19)
    >>> coal.summary()                                              # Table 16
    >>> mt.trace_coalitions(model, validation, layer=19, sets="all").shapley()

    ``sets``: "clean" (all clean-routed experts), "union" (of clean and noised routing), or both;
    "all": every subset of each case's clean-routed experts, 2^k - 1 patches, from which exact Shapley and
    Banzhaf values and interactions follow; "sampled": the prefixes of ``n_permutations`` random orders of the
    clean-routed experts (``sampled_players="union"``: of the routing union), from which Shapley values follow
    with standard errors; or lists of expert indices, such as [[6], [6, 2]], each patched where either run
    routes to them. All are forks of one pass. ``limit``: the most subsets of "all".

    Errors: as trace_experts; ArgumentError for unknown or repeated experts, and for more subsets than the
    limit (the message gives the count and the sampled alternative).
    """
    common = checked(dict(options), trace_coalitions)
    anatomy = find_anatomy(model)
    (chosen,) = expert_layers_of(anatomy, as_integer(layer, "layer", "one layer's number"))
    seed, limit = as_seed(seed), as_count(limit, "limit")
    n_permutations = as_count(n_permutations, "n_permutations", 1, MOST_PERMUTATIONS)
    sampled_players = as_choice(sampled_players, "sampled_players", tuple(NAMED))
    wanted = wanted_of(anatomy, chosen, sets, n_permutations, sampled_players, limit, seed)
    patches: list[Patch] = [*wanted.patches, Patch.null(chosen)]
    details = {"sets": wanted.labels, "seed": seed}
    session = trace(
        model, cases, patches, anatomy=anatomy, what="coalitions", details=details, direct=False, **common
    )
    return finished(session, lambda own: coalition_trace_of(own, chosen, wanted), common["out"])


def wanted_of(
    anatomy: Anatomy, layer: int, sets: Any, n_permutations: int, players: str, limit: int, seed: int
) -> Wanted:
    """The coalitions of a layer that a user asks for by ``sets``."""
    top_k = top_k_of(anatomy.config)
    if isinstance(sets, str) and sets == "all":
        coalition.check_count(top_k, limit)
        return _subsets(layer, [int(mask) for mask in coalition.subsets(top_k)], top_k, None)
    if isinstance(sets, str) and sets == "sampled":
        count = top_k * (2 if players == "union" else 1)
        orders = coalition.sample_permutations(count, n_permutations, seed, layer)
        masks = sorted(
            {int(m) for m in coalition.prefix_coalitions(orders)} - {0} | {1 << j for j in range(count)}
        )
        return _subsets(layer, masks, count, orders)
    named: list[Any] = [sets] if isinstance(sets, str) else as_list(sets, "sets", EXPECTED)
    if named and all(isinstance(name, str) for name in named):
        unknown = [name for name in named if name not in NAMED]
        if unknown or len(set(named)) != len(named):
            near = nearest(next(iter(unknown), None), [*NAMED, "all", "sampled"])
            raise ArgumentError(f"sets is {shown(sets)}{near}; expected {EXPECTED}")
        patches = [Patch.of_experts(layer, NAMED[name]) for name in named]
        return Wanted(named, patches, [0] * len(named), 0, None)
    lists = coalition.checked_sets(named, expert_count(anatomy, layer))
    labels = ["+".join(f"E{expert:03d}" for expert in experts) for experts in lists]
    patches = [Patch.of_experts(layer, _core.Chosen.EXPERTS, experts=list(experts)) for experts in lists]
    return Wanted(labels, patches, [0] * len(lists), 0, None)


def _subsets(layer: int, masks: list[int], players: int, orders: np.ndarray | None) -> Wanted:
    labels = ["slots " + "+".join(str(j) for j in range(players) if mask >> j & 1) for mask in masks]
    patches = [Patch.of_experts(layer, _core.Chosen.SUBSET, subset=mask) for mask in masks]
    return Wanted(labels, patches, masks, players, orders)


def coalition_trace_of(session: Session, layer: int, wanted: Wanted) -> CoalitionTrace:
    """The first patches of the session are the coalitions', the last is the null patch."""
    outcome, routing = session.outcome, session.outcome.routing[layer, 0]
    each = rescue(outcome.patched, outcome.noised)[:, :-1]
    cases = case_table(session)
    # Of the first draw: the clean slots are the same in every draw.
    cases["experts"] = [line.tolist() for line in routing.routed[:, 0]]
    cases["valid"] = [line.tolist() for line in routing.valid[:, 0]]
    sites = pd.DataFrame({"layer": layer, "coalition": wanted.labels})
    facts = provenance(session, (layer,)) | {
        "masks": wanted.masks,
        "players": wanted.players,
        "orders": None if wanted.orders is None else wanted.orders.tolist(),
    }
    patched = outcome.patched[:, :-1].mean(axis=2)
    return CoalitionTrace(cases, sites, patched, each.mean(axis=2), session.failed, facts).with_draws(each)
