"""Pictures of a knock-out: the most important experts, the map of all, and the curves of sets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.results.base import adjusted_p_values
from moetrace.results.display import LEVEL, tested_label
from moetrace.results.pictures import CellMap, plot_map, plot_points
from moetrace.results.pictures.axes import BLUE, GREY, RED, axes_of, dress, in_unit, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.results.knockout import KnockoutTrace

KINDS = ("experts", "heatmap")
LABEL = "mean effect (logits)"
_TESTS = ("n_flips", "seed", "cluster", "correction", "statistic")
_LINES = {
    "importance": (BLUE, "o-", "most important first"),
    "frequency": (RED, "s--", "equal routing frequency, random"),
    "random": (GREY, "^:", "random"),
}
_VALUES = {"logit_diff": "mean logit difference", "accuracy": "part of cases, true above foil",
           "top_1": "part of cases, true ranked first", "faithfulness": "faithfulness"}  # fmt: skip
_REFERENCES = {"faithfulness": (0.0, 1.0), "accuracy": (), "top_1": ()}  # lines to compare with; else 0
_CURVES = {
    "off": ("count", "experts switched off together"),
    "keep": ("share", "part of the experts that is kept"),
}


def draw(trace: KnockoutTrace, kind: str, limit: int, ax: Axes | None, options: Mapping[str, Any]) -> Axes:
    """The work of :meth:`KnockoutTrace.plot`."""
    how = f"ablation {trace.provenance.get('ablation')}"
    ever = int(trace.clean_active.any(axis=0).sum())
    if kind == "heatmap":
        return _map(trace, how, ax, options)
    table = trace.table(limit, **options)
    which = f"{limit} most important of {ever}" if ever > limit else f"all {ever}"
    title = f"Experts switched off ({how}), {len(trace)} cases ({which} ever clean-active)"
    found = plot_points(
        table, table.star.tolist(), title, trace.noise_floor, ax, (), options, (ever, "experts")
    )
    found.set_ylabel(in_unit(LABEL), fontsize=9)
    return found


def _map(trace: KnockoutTrace, how: str, ax: Axes | None, options: Mapping[str, Any]) -> Axes:
    """Layer x expert; cells without a value were never clean-active."""
    ever = np.flatnonzero(trace.clean_active.any(axis=0))
    tests = {name: options[name] for name in _TESTS if name in options}
    below = adjusted_p_values(trace.effects[:, ever], trace.cases, **tests) < LEVEL
    rows = {layer: place for place, layer in enumerate(trace.layers)}
    sites = trace.sites.iloc[ever]
    values = np.full((len(rows), 1 + int(trace.sites.expert.max())), np.nan)
    marked = np.zeros(values.shape, bool)
    place = (sites.layer.map(rows).to_numpy(int), sites.expert.to_numpy(int))
    values[place] = trace.effects[:, ever].mean(axis=0)
    marked[place] = below
    cells = CellMap(
        values=values,
        marked=marked,
        rows=list(rows),
        columns=list(range(values.shape[1])),
        labels=("expert", "layer"),
        mark_label=tested_label(len(ever), "experts", **options),
        empty_label="never clean-active",
        cell=(0.11, 0.19),
        value_label=LABEL,
    )
    return plot_map(cells, f"Every expert switched off ({how}), {len(trace)} cases", ax)


def draw_curves(rows: pd.DataFrame, curve: str, value: str, title: str, ax: Axes | None) -> Axes:
    """One value of the curves "off" or "keep", a line for each order; random ones with their range."""
    column, label = _CURVES[curve]
    ax = axes_of(ax, 6.0, 3.6)
    own = rows[rows.curve == curve]
    for order, (colour, style, name) in _LINES.items():
        lines = own[own.order == order]
        if not len(lines):
            continue
        seen = lines.groupby(column)[value].agg(["mean", "min", "max"])
        draws = lines.draw.nunique()
        several = f", mean and range of {draws}" if draws > 1 else ""
        ax.plot(seen.index, seen["mean"], style, color=colour, ms=4, lw=1.4, label=name + several)
        if draws > 1:
            ax.fill_between(seen.index, seen["min"], seen["max"], color=colour, alpha=0.15, lw=0)
    ax.margins(y=0.1)
    _mark_references(ax, _REFERENCES.get(value, (0.0,)))
    if curve == "off":
        whole_numbers(ax)
    ax.set_xlabel(label, fontsize=9)
    named = value if value == in_unit("logits") else f"{value} ({in_unit('logits')})"
    ax.set_ylabel(_VALUES.get(value, f"mean {named}"), fontsize=9)
    return dress(ax, title)


def _mark_references(ax: Axes, heights: Sequence[float]) -> None:
    """Lines at heights that values are near to; those that lie elsewhere don't widen the axis."""
    low, high = ax.get_ylim()
    for height in heights:
        if low <= height <= high:
            ax.axhline(height, color=GREY, lw=0.8, zorder=0)
    ax.set_ylim(low, high)
