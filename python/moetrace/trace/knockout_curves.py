"""Runs of sets of experts switched off together, for a knock-out's curves."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from moetrace.cases import CaseSet, as_case_set
from moetrace.effects import SHARES
from moetrace.engines.clean_contributions import ByLayer, capture
from moetrace.engines.knockout import Ablation, Kind
from moetrace.engines.places import as_positions
from moetrace.engines.switches import Off, switch_off
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.models.float32 import computing_in
from moetrace.models.state import prepared
from moetrace.results.expert_arrays import Bools
from moetrace.results.knockout import KnockoutTrace, Runner
from moetrace.results.knockout_curves import CurveRuns, KnockoutCurves
from moetrace.trace.knockout_call import Asked, Call, Wanted, job_of, masks_of, tokens_of
from moetrace.trace.provenance import model_facts

if TYPE_CHECKING:
    from moetrace.cases import Case


def runner_of(anatomy: Anatomy, call: Call) -> Runner:
    """Runs sets of the call's experts switched off together; it doesn't keep the model alive."""
    model = weakref.ref(anatomy.model)

    def run(sets: Bools, case_ids: Sequence[int], kind: Kind | None = None) -> CurveRuns:
        there = model()
        if there is None:
            raise ArgumentError(
                "the model that was traced is gone; use mt.knockout_curves(trace, model, cases, n)"
            )
        by_id = {case.case_id: case for case in call.cases}
        own = call if kind is None else replace(call, asked=replace(call.asked, kind=kind))
        return _run_sets(find_anatomy(there), own, sets, [by_id[case_id] for case_id in case_ids])

    return run


def _run_sets(anatomy: Anatomy, call: Call, sets: Bools, cases: Sequence[Case]) -> CurveRuns:
    sites = call.wanted.sites(anatomy)
    if call.asked.kind == "reroute":
        _refuse_too_few(anatomy, sites, sets)
    with prepared(anatomy.model), computing_in(anatomy, call.common["compute_dtype"]):
        job = job_of(anatomy, call)
        others: Mapping[int, ByLayer] = {}
        if call.asked.kind in ("mean", "resample"):
            others = capture(job, call.reference, call.wanted.layers, call.asked.everywhere)
        tokens, asked = tokens_of(job, call.asked), call.asked
        ablation = Ablation(asked.kind, tokens, asked.everywhere, asked.seed, {}, others)
        job = replace(job, ablation=ablation)
        masks = [
            masks_of(anatomy, [site for site, off in zip(sites, own, strict=True) if off]) for own in sets
        ]
        found = switch_off(job, [Off(case, own) for own in masks for case in cases])
    shape = (len(sets), len(cases))
    first = found.top.reshape(shape) == np.array([case.true_id for case in cases])
    return CurveRuns(found.differences.reshape(shape), first)


def _refuse_too_few(anatomy: Anatomy, sites: Sequence[tuple[int, int]], sets: Bools) -> None:
    """ArgumentError where a router is left with fewer experts than it takes."""
    layers = np.array([layer for layer, _ in sites])
    for layer in np.unique(layers).tolist():
        off = int(sets[:, layers == layer].sum(axis=1).max(initial=0))
        left, top_k = expert_count(anatomy, layer) - off, top_k_of(anatomy.config)
        if left < top_k:
            raise ArgumentError(
                f"with ablation 'reroute' {off} experts of layer {layer} would be off together, and its "
                f"router, which takes {top_k}, could choose among {left}; give a smaller n, or trace with "
                "ablation='zero'"
            )


def knockout_curves(
    trace: KnockoutTrace,
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    n: int = 8,
    *,
    by: str = "effect",
    draws: int = 3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    reference: Sequence[Case] | CaseSet | None = None,
) -> KnockoutCurves:
    """:meth:`KnockoutTrace.greedy` of a trace that doesn't know its model: it was loaded, or joined.

    >>> mt.knockout_curves(mt.load("runs/knockout"), model, cases, n=8).plot()

    ``cases``: at least those of the trace. ``reference``: as in trace_knockout. The other arguments are those
    of :meth:`KnockoutTrace.greedy`. Errors: ArgumentError where the model or a case isn't that of the trace.
    """
    if not isinstance(trace, KnockoutTrace):
        raise ArgumentError(f"trace is a {type(trace).__name__}; expected what trace_knockout gives")
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
    position = "last" if told["everywhere"] else as_positions(told["position"])
    common = {"position": position, "readout": told["readout"], "compute_dtype": told["compute_dtype"]}
    asked = Asked(told["ablation"], told["everywhere"], told["seed"] or 0)
    call = Call(case_set, others, Wanted(trace.layers, tuple(trace.experts)), asked, common)
    return trace.curves(runner_of(anatomy, call), n, by=by, draws=draws, shares=shares, seed=seed)
