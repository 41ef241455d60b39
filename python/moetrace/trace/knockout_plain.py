"""Knock-outs in plain forwards, where they aren't changes at the tokens that are routed to an expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from moetrace.cases import case_columns, validate_cases
from moetrace.engines.job import Job
from moetrace.engines.knockout import Ablation
from moetrace.engines.switches import Off, switch_off
from moetrace.errors import EngineError
from moetrace.metrics import Metric, check_foils, check_single
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.float32 import computing_in
from moetrace.models.state import prepared
from moetrace.results.by_metric import MetricTraces
from moetrace.results.knockout import KnockoutTrace
from moetrace.trace.knockout_call import Call, ablation_of, job_of, masks_of
from moetrace.trace.knockout_result import facts_of, result_of
from moetrace.trace.provenance import model_facts, versions
from moetrace.trace.session import keep, say_failed

SCALED = "its experts are given tokens that the router has scaled, so they are switched off in plain forwards"
ELSEWHERE = (
    "its routers' weights also change at tokens that don't choose the expert, so experts are switched off at "
    "several tokens in plain forwards"
)


def by_plain_forwards(anatomy: Anatomy, call: Call, why: str) -> KnockoutTrace:
    """Every expert switched off literally. ``why``: for the record. EngineError where the tree is asked
    for."""
    wanted, common = call.wanted, call.common
    asked = common["metric"]
    if common["engine"] == "tree":
        raise EngineError(f"engine is 'tree'; {why}: engine='auto' or 'reference'")
    for cases in (call.cases, call.reference):
        validate_cases(cases, anatomy.vocab_size, "keep", anatomy.positions)
    check_foils(asked.metrics, call.cases)
    check_single(asked.metrics, call.cases)
    sites = wanted.sites(anatomy)
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        job = job_of(anatomy, call)
        ablation = ablation_of(job, call, wanted.layers, plain=True)
        job = replace(job, ablation=ablation)
        active = _active(call, sites, ablation)
        values = _values(anatomy, job, call, sites, active)
    good = np.isfinite(values).all(axis=(0, 2))
    columns = pd.DataFrame(case_columns(call.cases))
    failed = pd.DataFrame(
        {"case_id": columns.case_id[~good], "clean": values[0, ~good, 0], "reason": "non-finite logits"}
    ).reset_index(drop=True)
    say_failed(failed.case_id.tolist(), len(good))
    results = {}
    for metric in asked.metrics:
        own = values[job.metrics.index(metric)][good]
        table = (
            columns[good].assign(clean=own[:, 0], null_rescue=own[:, 1] - own[:, 0]).reset_index(drop=True)
        )
        ids = [table.case_id.tolist(), failed.case_id.tolist()]
        facts = _facts(job, call, metric, *ids) | {"engine_reason": why}
        results[metric.name] = result_of(
            anatomy, call, metric, table, sites, own[:, 2:], active[good], failed, facts, ablation
        )
    found: Any = MetricTraces(results) if asked.several else next(iter(results.values()))
    keep(found, common["out"])
    result: KnockoutTrace = found
    return result


def _active(call: Call, sites: list[tuple[int, int]], ablation: Ablation) -> np.ndarray:
    """bool (cases, sites): who is routed to at any of the tokens."""
    found = np.zeros((len(call.cases), len(sites)), np.bool_)
    column = {site: place for place, site in enumerate(sites)}
    for index, case in enumerate(call.cases):
        for layer, own in ablation.own[case.case_id].items():
            for expert in own.routed:
                if (layer, expert) in column:
                    found[index, column[layer, expert]] = True
    return found


def _values(
    anatomy: Anatomy, job: Job, call: Call, sites: list[tuple[int, int]], active: np.ndarray
) -> np.ndarray:
    """(metrics, cases, 2 + sites): clean, clean once more with nobody off, and each site off."""
    least = min(call.wanted.layers)
    nobody = {least: np.zeros(expert_count(anatomy, least), np.bool_)}
    places = np.argwhere(active)
    runs = [Off(case, {}) for case in call.cases] + [Off(case, nobody) for case in call.cases]
    runs += [Off(call.cases[index], masks_of(anatomy, [sites[place]])) for index, place in places.tolist()]
    measured, n = switch_off(job, runs).values, len(call.cases)
    clean = measured[:, :n, None]
    found: np.ndarray = np.concatenate(
        [clean, measured[:, n : 2 * n, None], np.repeat(clean, len(sites), axis=2)], axis=2
    )
    found[:, places[:, 0], 2 + places[:, 1]] = measured[:, 2 * n :]
    return found


def _facts(job: Job, call: Call, metric: Metric, case_ids: list[int], failed: list[int]) -> dict[str, Any]:
    return {
        "model": model_facts(job.anatomy.model),
        "versions": versions(),
        "engine": "reference",
        "self_check": 0.0,
        "null_floor": 0.0,
        "compute_dtype": call.common["compute_dtype"],
        "readout": job.readout.asked,
        "readout_by": job.readout.kind,
        "position": job.position,
        "metric": metric.name,
        **({"metric_code": metric.code} if metric.code else {}),
        "layers": list(call.wanted.layers),
        "case_ids": case_ids,
        "failed_case_ids": failed,
        **facts_of(call),
    }
