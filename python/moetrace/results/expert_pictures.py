"""Pictures of an expert trace: the best experts, the map of all, every case, relation by relation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.arguments import as_choice, as_count
from moetrace.effects import required_cases
from moetrace.results.base import adjusted_p_values, summarise_first
from moetrace.results.display import LEVEL, tested_label
from moetrace.results.pictures import CellMap, plot_experts, plot_map, plot_strips

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.results.experts import ExpertTrace

KINDS = ("experts", "heatmap", "cases")
_NAMED = 4  # cells of a map that are named, the best ones of those that pass the test
_TESTS = ("n_flips", "seed", "cluster", "correction", "statistic")


@dataclass(frozen=True)
class Asked:
    """What :meth:`ExpertTrace.plot` is asked for; ``options`` are those of a summary."""

    layer: int | None
    min_active: float
    limit: int
    kind: str
    by: str | None
    options: dict[str, Any]


def draw(trace: ExpertTrace, found: pd.DataFrame, columns: np.ndarray, asked: Asked, ax: Axes | None) -> Axes:
    """The work of :meth:`ExpertTrace.plot`. ``found``: candidates, the best first, and their ``columns``."""
    kind = as_choice(asked.kind, "kind", KINDS)
    by = as_choice(asked.by, "by", (None, "relation_id"))
    limit = as_count(asked.limit, "limit")
    layers = trace.layers if asked.layer is None else (int(asked.layer),)
    where = f"layer {layers[0]}" if len(layers) == 1 else "all traced layers"
    required = required_cases(asked.min_active, len(trace))
    # Every argument is looked at, whichever of them the picture needs.
    heads = found[["star", "active"]]
    table = summarise_first(trace.effects[:, columns], heads, trace.cases, limit, **asked.options)
    if by is not None:
        return _by_relation(trace, found.head(limit), columns[:limit], where, ax)
    if kind == "heatmap":
        return _map(trace, found, columns, layers, ax, asked.options)
    which = f"best {limit} of {len(found)}" if len(found) > limit else f"all {len(found)}"
    if kind == "experts":
        title = f"Experts of {where}, {len(trace)} cases ({which} ever clean-active)"
        return plot_experts(table, title, required, len(found), trace.noise_floor, ax, asked.options)
    shown = columns[:limit]
    inactive = ~trace.arrays.clean_active[:, shown]
    title = f"Experts of {where}, each of {len(trace)} cases ({which} ever clean-active)"
    names, floor = table.star.tolist(), trace.noise_floor
    return plot_strips(trace.effects[:, shown], table, names, title, floor, ax, inactive, "", asked.options)


def _map(
    trace: ExpertTrace,
    found: pd.DataFrame,
    columns: np.ndarray,
    layers: tuple[int, ...],
    ax: Axes | None,
    options: Mapping[str, Any],
) -> Axes:
    """Layer x expert, whose cells without a value were never clean-active."""
    tests = {name: options[name] for name in _TESTS if name in options}
    below = adjusted_p_values(trace.effects[:, columns], trace.cases, **tests) < LEVEL
    row = {layer: place for place, layer in enumerate(layers)}
    width = 1 + int(trace.sites.expert[trace.sites.layer.isin(layers)].max())
    values = np.full((len(layers), width), np.nan)
    marked = np.zeros(values.shape, bool)
    place = (found.layer.map(row).to_numpy(int), found.expert.to_numpy(int))
    values[place] = trace.effects[:, columns].mean(axis=0)
    marked[place] = below
    best = np.flatnonzero(below & (values[place] > 0))[:_NAMED]  # in the order of their means
    cells = CellMap(
        values=values,
        marked=marked,
        rows=list(layers),
        columns=list(range(width)),
        labels=("expert", "layer"),
        mark_label=tested_label(len(found), "experts", **options),
        empty_label="never clean-active",
        named=[(int(place[0][at]), int(place[1][at]), found.star.iloc[at]) for at in best],
        cell=(0.11, 0.19),
    )
    return plot_map(cells, f"Mean rescue of every expert, {len(trace)} cases", ax)


def _by_relation(
    trace: ExpertTrace, found: pd.DataFrame, columns: np.ndarray, where: str, ax: Axes | None
) -> Axes:
    """Relation x expert, whose cells without a value have no case where the expert is clean-active."""
    relation = trace.cases.relation_id
    counts = relation.value_counts()
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    values = np.full((len(order), len(columns)), np.nan)
    for place, name in enumerate(order):
        own = (relation == name).to_numpy()
        active = trace.arrays.clean_active[np.ix_(own, columns)].any(axis=0)
        values[place, active] = trace.effects[np.ix_(own, columns[active])].mean(axis=0)
    cells = CellMap(
        values=values,
        marked=np.zeros(values.shape, bool),
        rows=[f"{name or '(none)'} ({counts[name]})" for name in order],
        columns=found.star.tolist(),
        labels=("", "relation (cases)"),
        mark_label="",
        empty_label="never clean-active",
        upward=False,
        cell=(0.26, 0.24),
    )
    title = f"Best experts of {where} by relation, {len(trace)} cases"
    return plot_map(cells, title, ax)
