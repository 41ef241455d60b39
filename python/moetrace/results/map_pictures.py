"""Pictures of maps over positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.arguments import is_integer, shown
from moetrace.errors import ArgumentError
from moetrace.results.display import LEVEL, tested_label
from moetrace.results.pictures import CellMap, plot_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_positions(trace: Any, options: Mapping[str, Any], ax: Axes | None) -> Axes:
    """Mean rescue by layer and position, marked by the summary's test."""
    table, layers, positions = trace.summary(**options), sorted(trace.layers), trace.positions
    p = "p_adjusted" if "p_adjusted" in table else "p_value"
    means = table.pivot(index="position", columns="layer", values="mean").loc[positions, layers]
    below = table.pivot(index="position", columns="layer", values=p).loc[positions, layers] < LEVEL
    counts = table.groupby("position", sort=False).n.max()
    every = bool((counts == len(trace)).all())
    cells = CellMap(
        values=means.to_numpy(),
        marked=below.to_numpy(),
        rows=[str(name) if every else f"{name} ({counts[name]})" for name in positions],
        columns=layers,
        labels=("layer", "position" if every else "position (cases)"),
        mark_label=tested_label(len(table), "cells", **options),
        empty_label="no case has it",
        upward=False,
        cell=(0.16, 0.26),
        value_label=f"mean {_measure(trace)} (logits)",
    )
    return plot_map(cells, f"{_done(trace)} at one layer and position, {len(trace)} cases", ax)


def plot_case(trace: Any, case: Any, tokenizer: Any, ax: Axes | None) -> Axes:
    """Rescue of one case by layer and token, the prompt's tokens along the axis."""
    table = trace.cases
    found = np.flatnonzero((table.case_id == case).to_numpy()) if is_integer(case) else np.array([])
    if not len(found):
        raise ArgumentError(
            f"case {shown(case)} isn't in this trace of {len(table)} cases; .cases.case_id lists those that "
            "are"
        )
    row = int(found[0])
    own, layers = table.iloc[row], sorted(trace.layers)
    tokens, sites = trace.tokens[row], trace.sites
    positions = [name for name in trace.positions if (tokens[(sites.position == name).to_numpy()] >= 0).all()]
    values = np.full((len(positions), len(layers)), np.nan)
    for at, name in enumerate(positions):
        for place, layer in enumerate(layers):
            column = np.flatnonzero(((sites.position == name) & (sites.layer == layer)).to_numpy())
            values[at, place] = trace.effects[row, column[0]]
    cells = CellMap(
        values=values,
        marked=np.zeros(values.shape, bool),
        rows=[_told(trace, own, name, int(tokens[_first(sites, name)]), tokenizer) for name in positions],
        columns=layers,
        labels=("layer", "token (* subject)"),
        mark_label="",
        empty_label="",
        upward=False,
        cell=(0.16, 0.26),
        value_label=f"{_measure(trace)} (logits)",
    )
    return plot_map(cells, f"{_done(trace)} at one layer and token of case {case}", ax)


def _measure(trace: Any) -> str:
    return "effect" if trace.noises else "rescue"


def _done(trace: Any) -> str:
    return "Noised block output put in" if trace.noises else "Clean block output restored"


def _first(sites: pd.DataFrame, position: Any) -> int:
    return int(np.flatnonzero((sites.position == position).to_numpy())[0])


def _told(trace: Any, own: pd.Series, position: Any, token: int, tokenizer: Any) -> str:
    """A token as text, or by its id; what the position is called, too, where that isn't the token."""
    number = int(own.input_ids[token])
    text = str(number) if tokenizer is None else repr(tokenizer.decode([number]))[1:-1]
    mark = "*" if own.subject_start <= token < own.subject_stop else ""
    name = "" if trace.provenance.get("position") == "all" else f" ({position})"
    return f"{text.strip() or text}{mark}{name}"


def plot_best_experts(trace: Any, table: pd.DataFrame, positions: Sequence[Any], ax: Axes | None) -> Axes:
    """The mean rescue of the best expert in each layer and position: the highest, or the lowest where that
    is what matters. ``table``: layer, position, expert, mean."""
    toward = trace._toward_recall
    groups = table.groupby(["position", "layer"])["mean"]
    best = (groups.max() if toward > 0 else groups.min()).unstack("layer")
    shown_positions = [name for name in positions if name in best.index]
    best = best.loc[shown_positions, sorted(best.columns)]
    top = table.loc[[(toward * table["mean"]).idxmax()]]
    place = (shown_positions.index(top.position.iloc[0]), list(best.columns).index(top.layer.iloc[0]))
    cells = CellMap(
        values=best.to_numpy(),
        marked=np.zeros(best.shape, bool),
        rows=[str(name) for name in shown_positions],
        columns=[int(layer) for layer in best.columns],
        labels=("layer", "position"),
        mark_label="",
        empty_label="no case has it",
        named=[(*place, f"L{int(top.layer.iloc[0]):02d}E{int(top.expert.iloc[0]):03d}")],
        upward=False,
        named_label="highest mean" if toward > 0 else "lowest mean",
        cell=(0.16, 0.26),
        value_label=f"mean {_measure(trace)} (logits)",
    )
    which = "Highest" if toward > 0 else "Lowest"
    title = f"{which} mean {_measure(trace)} of an expert by layer and position, {len(trace)} cases"
    return plot_map(cells, title, ax)
