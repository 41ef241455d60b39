"""Bars: of means with their intervals, and of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.results.display import LEVEL, interval_label, plain, tested_label
from moetrace.results.pictures.axes import BLUE, DARK, RED, SMALL, Floats, axes_of, dress, finish, name_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_bars(
    summary: pd.DataFrame,
    names: Sequence[Any],
    title: str,
    xlabel: str,
    tested: tuple[int, str],
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Means as bars from top to bottom with their intervals: blue above 0, red below; stars for the test.

    ``tested``: over how many of what the p-values are corrected.
    """
    ax = axes_of(ax, 6.5, 1.5 + 0.27 * max(3, len(summary)))
    place, mean = np.arange(len(summary)), summary["mean"].to_numpy()
    ax.barh(place, mean, height=0.68, color=[BLUE if value >= 0 else RED for value in mean], alpha=0.85)
    if len(summary):
        ax.hlines(
            place,
            summary.ci_low,
            summary.ci_high,
            color=DARK,
            lw=1.2,
            label=interval_label(**(options or {})),
        )
    p = summary.get("p_adjusted", summary.p_value).to_numpy()
    below = np.flatnonzero(p < LEVEL)
    label = tested_label(*tested, **(options or {}))
    ax.plot(
        np.full(len(below), 1.015), below, "*", color=DARK, ms=6, ls="", clip_on=False,
        transform=ax.get_yaxis_transform(), label=label if len(below) else f"none at {label}",
    )  # fmt: skip
    ax.set_yticks(place, [plain(name) for name in names], fontsize=SMALL)
    ax.set_ylim(max(len(summary), 1) - 0.4, -0.6)
    return finish(ax, title, floor, xlabel, horizontal=True)


def plot_counts(
    names: Sequence[Any],
    counts: Sequence[int],
    title: str,
    labels: tuple[str, str],
    ax: Axes | None,
    expected: tuple[Floats, str] | None = None,
) -> Axes:
    """Bars of counts. ``labels``: of the axes. ``expected``: what they would be by chance, and its label."""
    ax = axes_of(ax, max(6.0, 1.6 + 0.3 * len(names)), 3.4)
    place = np.arange(len(names))
    ax.bar(place, counts, color=BLUE, width=0.7, alpha=0.85)
    most = max(counts, default=0)
    for at, count in enumerate(counts):
        if count > 0.1 * most:  # there is room for it
            ax.text(at, 0.015 * most, str(count), ha="center", va="bottom", color="white", fontsize=SMALL)
    if expected is not None:
        ax.plot(place, expected[0], "_", color=RED, ms=16, mew=2, ls="", label=expected[1])
    name_ticks(ax, names)
    ax.set_xlabel(labels[0], fontsize=9)
    ax.set_ylabel(labels[1], fontsize=9)
    ax.margins(y=0.1)
    return dress(ax, title)
