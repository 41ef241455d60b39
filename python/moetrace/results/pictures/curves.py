"""Summaries over a number: layers, noise scales, sizes; alone or relation by relation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.results.display import LEVEL, correction_label, interval_label, plain
from moetrace.results.pictures.axes import (
    BLUE,
    FAINT,
    RED,
    SMALL,
    Floats,
    axes_of,
    finish,
    floor_band,
    in_unit,
    mark,
    new_panels,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_layers(
    summary: pd.DataFrame,
    floor: float,
    ax: Axes | None = None,
    options: Mapping[str, Any] | None = None,
    title: str = "",
    noises: bool = False,
    toward: int = 1,
) -> Axes:
    """Mean rescue by layer with the interval as a band; filled marks where the test is below 0.05.

    ``options``: what the summary was asked for, as its labels say. ``noises``: effects of noised values.
    ``toward``: the highest mean is named, or for -1 the lowest.
    """
    given = dict(options or {})
    summary = summary.sort_values("layer", ignore_index=True)
    ax = axes_of(ax, min(9.5, max(6.0, 3.5 + 0.12 * len(summary))), 3.6)
    layer, mean = summary.layer.to_numpy(), summary["mean"].to_numpy()
    ax.fill_between(
        layer, summary.ci_low, summary.ci_high, color=BLUE, alpha=0.2, lw=0, label=interval_label(**given)
    )
    ax.plot(layer, mean, color=BLUE, lw=1.5)
    p = summary.get("p_adjusted", summary.p_value).to_numpy()
    test = f"{LEVEL}, {correction_label(len(summary), 'layers', **given)}"
    below = p < LEVEL
    marks = [
        (below, BLUE, f"sign-flip p < {test}"),
        (p >= LEVEL, "white", f"p ≥ {LEVEL}" if below.any() else f"sign-flip p ≥ {test}"),
        (np.isnan(p), "#cccccc", "too few cases for a test"),
    ]
    mark(ax, layer, mean, marks)
    top = int((toward * mean).argmax())
    height = summary.ci_high.iloc[top]
    ax.annotate(
        f"L{layer[top]}", (layer[top], mean[top] if np.isnan(height) else height), xytext=(0, 3),
        textcoords="offset points", ha="center", color=BLUE, fontweight="bold", fontsize=9,
    )  # fmt: skip
    ax.set_xlabel("layer", fontsize=9)
    whole_numbers(ax)
    title = title or f"Clean block output restored at one layer, {int(summary.n.iloc[0])} cases"
    return finish(ax, title, floor, "mean effect (logits)" if noises else "mean rescue (logits)")


def plot_lines(
    lines: Mapping[str, tuple[npt.ArrayLike, pd.DataFrame]],
    title: str,
    xlabel: str,
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Summaries over a number, each a line with its intervals. ``lines``: label -> (x, summary)."""
    ax = axes_of(ax, 6.0, 3.6)
    interval = interval_label(**(options or {}))
    for color, (name, (x, summary)) in zip((BLUE, RED), lines.items(), strict=False):
        place = np.asarray(x)
        ax.plot(place, summary["mean"], "o-", color=color, ms=5, lw=1.5, label=plain(name))
        ax.fill_between(place, summary.ci_low, summary.ci_high, color=color, alpha=0.2, lw=0, label=interval)
        interval = "_"  # said once
    ax.set_xlabel(xlabel, fontsize=9)
    return finish(ax, title, floor)


def plot_case_lines(
    x: npt.ArrayLike, effects: Floats, title: str, xlabel: str, floor: float, ax: Axes | None
) -> Axes:
    """A thin line for each case, and their mean. ``effects``: (cases, points of x)."""
    ax = axes_of(ax, 6.0, 3.6)
    place = np.asarray(x)
    for row, own in enumerate(effects):
        ax.plot(place, own, color=BLUE, alpha=0.25, lw=0.8, zorder=FAINT, label="_" if row else "one case")
    ax.plot(place, effects.mean(axis=0), "o-", color=BLUE, lw=2, ms=5, label="mean")
    ax.set_xlabel(xlabel, fontsize=9)
    return finish(ax, title, floor, "rescue (logits)")


def plot_panels(
    panels: Sequence[tuple[str, pd.DataFrame]],
    whole: pd.DataFrame,
    title: str,
    floor: float,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """A layer curve for each group of cases beside that of all. ``panels``: name and summary of each.

    Gives the first panel; its figure has all of them.
    """
    given = dict(options or {})
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    axes = new_panels(rows, columns, max(4.5, 2.35 * columns), 1.0 + 1.6 * rows)
    whole = whole.sort_values("layer")
    for ax, (name, summary) in zip(axes.flat, panels, strict=False):
        own = summary.sort_values("layer")
        ax.fill_between(
            own.layer, own.ci_low, own.ci_high, color=BLUE, alpha=0.2, lw=0, label=interval_label(**given)
        )
        ax.plot(own.layer, own["mean"], color=BLUE, lw=1.4, label="mean of the relation")
        ax.plot(whole.layer, whole["mean"], color=RED, lw=0.9, ls="--", label="mean of all cases")
        floor_band(ax, floor)
        ax.set_title(f"{plain(name)} ({int(own.n.iloc[0])} cases)", fontsize=9, x=0, ha="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=SMALL)
    whole_numbers(axes[0, 0])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(in_unit("rescue (logits)"), fontsize=SMALL)
    for column in range(columns):
        last = axes[(len(panels) - 1 - column) // columns, column]
        last.set_xlabel("layer", fontsize=SMALL)
        last.tick_params(labelbottom=True)
    figure = axes[0, 0].figure
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=min(len(labels), columns),
        frameon=False,
        fontsize=SMALL,
    )
    first: Axes = axes[0, 0]
    return first
