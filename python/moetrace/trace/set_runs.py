"""Runs of sets of experts switched off together, for a knock-out's curves."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.engines.clean_contributions import ByLayer, capture
from moetrace.engines.job import Job
from moetrace.engines.knockout import Ablation, Kind
from moetrace.engines.switches import Off, switch_off
from moetrace.errors import ArgumentError
from moetrace.metrics import Asked, Metric, check_foils, check_single
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.models.float32 import computing_in
from moetrace.models.state import prepared
from moetrace.ranks import here
from moetrace.results.curve_runs import CurveRuns
from moetrace.results.expert_arrays import Bools
from moetrace.results.knockout import Runner
from moetrace.trace.curve_folder import CurveFolder
from moetrace.trace.knockout_call import Call, job_of, masks_of, tokens_of

if TYPE_CHECKING:
    from moetrace.cases import Case

TOGETHER = 8  # sets that are run, and kept on disk, at once


def runner_of(anatomy: Anatomy, call: Call, metric: Metric) -> Runner:
    """Runs sets of the call's experts switched off together, read off by ``metric`` unless others are asked
    for; it doesn't keep the model alive."""
    model = weakref.ref(anatomy.model)

    def run(
        sets: Bools,
        case_ids: Sequence[int],
        kind: Kind | None = None,
        metrics: Sequence[Metric] = (),
        out: Path | None = None,
    ) -> CurveRuns:
        there = model()
        if there is None:
            raise ArgumentError(
                "the model that was traced is gone; use mt.knockout_curves(trace, model, cases, n)"
            )
        by_id = {case.case_id: case for case in call.cases}
        asked = Asked(tuple(metrics) or (metric,))
        own = replace(call, common={**call.common, "metric": asked})
        cases = [by_id[case_id] for case_id in case_ids]
        return _run_sets(find_anatomy(there), own, sets, cases, kind or call.asked.kind, out)

    return run


def _run_sets(
    anatomy: Anatomy, call: Call, sets: Bools, cases: Sequence[Case], kind: Kind, out: Path | None
) -> CurveRuns:
    """``kind``: how they are switched off here. ``out``: a run folder, which keeps finished sets."""
    sites, metrics = call.wanted.sites(anatomy), call.common["metric"].metrics
    check_foils(metrics, cases)
    check_single(metrics, cases)
    if kind == "reroute":
        _refuse_too_few(anatomy, sites, sets)
    ranks = here()
    with prepared(anatomy.model), computing_in(anatomy, call.common["compute_dtype"]):
        job = job_of(anatomy, call)
        folder, done = None, {}
        if out is not None:
            path = out
            folder = ranks.first_then_all("run folder", lambda: CurveFolder.of(path, call, job, cases))
            done = ranks.of_first("finished sets", folder.finished_sets)
        names = [CurveFolder.name_of(own, kind) for own in sets]
        left = [at for at, name in enumerate(names) if name not in done]
        if left:
            others: Mapping[int, ByLayer] = {}
            if kind in ("mean", "resample"):
                others = capture(job, call.reference, call.wanted.layers)
            ablation = Ablation(kind, tokens_of(job), call.asked.seed, {}, others)
            job = replace(job, ablation=ablation)
        size = len(left) if folder is None else TOGETHER
        for begin in range(0, len(left), max(1, size)):
            part = left[begin : begin + size]
            masks = [
                masks_of(anatomy, [s for s, off in zip(sites, sets[at], strict=True) if off]) for at in part
            ]
            found = _measured(job, metrics, masks, cases)
            fresh = {names[at]: found.rows(slice(row, row + 1)) for row, at in enumerate(part)}
            if folder is not None and ranks.first:
                folder.append_sets(fresh)
            done |= fresh
    return CurveRuns.stack([done[name] for name in names])


def _measured(
    job: Job, metrics: Sequence[Metric], masks: Sequence[Mapping[int, Any]], cases: Sequence[Case]
) -> CurveRuns:
    """Sets of experts by layer, each on every case."""
    found = switch_off(job, [Off(case, own) for own in masks for case in cases])
    shape = (len(masks), len(cases))
    first = found.top.reshape(shape) == np.array([case.true_id for case in cases])
    known = np.array([case.foil_id is not None for case in cases])
    above = np.where(known, found.values[0].reshape(shape) > 0, np.nan)
    values = {metric: found.values[job.metrics.index(metric)].reshape(shape) for metric in metrics}
    return CurveRuns(values, above, first)


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
