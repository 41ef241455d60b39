"""The curves of a knock-out that doesn't know its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moetrace.cases import CaseSet, as_case_set
from moetrace.effects import SHARES
from moetrace.engines.places import NAMES, Position, Positions, as_positions, name_of
from moetrace.errors import ArgumentError
from moetrace.metrics import METRICS, Metric, MetricLike, as_metrics
from moetrace.metrics import Asked as AskedMetrics
from moetrace.models.anatomy import find_anatomy
from moetrace.results.by_metric import MetricTraces
from moetrace.results.knockout import KnockoutTrace
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.trace.knockout_call import Asked, Call, Wanted
from moetrace.trace.provenance import model_facts
from moetrace.trace.set_runs import runner_of

if TYPE_CHECKING:
    from moetrace.cases import Case


def knockout_curves(
    trace: KnockoutTrace,
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    n: int = 8,
    *,
    metric: MetricLike | None = None,
    by: str = "effect",
    draws: int = 3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    out: str | Path | None = None,
    reference: Sequence[Case] | CaseSet | None = None,
    position: Position | None = None,
) -> KnockoutCurves:
    """:meth:`KnockoutTrace.greedy` of a trace that doesn't know its model: it was loaded, or joined.

    >>> mt.knockout_curves(mt.load("runs/knockout"), model, cases, n=8).plot()

    ``cases``: at least those of the trace. ``reference``: as in trace_knockout. ``position``: that of the
    trace, needed where it is a function, which isn't saved. The other arguments are those
    of :meth:`KnockoutTrace.greedy`. Errors: ArgumentError where the model or a case isn't that of the trace,
    for arguments in another order, and for a trace that was measured by a function without ``metric``.
    """
    _refuse_other_order(trace, model)
    own = _metric_of(trace, metric)
    anatomy = find_anatomy(model)
    told, facts = trace.provenance, model_facts(anatomy.model)
    if facts["weights"] != told["model"]["weights"]:
        raise ArgumentError("the model isn't the one that was traced: its weights are others; give that one")
    case_set = as_case_set(cases)
    known = {case.case_id for case in case_set}
    missing = [own for own in trace.cases.case_id.tolist() if own not in known]
    if missing:
        raise ArgumentError(f"cases lacks {len(missing)} of the trace: ids {missing[:20]}; give all of them")
    others = case_set if reference is None else as_case_set(reference)
    if told["reference"] is not None and told["reference"] != others.fingerprint():
        raise ArgumentError(
            "the reference set isn't that of the trace; give it as reference=, or the same cases"
        )
    common = {
        "metric": AskedMetrics((own,)),
        "position": _position_of(told["position"], position),
        "readout": told["readout"],
        "compute_dtype": told["compute_dtype"],
    }
    asked = Asked(told["ablation"], told["seed"] or 0)
    call = Call(case_set, others, Wanted(trace.layers, tuple(trace.experts)), asked, common)
    runner = runner_of(anatomy, call, own)
    return trace.curves(runner, n, metric, by=by, draws=draws, shares=shares, seed=seed, out=out)


def _refuse_other_order(trace: Any, model: Any) -> None:
    """ArgumentError where the arguments aren't a trace and a model, as where they stand in another order."""
    order = "knockout_curves(trace, model, cases, n=8)"
    if isinstance(trace, MetricTraces) and all(isinstance(own, KnockoutTrace) for own in trace.values()):
        names = ", ".join(map(repr, trace))
        raise ArgumentError(
            f"trace holds the results of several metrics ({names}); expected one of them, which ranks the "
            f"experts: {order} with trace=traces[{trace.metrics[0]!r}], and metric=[...] for several curves"
        )
    if not isinstance(trace, KnockoutTrace):
        other = " (the second argument is one)" if isinstance(model, KnockoutTrace) else ""
        raise ArgumentError(
            f"trace is a {type(trace).__name__}; expected what trace_knockout gives{other}. The order is "
            f"{order}"
        )
    if not isinstance(model, torch.nn.Module):
        raise ArgumentError(
            f"model is a {type(model).__name__}; expected the model that was traced. The order is {order}"
        )


def _position_of(told: str | int, given: Position | None) -> Positions:
    """The trace's position; of a function the one that has its name."""
    saved = told in NAMES or isinstance(told, int)
    if given is None and not saved:
        raise ArgumentError(
            f"the trace's position is a function, {told!r}, which a saved trace doesn't hold; give it as "
            "position="
        )
    found = as_positions(told if given is None else given)
    if given is not None and str(name_of(given)) != str(told):
        raise ArgumentError(
            f"position is {name_of(given)!r} and the trace's is {told!r}; expected the same, or none"
        )
    return found


def _metric_of(trace: KnockoutTrace, metric: MetricLike | None) -> Metric:
    """What runs are read off by unless ``metric`` says otherwise: the trace's own."""
    if trace.metric in METRICS:
        return METRICS[trace.metric]
    if metric is None:
        raise ArgumentError(
            f"the trace was measured by a function, {trace.metric!r}, which a saved trace doesn't hold; give "
            "metric=, that function or another metric"
        )
    return as_metrics(metric).metrics[0]
