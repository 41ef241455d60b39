"""The layer sweep: mean rescue by layer, with interval, test and floor; of all cases and by relation."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moetrace.report.embed import floats
from moetrace.report.parts import Section, Table, counted, interval, number, relation_text, tiny
from moetrace.report.source import Source, direct_of
from moetrace.results.display import correction_label
from moetrace.results.layers import LayerTrace

LEVEL = 0.05
CORRECTION = "max_t"


def layers_section(source: Source) -> Section:
    """The layer curve, or why there is none."""
    title = "Which layers carry the fact"
    sweeps = source.sweeps()
    if not sweeps:
        return Section.without("layers", title, "The run holds no layer sweep.")
    half, trace = next(iter(sweeps.items()))
    table = trace.summary(**source.statistics, correction=CORRECTION).sort_values("layer", ignore_index=True)
    kept = int((table.p_adjusted < LEVEL).sum())
    of = correction_label(len(table), "layers", correction=CORRECTION)
    caption = (
        f"Mean rescue by layer over {counted(len(trace), f'{half} case')}. Band: {source.interval} "
        f"(bootstrap over cases). Filled marks: two-sided sign-flip test, adjusted p < {LEVEL:g}, {of}: "
        f"{kept} of {len(table)} layers. Grey strip: the numerical floor, ±{tiny(trace.noise_floor)} logits, "
        "below which nothing is told from rounding."
    )
    data: dict[str, Any] = {
        "half": half,
        "floor": trace.noise_floor,
        "selected": source.layer,
        "groups": {"": curve(table), **by_relation(trace, source.statistics)},
    }
    if half == "validation" and "discovery" in sweeps:
        found = sweeps["discovery"]
        order = order_of(found)
        data["discovery"] = {
            "layer": [found.layers[place] for place in order],
            "mean": floats(found.effects.mean(axis=0)[order]),
            "n": len(found),
        }
        caption += f" Dotted: the {counted(len(found), 'discovery case')} on which the layer was selected."
    direct = direct_of(trace)
    if direct is not None:
        data["direct"] = floats(direct.mean(axis=0)[order_of(trace)])
        caption += " Dashed: the part of the rescue that goes straight to the logits (direct)."
    return Section(
        "layers", title, [*_lead(trace, table, source.layer, half)], caption,
        f"Line chart of mean rescue in logits by layer, {len(table)} layers",
        [Table.of(table, f"Rescue by layer on {half} cases, in logits; {of}")], data,
    )  # fmt: skip


def curve(table: pd.DataFrame) -> dict[str, Any]:
    """What the chart reads of a summary by layer."""
    return {
        "layer": table.layer.tolist(),
        "mean": floats(table["mean"]),
        "low": floats(table.ci_low),
        "high": floats(table.ci_high),
        "p": floats(table.get("p_adjusted", table.p_value)),
        "n": int(table.n.max()),
    }


def order_of(trace: LayerTrace) -> list[int]:
    """Places of the layers, in ascending order of the layers."""
    return sorted(range(len(trace.layers)), key=lambda place: trace.layers[place])


def by_relation(trace: LayerTrace, statistics: dict[str, Any]) -> dict[str, Any]:
    """The same curve for each relation, the tests corrected within it."""
    if trace.cases.relation_id.nunique() < 2:
        return {}
    table = trace.summary(**statistics, by="relation_id", correction=CORRECTION)
    groups = table.sort_values("layer", kind="stable").groupby("relation_id", sort=True)
    return {relation_text(name): curve(own) for name, own in groups}


def _lead(trace: LayerTrace, table: pd.DataFrame, layer: int | None, half: str) -> list[str]:
    """What the curve says, in words."""
    sharp = trace.sharpness()
    lines = []
    if layer is not None and (table.layer == layer).any():
        own = table[table.layer == layer].iloc[0]
        lines.append(
            f"Giving the last token the clean output of layer {layer} alone restores "
            f"{number(own['mean'], sign=True)} logits on average ({interval(own.ci_low, own.ci_high)}), and "
            f"something above zero in {100 * own.positive_fraction:.0f} % of the {half} cases."
        )
    if sharp.next_layer is not None:
        lines.append(
            f"The highest layer is {sharp.top_layer}; the next, {sharp.next_layer}, lies "
            f"{number(sharp.gap)} logits below it."
        )
    return lines
