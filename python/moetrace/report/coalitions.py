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
from moetrace.results.display import correction_label, interval_label
from moetrace.results.expert_name import Expert

SHOWN = 20  # experts with a bar of their own


def coalitions_section(source: Source) -> Section:
    """Rescue by coalition and Shapley values, or why there are none."""
    title = "Coalitions and shares"
    trace = source.trace("coalitions")
    if trace is None or not len(trace):
        return Section.without("coalitions", title, "The run holds no coalitions.")
    layer = int(trace.sites.layer.iloc[0])
    table = trace.summary()
    caption = (
        f"Patches of several experts of layer {layer} at once, {counted(len(trace), 'case')}. "
        + (_size_caption(trace) if trace.players else "Each mark is one coalition. ")
        + f"Bars: {interval_label()}s."
    )
    tables = [
        Table.of(table.drop(columns="layer"), "Rescue of coalitions in logits; sign-flip p, uncorrected")
    ]
    shares, share_caption, share_tables = _shares(trace)
    return Section(
        "coalitions", title, _lead(trace, layer), caption,
        f"Mean rescue in logits of {len(table)} coalitions of experts of layer {layer}",
        [*tables, *share_tables], {**_points(trace, table), "shares": shares}, {"shares": share_caption},
    )  # fmt: skip


def _lead(trace: CoalitionTrace, layer: int) -> list[str]:
    if not trace.complete:
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


def _points(trace: CoalitionTrace, table: pd.DataFrame) -> dict[str, Any]:
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
        own = summarise(means, pd.DataFrame({"size": found}), trace.cases)
        data["size"] = sizes.tolist()
        data["line"] = {
            "size": found.tolist(),
            "mean": floats(own["mean"]),
            "low": floats(own.ci_low),
            "high": floats(own.ci_high),
        }
    return data


def shapley_table(trace: CoalitionTrace) -> pd.DataFrame:
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
    table = summarise(wide.fillna(0.0).to_numpy(), heads, trace.cases, correction=CORRECTION)
    return table.sort_values("mean", ascending=False, ignore_index=True).rename(
        columns={"mean": "Shapley value"}
    )


def _shares(trace: CoalitionTrace) -> tuple[dict[str, Any] | None, str, list[Table]]:
    if not trace.players:
        return None, "", []
    try:
        table = shapley_table(trace)
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
        f"routed). Lines: {interval_label()}s. Filled: sign-flip test, adjusted p < {LEVEL:g}, {of}."
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
        [Table.of(table, f"Shapley values in logits; {interval_label()}s; sign-flip p, {of}")],
    )
