"""Heat maps of mean rescue: layer x expert, layer x relation, expert x relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.results.display import plain
from moetrace.results.pictures.axes import (
    BLUE,
    DARK,
    GREY,
    RED,
    SMALL,
    Floats,
    Mask,
    axes_of,
    dress,
    in_unit,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 24  # that are named
_EMPTY = "#e4e4e4"


@dataclass(frozen=True, eq=False)
class CellMap:
    """What a heat map shows. ``values`` and ``marked``: (rows, columns); NaN is a cell without a value.

    ``rows``, ``columns``: names, the first row at the bottom where ``upward``. ``named``: (row, column, text)
    of cells to frame and to name in the legend.
    """

    values: Floats
    marked: Mask
    rows: Sequence[Any]
    columns: Sequence[Any]
    labels: tuple[str, str]
    mark_label: str
    empty_label: str
    named: Sequence[tuple[int, int, str]] = ()
    named_label: str = "highest means"
    upward: bool = True
    cell: tuple[float, float] = (0.2, 0.2)
    value_label: str = "mean rescue (logits)"


def plot_map(shown: CellMap, title: str, ax: Axes | None) -> Axes:
    """Cells coloured from red (below 0) over white to blue (above 0), a dot where the test is below 0.05."""
    rows, columns = shown.values.shape
    width = float(np.clip(2.0 + shown.cell[0] * columns, 6.5, 9.5))
    height = float(np.clip(1.6 + shown.cell[1] * rows, 2.6, 8.0))
    ax = axes_of(ax, width, height)
    from matplotlib.colors import LinearSegmentedColormap  # there, as there are axes

    colours = LinearSegmentedColormap.from_list("rescue", [RED, "#ffffff", BLUE])
    most = float(np.nanmax(np.abs(shown.values), initial=0.0)) or 1.0
    cells = ax.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, shown.values,
        cmap=colours, vmin=-most, vmax=most, rasterized=True,
    )  # fmt: skip
    ax.set_facecolor(_EMPTY)
    below = np.argwhere(shown.marked)
    if len(below):
        size = float(np.clip(0.28 * 72 * min(width * 0.8 / columns, height * 0.7 / max(rows, 1)), 1.6, 5.0))
        strong = np.abs(shown.values[shown.marked]) > 0.6 * most
        ax.plot(below[:, 1], below[:, 0], "o", color=DARK, ms=size, mew=0, label=shown.mark_label)
        ax.plot(below[strong, 1], below[strong, 0], "o", color="white", ms=size, mew=0, label="_")
    elif shown.mark_label:
        ax.plot([], [], ls="", label=f"none at {shown.mark_label}")
    if np.isnan(shown.values).any():
        ax.plot([], [], "s", color=_EMPTY, mec=GREY, mew=0.5, ms=7, ls="", label=shown.empty_label)
    if shown.named:
        from matplotlib.collections import PolyCollection

        corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        frames = [corners + np.array([column, row]) for row, column, _ in shown.named]
        names = ", ".join(plain(text) for *_, text in shown.named)
        label = f"{shown.named_label}: {names}"
        ax.add_collection(
            PolyCollection(frames, facecolors="none", edgecolors=DARK, linewidths=1.3, label=label, zorder=4)
        )
    _ticks(ax, shown)
    ax.set_xlabel(shown.labels[0], fontsize=9)
    ax.set_ylabel(shown.labels[1], fontsize=9)
    figure: Any = ax.figure
    bar = figure.colorbar(cells, ax=ax, pad=0.015, aspect=30)
    bar.set_label(in_unit(shown.value_label), fontsize=9)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    least, largest = np.nanmin(shown.values, initial=0.0), np.nanmax(shown.values, initial=0.0)
    if least < largest:  # the colours that occur
        bar.ax.set_ylim(least, largest)
    if not shown.upward:
        ax.invert_yaxis()
    return dress(ax, title, above=True)


def _ticks(ax: Axes, shown: CellMap) -> None:
    longest = max((len(plain(name)) for name in shown.columns), default=0)
    turned = longest > 3
    room = width_of(ax) / (SMALL * 1.4 if turned else 5.0 * longest + 8.0)
    for axis, names, most in ((ax.xaxis, shown.columns, room), (ax.yaxis, shown.rows, _MOST_ROWS)):
        numbers = all(isinstance(name, int) for name in names)
        step = max(1, ceil(len(names) / max(most, 1))) if numbers else 1
        place = np.arange(0, len(names), step)
        axis.set_ticks(place, [plain(names[int(at)]) for at in place])
    if turned:
        ax.tick_params(axis="x", rotation=90)
