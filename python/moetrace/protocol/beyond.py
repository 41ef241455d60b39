"""What a run knows beyond the paper's tables."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.results.base import summarise
from moetrace.results.coalitions import CoalitionTrace
from moetrace.stats.errors import FewClustersWarning

if TYPE_CHECKING:
    from moetrace.protocol.report import Report


def all_tables(report: Report) -> dict[str, pd.DataFrame]:
    """Those that the run has.

    "map": every expert that is ever clean-active, in every layer, with max-T corrected p-values (validation
    cases). "shapley": Shapley values of the selected layer's experts, with intervals, over the cases where
    each is routed. "clustered": the figures of Table 1 with intervals over cases and over relations, and their
    tests. "floor": the numerical floor of each trace. "stability": what each split and threshold selects.
    """
    made = {
        "map": _map(report),
        "shapley": _shapley(report),
        "clustered": _clustered(report),
        "floor": _floor(report),
        "stability": None if report.stability is None else report.stability.rows,
    }
    return {name: table for name, table in made.items() if table is not None}


def _map(report: Report) -> pd.DataFrame | None:
    if "map" not in report.traces:
        return None
    trace = report.experts("map")
    active = trace.arrays.clean_active
    ever = active.any(axis=0)
    sites = trace.sites[ever].reset_index(drop=True).assign(active=active[:, ever].sum(axis=0))
    options = {**report.settings.statistics, "correction": "max_t"}
    return summarise(trace.effects[:, ever], sites, trace.cases, **options)


def _shapley(report: Report) -> pd.DataFrame | None:
    trace = report.traces.get("shapley")
    if not isinstance(trace, CoalitionTrace):
        return None
    values = trace.shapley().pivot(index="case_id", columns="expert", values="shapley")
    sites = pd.DataFrame({"layer": report.layer, "expert": values.columns.to_numpy()})
    table = summarise(values.to_numpy(float), sites, trace.cases, **report.settings.statistics)
    return table.sort_values("mean", ascending=False, ignore_index=True)


def _clustered(report: Report) -> pd.DataFrame:
    values = {"layer rescue": report.layer_rescue}
    cases = report.traces["layers_validation"].cases
    if report.star is not None and len(report.expert_rescue) == len(cases):
        values |= {"expert rescue": report.expert_rescue, "specificity": report.spec_by_case}
    effects = np.stack(list(values.values()), axis=1)
    names = pd.DataFrame({"quantity": list(values)})
    found = []
    for over, cluster in (("cases", None), ("relations", "relation_id")):
        options: dict[str, Any] = {**report.settings.statistics, "cluster": cluster}
        if cluster and cases.relation_id.nunique() < 2:
            report.notes["clustered"] = "All cases are of one relation: there is nothing to cluster by."
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewClustersWarning)
            table = summarise(effects, names, cases, **options)
        for warning in caught:
            report.notes["clustered"] = str(warning.message)
        table.insert(1, "over", over)
        found.append(table)
    return pd.concat(found, ignore_index=True)


def _floor(report: Report) -> pd.DataFrame:
    rows = [
        {"trace": name, "floor": trace.noise_floor, "engine": trace.provenance.get("engine", "")}
        for name, trace in report.found.traces.items()
        if len(trace)
    ]
    return pd.DataFrame(rows, columns=["trace", "floor", "engine"])
