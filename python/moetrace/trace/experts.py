"""The expert sweep: every routed expert of one layer, of some, or of all, in the pass of the layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace.arguments import as_flag
from moetrace.cases import as_case_set
from moetrace.effects import rescue
from moetrace.engines.job import ORIGINS, Origin, Patch, Sweep
from moetrace.engines.places import Place, is_map, places_of
from moetrace.errors import ArgumentError, LayoutError
from moetrace.metrics import LOGIT_DIFF
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.expert_map import ExpertMap
from moetrace.results.experts import ExpertTrace
from moetrace.trace.maps import map_cases, mapped, null_place, tokens_at
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


@on_all_ranks
@shows_options
def trace_experts(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    layer: int | Sequence[int] | None = None,
    *,
    layers: int | Sequence[int] | None = None,
    union: bool = False,
    **options: Unpack[TraceOptions],
) -> ExpertTrace | ExpertMap:
    """Patch each clean-active expert's clean-minus-noised update into the noised run (section 3.4).

    >>> experts = mt.trace_experts(model, discovery, layer=layers.best)
    >>> star = experts.select(min_active=0.5)
    >>> everywhere = mt.trace_experts(model, discovery)       # every expert of every layer, one pass

    ``layer`` (or ``layers``): one, several, or None for every layer with experts. ``union``: also patch the
    experts that only the noised run routes to; they show in ``.rows``, while ``.effects`` keeps to
    clean-active experts.
    ``options``: the common arguments of :func:`moetrace.trace_layers`. Of ``position="all"`` and lists of
    positions the result is an :class:`ExpertMap`, layer x position x expert. Where a position is several
    tokens ("subject"), an expert's patch vectors are added at each of them by that token's own routing (zero
    where neither run routes it there): it is clean-active where it is at any of them, its weights are sums,
    its delta_norm is over all of them, and its router logits are those of the last.

    An expert's contribution c_e is the ablation difference under fixed routing (equation 5), its patch vector
    delta_e = c_e(clean) - c_e(noised) (equation 6). An expert that isn't clean-active in a case has rescue
    exactly 0 there, and the row counts. With ``mode="noise"`` the vector's negative is added to the clean
    run, and an effect is patched minus clean. ``.direct`` and ``.indirect`` say what of a rescue goes
    straight to the logits and what through later layers: see :class:`ExpertTrace`.

    Errors: as trace_layers; LayerRangeError for a layer without experts that can be traced one by one;
    ContributionError where the contributions don't sum to the block's routed output.
    """
    common = checked(dict(options), trace_experts)
    anatomy = find_anatomy(model)
    union = as_flag(union, "union")
    if layer is not None and layers is not None:
        raise ArgumentError("both layer and layers are given; expected one of them")
    chosen = expert_layers_of(anatomy, layers if layer is None else layer)
    case_set, position = as_case_set(cases), common.pop("position")
    places, origin = places_of(position, case_set), ORIGINS[common["mode"]]
    session = trace(
        model,
        case_set,
        [Patch.null(min(chosen), null_place(places), origin)],
        sweeps=expert_sweeps(anatomy, chosen, places, union, origin),
        position=places,
        anatomy=anatomy,
        what="experts",
        details={"union": union},
        **common,
    )
    made = expert_map_of if is_map(position) else expert_trace_of
    return finished(session, lambda own: made(own, chosen, union), common["out"])


def expert_layers_of(anatomy: Anatomy, layer: int | Sequence[int] | None) -> tuple[int, ...]:
    """Check and complete a user's layers with experts, in ascending order."""
    wanted = anatomy.sparse_layers if layer is None else anatomy.resolve_layers(layer)
    if not wanted:
        raise LayoutError(
            f"{type(anatomy.model).__name__} has no layers with routed experts; trace_layers serves dense "
            "models"
        )
    for index in wanted:
        anatomy.experts(index)
    return tuple(sorted(wanted))


def expert_sweeps(
    anatomy: Anatomy,
    layers: Sequence[int],
    places: Sequence[Place],
    union: bool,
    origin: Origin = Origin.DENOISE,
) -> list[Sweep]:
    """A sweep of every layer at every place: of several tokens, the experts of any of them."""
    top_k, found = top_k_of(anatomy.config), []
    for layer in layers:
        for at in mapped(places):
            most = places[at].most
            slots = top_k if most == 1 else min(top_k * most, expert_count(anatomy, layer))
            found.append(Sweep(layer, slots, union, at, origin, top_k))
    return found


def expert_trace_of(session: Session, layers: tuple[int, ...], union: bool) -> ExpertTrace:
    """What the session's sweeps of these layers found; its last patch is the null patch."""
    where = [(layer, 0) for layer in layers]
    sites, arrays = _arrays_of(session, where, union)
    facts = provenance(session, layers)
    found = ExpertTrace(case_table(session), sites[["layer", "expert"]], arrays, session.failed, facts)
    return found.with_draws(_draws_of(session, where))


def expert_map_of(session: Session, layers: tuple[int, ...], union: bool) -> ExpertMap:
    """The same of sweeps at several places."""
    places = mapped(session.job.places)
    sites, arrays = _arrays_of(session, [(layer, at) for layer in layers for at in places], union)
    sites["position"] = [session.job.places[at].name for at in sites.place]
    tokens = tokens_at(session)[:, sites.place.to_numpy()]
    sites, facts = sites[["layer", "position", "expert"]], provenance(session, layers)
    found = ExpertMap(map_cases(session), sites, arrays, session.failed, facts, tokens)
    each = _draws_of(session, [(layer, at) for layer in layers for at in places])
    return found.with_draws(None if each is None else np.where(tokens[..., None] >= 0, each, np.nan))


def _arrays_of(
    session: Session, where: Sequence[tuple[int, int]], union: bool
) -> tuple[pd.DataFrame, ExpertArrays]:
    """Sites (layer, place, expert) of layers and places one after another, and what was measured there."""
    sites, columns = [], []
    for layer, place in where:
        count = session.outcome.routing[layer, place].clean_active.shape[-1]
        sites.append(pd.DataFrame({"layer": layer, "place": place, "expert": np.arange(count)}))
        columns.append(_layer_arrays(session, layer, place, union))
    names = [name for name in columns[0].names() if all(name in column.names() for column in columns)]
    arrays = ExpertArrays(**{n: np.concatenate([getattr(c, n) for c in columns], axis=1) for n in names})
    return pd.concat(sites, ignore_index=True), arrays


def _draws_of(session: Session, where: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """The effects of single draws (cases, sites, draws), where there are several."""
    if session.job.draws == 1:
        return None
    found: np.ndarray = np.concatenate([_by_draw(session, *at) for at in where], axis=1)
    return found


def _by_draw(session: Session, layer: int, place: int) -> np.ndarray:
    """(cases, experts, draws): rescue of clean-active experts in each draw, 0 for the others."""
    routing = session.outcome.routing[layer, place]
    each = rescue(routing.patched.swapaxes(1, 2), session.outcome.base(session.job))
    active = routing.patched_active & np.any(routing.clean_active, axis=1)[:, None]
    return np.where(active.swapaxes(1, 2), each, 0.0)


def _layer_arrays(session: Session, layer: int, place: int, union: bool) -> ExpertArrays:
    """One layer and place of an outcome, averaged over draws; a draw in which nothing was patched counts with
    0."""
    outcome, routing = session.outcome, session.outcome.routing[layer, place]
    base = outcome.base(session.job)
    each = rescue(routing.patched.swapaxes(1, 2), base).swapaxes(1, 2)  # (cases, draws, experts)
    effects = np.where(routing.patched_active, each, 0.0).mean(axis=1)
    patched = routing.patched_active
    straight = {
        name: np.where(patched, getattr(routing, name), 0.0).mean(axis=1)
        for name in ("direct", "direct_linear")
        if session.metric is LOGIT_DIFF
    }
    return ExpertArrays(
        clean_active=np.any(routing.clean_active, axis=1),
        noised_active=np.any(routing.noised_active, axis=1),
        clean_weight=routing.clean_weight.mean(axis=1),
        noised_weight=routing.noised_weight.mean(axis=1),
        delta_norm=np.where(patched, routing.delta_norm, 0.0).mean(axis=1),
        patched=base.mean(axis=1)[:, None] + effects,
        rescue=effects,
        **straight,
        patched_active=np.any(patched, axis=1) if union else None,
        clean_logit=_logits(routing.clean_logit, patched.shape[-1]),
        noised_logit=_logits(routing.noised_logit, patched.shape[-1]),
    )


def _logits(values: np.ndarray, count: int) -> np.ndarray | None:
    """Mean over draws (cases, experts); None where the router wasn't understood."""
    return values.mean(axis=1) if values.shape[-1] == count else None
