"""Coalitions of the selected layer's experts, and how their rescue is shared among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moetrace.errors import MoetraceError
from moetrace.report.embed import floats
from moetrace.report.layers import CORRECTION, LEVEL
from moetrace.report.parts import Section, Table, counted, number
from moetrace.report.source import Source
from moetrace.results.base import summarise
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.display import correction_label
from moetrace.results.expert_name import Expert

SHOWN = 20  # experts with a bar of their own


def coalitions_section(source: Source) -> Section:
    """Rescue by coalition and Shapley values, or why there are none."""
    title = "Coalitions and shares"
    traces = [trace for name in ("coalitions", "shapley") if (trace := source.trace(name)) is not None]
    # Subsets of the routed experts, and sets that have a name: the clean routing, the routing union.
    subsets = next((trace for trace in traces if trace.players and len(trace)), None)
    named = next((trace for trace in traces if not trace.players and len(trace)), None)
    shown = named if subsets is None else subsets
    if shown is None:
        return Section.without("coalitions", title, "The run holds no coalitions.")
    layer = int(shown.sites.layer.iloc[0])
    caption = f"Patches of several experts of layer {layer} at once, {counted(len(shown), 'case')}. "
    caption += "Each mark is one set. " if subsets is None else _size_caption(subsets)
    data: dict[str, Any] = _points(shown, source.statistics)
    if subsets is not None and named is not None:
        data["named"] = _named(named)
        caption += "Dashed: the means of the sets by routing, whose intervals are in the table. "
    tables = [_table(trace, source) for trace in (named, subsets) if trace is not None]
    shares, share_caption, share_tables = _shares(subsets, source)
    data["shares"] = shares
    return Section(
        "coalitions", title, _lead(subsets, layer), f"{caption}Bars: {source.interval}s.",
        f"Mean rescue in logits of {shown.effects.shape[1]} coalitions of experts of layer {layer}",
        [*tables, *share_tables], data, {"shares": share_caption},
    )  # fmt: skip


def _table(trace: CoalitionTrace, source: Source) -> Table:
    table = trace.summary(**source.statistics).drop(columns="layer")
    which = "subsets of the routed experts" if trace.players else "sets by routing"
    return Table.of(table, f"Rescue of {which} in logits; {source.interval}s; sign-flip p, uncorrected")


def _named(trace: CoalitionTrace) -> list[dict[str, Any]]:
    means = floats(trace.effects.mean(axis=0))
    words = {"clean": "the clean routing's experts", "union": "union of clean and noised routing"}
    names = [words.get(name, name) for name in trace.sites.coalition]
    return [{"name": name, "mean": mean} for name, mean in zip(names, means, strict=True)]


def _lead(trace: CoalitionTrace | None, layer: int) -> list[str]:
    if trace is None or not trace.complete:
        return []
    found = trace.additivity()
    small = trace.smallest(0.8)
    size = small["size"].to_numpy()
    lines = [
        f"All {trace.players} experts that the clean run takes in layer {layer} restore "
        f"{number(float(found.grand.mean()), sign=True)} logits together; one at a time their rescues add up "
        f"to {number(float(found.singles.mean()), sign=True)}."
    ]
    if (size > 0).any():
        lines.append(
            f"In the {counted(int((size > 0).sum()), 'case')} where the whole set helps, "
            f"{number(float(size[size > 0].mean()), 1)} experts on average reach 80 % of its rescue."
        )
    return lines


def _size_caption(trace: CoalitionTrace) -> str:
    which = "every subset" if trace.complete else "the subsets that were drawn"
    return f"Dots: the mean of each of {which} of the routed experts; line: the mean of a size. "


def _points(trace: CoalitionTrace, statistics: dict[str, Any]) -> dict[str, Any]:
    table = trace.summary(**statistics)
    data: dict[str, Any] = {
        "name": table.coalition.tolist(),
        "mean": floats(table["mean"]),
        "low": floats(table.ci_low),
        "high": floats(table.ci_high),
        "floor": trace.noise_floor,
    }
    if trace.players:
        sizes = np.array([int(mask).bit_count() for mask in trace.provenance["masks"]])
        found = np.unique(sizes)
        means = np.stack([trace.effects[:, sizes == size].mean(axis=1) for size in found], axis=1)
        own = summarise(means, pd.DataFrame({"size": found}), trace.cases, **statistics)
        data["size"] = sizes.tolist()
        data["line"] = {
            "size": found.tolist(),
            "mean": floats(own["mean"]),
            "low": floats(own.ci_low),
            "high": floats(own.ci_high),
        }
    return data


def shapley_table(trace: CoalitionTrace, statistics: dict[str, Any]) -> pd.DataFrame:
    """Mean Shapley value of each expert over all cases, 0 where it isn't routed, largest first."""
    shares = trace.shapley()
    wide = shares.pivot_table(index="case_id", columns="expert", values="shapley", aggfunc="sum")
    wide = wide.reindex(trace.cases.case_id)
    layer = int(trace.sites.layer.iloc[0])
    heads = pd.DataFrame(
        {
            "star": [str(Expert(layer, int(expert))) for expert in wide.columns],
            "active": wide.notna().sum().to_numpy(),
        }
    )
    table = summarise(wide.fillna(0.0).to_numpy(), heads, trace.cases, **statistics, correction=CORRECTION)
    return table.sort_values("mean", ascending=False, ignore_index=True).rename(
        columns={"mean": "Shapley value"}
    )


def _shares(trace: CoalitionTrace | None, source: Source) -> tuple[dict[str, Any] | None, str, list[Table]]:
    if trace is None:
        return None, "", []
    try:
        table = shapley_table(trace, source.statistics)
    except MoetraceError:
        return None, "", []  # subsets are missing: there is no exact share
    of = correction_label(len(table), "experts", correction=CORRECTION)
    order = table["Shapley value"].abs().sort_values(ascending=False, kind="stable").index[:SHOWN]
    shown = table.loc[sorted(order)]
    rest = float(table.drop(index=shown.index)["Shapley value"].sum())
    total = float(table["Shapley value"].sum())
    caption = (
        f"Shapley values: how the {number(total, sign=True)} logits that all routed experts restore together "
        f"are shared among them, mean over all {counted(len(trace), 'case')} (0 where an expert isn't "
        f"routed). Lines: {source.interval}s. Filled: sign-flip test, adjusted p < {LEVEL:g}, {of}."
    )
    if len(shown) < len(table):
        caption += f" The other {len(table) - len(shown)} experts add up to {number(rest, sign=True)}."
    data = {
        "expert": shown.star.tolist(),
        "mean": floats(shown["Shapley value"]),
        "low": floats(shown.ci_low),
        "high": floats(shown.ci_high),
        "p": floats(shown.p_adjusted),
        "active": shown.active.tolist(),
        "n": len(trace),
    }
    return (
        data,
        caption,
        [Table.of(table, f"Shapley values in logits; {source.interval}s; sign-flip p, {of}")],
    )
