"""The layer x expert map: mean rescue of every routed expert, with those that survive the correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moetrace.report.embed import packed
from moetrace.report.layers import CORRECTION, LEVEL
from moetrace.report.parts import Section, Table, counted, number, relation_text
from moetrace.report.source import Source, direct_of
from moetrace.results.base import summarise
from moetrace.results.display import correction_label
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace

LISTED = 100  # rows of the table beside the map
_MOST_ENTRIES = 64_000  # single rescues in the page: 0.5 MB


def experts_section(source: Source) -> Section:
    """The map, or why there is none."""
    title = "Which experts carry it"
    traces = source.widest_experts()
    if not traces:
        return Section.without("experts", title, "The run holds no expert trace.")
    # Of equally many layers the validation half, which comes first: nothing was selected on it.
    half, trace = max(traces.items(), key=lambda item: len(item[1].layers))
    table = expert_table(trace, source.statistics)
    kept = table[table.p_adjusted < LEVEL]
    of = correction_label(len(table), "ever clean-active experts", correction=CORRECTION)
    caption = (
        f"Mean rescue of each expert's own contribution over {counted(len(trace), f'{half} case')}; a case "
        "in which the router doesn't take the expert counts as 0, and a cell without colour is an expert "
        "that is never clean-active. The colour goes with the square root of the mean, so that small ones "
        f"are seen too. Dots: two-sided sign-flip test, adjusted p < {LEVEL:g}, {of}. Ring: "
        "the selected expert."
    )
    data = map_data(trace, table) | {"half": half, "floor": trace.noise_floor, "star": None}
    star = source.star
    if star is not None and star.layer in trace.layers:
        data["star"] = [star.layer, star.expert]
    how = f"{source.interval}s; sign-flip p, {of}"
    return Section(
        "experts", title, _lead(trace, table, kept), caption,
        f"Heat map of mean rescue in logits by layer and expert, {len(trace.layers)} layers",
        [Table.of(_listed(table), _listed_caption(table, half, how))], data,
    )  # fmt: skip


def expert_table(trace: ExpertTrace, statistics: dict[str, Any]) -> pd.DataFrame:
    """Summary of every expert that is ever clean-active, with its column in the trace as ``site``."""
    active = trace.arrays.clean_active.sum(axis=0)
    ever = np.flatnonzero(active)
    sites = trace.sites.iloc[ever].reset_index(drop=True)
    names = [str(Expert(layer, expert)) for layer, expert in zip(sites.layer, sites.expert, strict=True)]
    heads = pd.DataFrame({"site": ever, "star": names, "active": active[ever]})
    direct = direct_of(trace.arrays)
    if direct is not None:
        straight = np.where(trace.arrays.clean_active, direct, 0.0)[:, ever].mean(axis=0)
        heads["direct"], heads["indirect"] = straight, trace.effects[:, ever].mean(axis=0) - straight
    return summarise(trace.effects[:, ever], heads, trace.cases, **statistics, correction=CORRECTION)


def map_data(trace: ExpertTrace, table: pd.DataFrame) -> dict[str, Any]:
    """Means of all sites, and the rescues of single cases that filters and details are made from."""
    sites = trace.sites
    columns = {
        "mean": table["mean"], "low": table.ci_low, "high": table.ci_high, "p": table.p_adjusted,
    }  # fmt: skip
    data: dict[str, Any] = {name: packed(values) for name, values in columns.items()}
    data["site"] = packed(table.site, "<u4")
    data["active"] = packed(table.active, "<u4")
    data["sites"] = {"layer": packed(sites.layer, "<u2"), "expert": packed(sites.expert, "<u2")}
    data["cases"] = trace.cases.case_id.tolist()
    data["relations"] = [relation_text(relation) for relation in trace.cases.relation_id]
    entries = trace.arrays.clean_active
    if int(entries.sum()) <= _MOST_ENTRIES:
        where = np.nonzero(entries)
        data["single"] = {
            "per_case": packed(entries.sum(axis=1), "<u4"),
            "site": packed(where[1], "<u4" if entries.shape[1] > 65535 else "<u2"),
            "rescue": packed(trace.effects[where]),
        }
    return data


def _lead(trace: ExpertTrace, table: pd.DataFrame, kept: pd.DataFrame) -> list[str]:
    """What the map says, in words."""
    how_many = counted(len(kept), "expert") if len(kept) else "No expert"
    found = (
        f"{how_many} {'differ' if len(kept) > 1 else 'differs'} from zero after correction for all of them"
    )
    if len(kept):
        top = kept.loc[kept["mean"].abs().idxmax()]
        found += f"; the strongest is {top.star} with {number(top['mean'], sign=True)} logits"
    lines = [
        f"{counted(len(trace.sites), 'expert')} of {counted(len(trace.layers), 'layer')} were patched one by "
        f"one, with nothing but their own contribution; {len(table):,} are ever clean-active.",
        f"{found}.",
    ]
    if "direct" in table:
        lines.append(
            "Direct is the part of an expert's rescue that goes straight to the logits; indirect is what "
            "later layers make of it."
        )
    return lines


def _listed(table: pd.DataFrame) -> pd.DataFrame:
    order = table["mean"].abs().sort_values(ascending=False, kind="stable").index[:LISTED]
    return table.loc[order].drop(columns="site")


def _listed_caption(table: pd.DataFrame, half: str, how: str) -> str:
    few = f"The {LISTED} largest of {len(table):,} experts" if len(table) > LISTED else "All experts"
    return f"{few} by absolute mean rescue in logits on {half} cases; {how}"
