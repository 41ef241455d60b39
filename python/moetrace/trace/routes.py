"""What later routers carry of a rescue: every patch with routing free and with routing fixed, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_list, shown
from moetrace.cases import as_case_set
from moetrace.effects import rescue
from moetrace.engines.job import Patch
from moetrace.engines.places import is_map, places_of
from moetrace.errors import ArgumentError, LayoutError
from moetrace.models.anatomy import Anatomy, find_anatomy
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_name import Expert, ExpertLike
from moetrace.results.routes import RouteTrace
from moetrace.trace.matched import check_expert
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


@on_all_ranks
@partial(shows_options, without=("mode",))
def trace_routes(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    layers: int | Sequence[int] | None = None,
    *,
    experts: Sequence[ExpertLike] | None = None,
    **options: Unpack[TraceOptions],
) -> RouteTrace:
    """Rescue with later routers free and with their choice fixed as in the noised run.

    >>> routes = mt.trace_routes(model, cases)                        # the block of every layer
    >>> mt.trace_routes(model, cases, experts=["L44E069", (45, 3)])   # these experts alone
    >>> routes.rows[["layer", "patch", "rescue", "fixed", "routing"]]

    A patch changes what later layers see, and so which experts their routers choose and with which weights.
    Each patch is run twice: free, which is the rescue of equation 4; and fixed, where at the patched token
    and behind it every later layer uses the experts and weights of the noised run. ``routing`` is the
    difference.

    ``layers``: whose blocks are patched; None for every layer with experts, or none where ``experts`` are
    given: Experts, names or pairs (layer, expert), each patched by itself with its patch vector (equation 6);
    one that isn't clean-active in a case has 0 there. ``position``: one place, of one token or of several
    that are patched together ("subject", a function); fixed routing is from the first of them on.
    ``options``: the common arguments of :func:`moetrace.trace_layers` but ``mode``: clean values go into the
    noised run.

    Errors: as trace_experts; ExpertRangeError for an expert that doesn't exist; LayoutError where a later
    layer's experts are called in a way that isn't understood, so that its routing can't be fixed.
    """
    common = checked(dict(options), trace_routes)
    anatomy = find_anatomy(model)
    if not anatomy.sparse_layers:
        raise LayoutError(
            f"{type(anatomy.model).__name__} has no layers with routed experts, whose routing could carry "
            "anything; trace_layers serves dense models"
        )
    given = [] if experts is None else as_list(experts, "experts", "a list of experts")
    if experts is not None and not given:
        raise ArgumentError("experts is empty; expected one or more, or None for the blocks of layers")
    named = [check_expert(anatomy, expert) for expert in given]
    if len(set(named)) != len(named):
        raise ArgumentError("experts has one twice; expected each expert once")
    chosen = () if layers is None and named else anatomy.resolve_layers(layers)
    lowest = min([*chosen, *(expert.layer for expert in named)])
    refuse_unknown_routing(anatomy, lowest)
    free: list[Patch] = [Patch.block(layer) for layer in chosen]
    free += [
        Patch.of_experts(expert.layer, _core.Chosen.EXPERTS, experts=[expert.expert]) for expert in named
    ]
    patches = [*free, *(patch.with_fixed_routing() for patch in free), Patch.null(lowest)]
    details = {"experts": [str(expert) for expert in named]}
    case_set, position = as_case_set(cases), common.pop("position")
    if is_map(position):
        raise ArgumentError(
            f"position is {shown(position)}; expected one place, of one token or of several together: call "
            "trace_routes once for each position"
        )
    session = trace(
        model, case_set, patches, position=places_of(position, case_set), anatomy=anatomy, what="routes",
        details=details, direct=False, **common,
    )  # fmt: skip
    return finished(session, lambda own: _result(own, chosen, named), common["out"])


def refuse_unknown_routing(anatomy: Anatomy, lowest: int) -> None:
    """LayoutError for a layer behind the lowest patched one whose routing can't be held."""
    for site in anatomy.sites:
        if site is not None and site.sparse and site.experts is None and site.layer > lowest:
            raise LayoutError(
                f"layer {site.layer} of {type(anatomy.model).__name__} has experts in a layout that isn't "
                f"understood ({site.path}), so that its routing can't be fixed; trace_layers serves the model"
            )


def _result(session: Session, layers: Sequence[int], experts: Sequence[Expert]) -> RouteTrace:
    """The session's patches are free ones, then the same fixed, then the null patch."""
    outcome, count = session.outcome, len(layers) + len(experts)
    each = rescue(outcome.patched, outcome.noised)
    for index, expert in enumerate(experts):  # exactly 0 where it isn't clean-active, as trace_experts counts
        active = outcome.routing[expert.layer, 0].clean_active[:, :, expert.expert]
        for column in (len(layers) + index, count + len(layers) + index):
            each[:, column] = np.where(active, each[:, column], 0.0)
    effects = each.mean(axis=2)
    sites = [(layer, "block") for layer in layers] + [(e.layer, str(e)) for e in experts]
    return RouteTrace(
        case_table(session),
        pd.DataFrame(sites, columns=["layer", "patch"]),
        outcome.noised.mean(axis=1)[:, None] + effects[:, :count],
        effects[:, :count],
        effects[:, count : 2 * count],
        session.failed,
        provenance(session, tuple(sorted({layer for layer, _ in sites}))),
    ).with_draws(each[:, :count])
