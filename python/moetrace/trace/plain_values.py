"""What plain forwards with one expert off give, kept in a run folder case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.cases import CaseSet
from moetrace.engines.job import Job
from moetrace.engines.switches import Off, switch_off
from moetrace.models.anatomy import expert_count
from moetrace.ranks import here
from moetrace.trace.knockout_call import Call, details_of, masks_of
from moetrace.trace.run_folder import RunFolder
from moetrace.trace.set_runs import TOGETHER

if TYPE_CHECKING:
    from moetrace.cases import Case

Sites = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class _Form:
    """A case's values, (metrics, 2 + sites), as a row."""

    metrics: int

    def columns(self, parts: Sequence[np.ndarray]) -> dict[str, Any]:
        return {"values": [part.ravel().tolist() for part in parts]}

    def read(self, row: Mapping[Any, Any]) -> np.ndarray:
        return np.array(row["values"], dtype=float).reshape(self.metrics, -1)


def active_of(job: Job, call: Call, sites: Sites) -> np.ndarray:
    """bool (cases, sites): who is routed to at any of the tokens."""
    assert job.ablation is not None
    found = np.zeros((len(call.cases), len(sites)), np.bool_)
    column = {site: place for place, site in enumerate(sites)}
    for index, case in enumerate(call.cases):
        for layer, own in job.ablation.own[case.case_id].items():
            for expert in own.routed:
                if (layer, expert) in column:
                    found[index, column[layer, expert]] = True
    return found


def values_of(job: Job, call: Call, sites: Sites, active: np.ndarray) -> np.ndarray:
    """(metrics, cases, 2 + sites): clean, clean once more with nobody off, and each site off.

    Where the call has a run folder, cases that it holds aren't run, and others stay there.
    """
    out, ranks = call.common["out"], here()
    folder = None
    done: dict[int, np.ndarray] = {}
    if out is not None:
        folder = ranks.first_then_all("run folder", lambda: _folder(job, call, sites))
        done = ranks.of_first("finished cases", folder.finished)
    left = [at for at, case in enumerate(call.cases) if case.case_id not in done]
    size = max(1, len(left) if folder is None else TOGETHER)
    for begin in range(0, len(left), size):
        lot = left[begin : begin + size]
        found = _run(job, [call.cases[at] for at in lot], sites, active[lot])
        fresh = {call.cases[at].case_id: found[:, index] for index, at in enumerate(lot)}
        if folder is not None and ranks.first:
            folder.append(fresh)
        done |= fresh
    return np.stack([done[case.case_id] for case in call.cases], axis=1)


def _folder(job: Job, call: Call, sites: Sites) -> RunFolder[np.ndarray]:
    common = call.common
    how = {"engine": "plain forwards", "compute_dtype": common["compute_dtype"] or ""}
    details = {**details_of(call), "experts": [list(site) for site in sites]}
    form = _Form(len(job.metrics))
    cases = CaseSet(list(call.cases))
    return RunFolder.open(common["out"], "knockout", job, cases, details, how, common["metric"], form)


def _run(job: Job, cases: Sequence[Case], sites: Sites, active: np.ndarray) -> np.ndarray:
    least = min(layer for layer, _ in sites)
    nobody = {least: np.zeros(expert_count(job.anatomy, least), np.bool_)}
    places = np.argwhere(active)
    runs = [Off(case, {}) for case in cases] + [Off(case, nobody) for case in cases]
    runs += [Off(cases[index], masks_of(job.anatomy, [sites[place]])) for index, place in places.tolist()]
    measured, n = switch_off(job, runs).values, len(cases)
    clean, again = measured[:, :n, None], measured[:, n : 2 * n, None]
    found: np.ndarray = np.concatenate([clean, again, np.repeat(clean, len(sites), axis=2)], axis=2)
    found[:, places[:, 0], 2 + places[:, 1]] = measured[:, 2 * n :]
    return found
