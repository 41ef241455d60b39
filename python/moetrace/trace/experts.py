"""The expert sweep: every routed expert of one layer, of some, or of all, in the pass of the layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace.engines.experts import top_k_of
from moetrace.engines.patches import ExpertPatch, NullPatch, Patch
from moetrace.errors import ArgumentError, LayoutError
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.experts import ExpertTrace
from moetrace.trace.options import TraceOptions, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


@shows_options
def trace_experts(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    layer: int | Sequence[int] | None = None,
    *,
    layers: int | Sequence[int] | None = None,
    union: bool = False,
    **options: Unpack[TraceOptions],
) -> ExpertTrace:
    """Patch each clean-active expert's clean-minus-noised update into the noised run (section 3.4).

    >>> experts = mt.trace_experts(model, discovery, layer=layers.best)
    >>> star = experts.select(min_active=0.5)
    >>> everywhere = mt.trace_experts(model, discovery)       # every expert of every layer, one pass

    ``layer`` (or ``layers``): one, several, or None for every layer with experts. ``union``: also patch the
    experts that only the noised run routes to; they show in ``.rows``, while ``.effects`` keeps to
    clean-active experts.
    ``options``: the common arguments of :func:`moetrace.trace_layers`.

    An expert's contribution c_e is the ablation difference under fixed routing (equation 5), its patch vector
    delta_e = c_e(clean) - c_e(noised) (equation 6). An expert that isn't clean-active in a case has rescue
    exactly 0 there, and the row counts. Errors: as trace_layers; LayerRangeError for a layer without experts
    that can be traced one by one; ContributionError where the contributions don't sum to the block's routed
    output.
    """
    anatomy = find_anatomy(model)
    if layer is not None and layers is not None:
        raise ArgumentError("both layer and layers are given; expected one of them")
    chosen = expert_layers_of(anatomy, layers if layer is None else layer)
    places = top_k_of(anatomy.config) * (2 if union else 1)
    patches: list[Patch] = []
    for index in chosen:
        patches += [ExpertPatch(index, "place", place=place) for place in range(places)]
    patches.append(NullPatch(min(chosen)))
    details = {"union": union}
    session = trace(model, cases, patches, anatomy=anatomy, what="experts", details=details, **options)
    result = _result(session, chosen, places)
    if options.get("out") is not None:
        result.save(options["out"])  # type: ignore[arg-type]
    return result


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


def _result(session: Session, layers: tuple[int, ...], places: int) -> ExpertTrace:
    anatomy = session.job.anatomy
    sites, columns = [], []
    for rank, layer in enumerate(layers):
        count = expert_count(anatomy, layer)
        sites.append(pd.DataFrame({"layer": layer, "expert": np.arange(count)}))
        columns.append(_layer_arrays(session, layer, count, slice(rank * places, (rank + 1) * places)))
    names = [name for name in columns[0].names() if all(name in column.names() for column in columns)]
    arrays = ExpertArrays(**{n: np.concatenate([getattr(c, n) for c in columns], axis=1) for n in names})
    return ExpertTrace(
        case_table(session),
        pd.concat(sites, ignore_index=True),
        arrays,
        session.failed,
        provenance(session, layers),
    )


def _layer_arrays(session: Session, layer: int, count: int, patches: slice) -> ExpertArrays:
    """From places in the router's order to experts; averaged over draws."""
    outcome, routing = session.outcome, session.outcome.routing[layer]
    cases, draws, _ = routing.expert.shape
    places = patches.stop - patches.start
    rescue = outcome.patched[:, patches] - outcome.noised[:, None, :]  # (cases, places, draws)

    def scatter(values: np.ndarray, where: np.ndarray, width: int) -> np.ndarray:
        """Mean over draws of ``values`` (cases, draws, width) at their experts, 0 elsewhere."""
        grid = np.zeros((cases, count))
        case, draw, place = np.nonzero(where[..., :width])
        np.add.at(grid, (case, routing.expert[case, draw, place]), values[case, draw, place] / draws)
        return grid

    clean = routing.valid.copy()
    clean[..., routing.top_k :] = False
    patched = routing.valid.copy()
    patched[..., places:] = False
    every = routing.expert.shape[-1]
    found = scatter(rescue.transpose(0, 2, 1), patched, places)
    was_patched = scatter(np.ones_like(routing.norm), patched, every) > 0
    found[~was_patched] = 0.0
    return ExpertArrays(
        clean_active=scatter(np.ones_like(routing.norm), clean, every) > 0,
        noised_active=scatter(np.ones_like(routing.norm), routing.noised_active & routing.valid, every) > 0,
        clean_weight=scatter(routing.clean_weight, routing.valid, every),
        noised_weight=scatter(routing.noised_weight, routing.valid, every),
        delta_norm=scatter(routing.norm, patched, every),
        patched=outcome.noised.mean(axis=1)[:, None] + found,
        rescue=found,
        patched_active=was_patched if places > routing.top_k else None,
        clean_logit=_logits(routing.clean_logit, count),
        noised_logit=_logits(routing.noised_logit, count),
    )


def _logits(values: np.ndarray, count: int) -> np.ndarray | None:
    """Mean over draws (cases, experts); None where the router wasn't understood."""
    return values.mean(axis=1) if values.shape[-1] == count else None
