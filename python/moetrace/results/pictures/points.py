"""Means with their intervals, a named point for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.results.display import LEVEL, interval_label, tested_label
from moetrace.results.pictures.axes import BLUE, Mask, axes_of, finish, mark, name_ticks, star

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_points(
    summary: pd.DataFrame,
    names: Sequence[Any],
    title: str,
    floor: float,
    ax: Axes | None,
    marks: Sequence[tuple[Mask, str, str]] = (),
    options: Mapping[str, Any] | None = None,
    tested: tuple[int, str] | None = None,
) -> Axes:
    """Means with their intervals, one named point for each row of a summary.

    ``marks``: which rows, fill and label; all alike where there are none. ``tested``: over how many of what
    the p-values are corrected; points below 0.05 then get a star.
    """
    ax = axes_of(ax, max(6.5, 1.6 + 0.26 * len(summary)), 3.8)
    place, mean = np.arange(len(summary)), summary["mean"].to_numpy()
    if len(summary):
        label = interval_label(**(options or {}))
        ax.vlines(place, summary.ci_low, summary.ci_high, color=BLUE, lw=1.2, label=label)
    mark(ax, place, mean, marks or [(np.ones(len(summary), bool), BLUE, "mean")])
    if tested is not None:
        p = summary.get("p_adjusted", summary.p_value).to_numpy()
        star(ax, np.flatnonzero(p < LEVEL), tested_label(*tested, **(options or {})))
    name_ticks(ax, names)
    ax.set_xlim(-0.7, max(len(summary), 1) - 0.3)
    return finish(ax, title, floor)


def plot_experts(
    summary: pd.DataFrame,
    title: str,
    required: int,
    found: int,
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Experts in the order of the rows; filled marks are recurrent ones. Also has ``star``, ``active``.

    ``found``: over how many experts the p-values are corrected.
    """
    recurrent = (summary.active >= required).to_numpy()
    marks = [
        (recurrent, BLUE, f"clean-active in at least {required} cases"),
        (~recurrent, "white", f"clean-active in fewer than {required} cases"),
    ]
    return plot_points(summary, summary.star.tolist(), title, floor, ax, marks, options, (found, "experts"))
