"""Every case as a dot or a line, so that a mean can't hide how the cases lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.results.display import correction_label, interval_label
from moetrace.results.pictures.axes import (
    BLUE,
    DARK,
    FAINT,
    PALE,
    RED,
    SMALL,
    Floats,
    Mask,
    axes_of,
    finish,
    name_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GOLDEN = 0.6180339887498949


def plot_strips(
    effects: Floats,
    summary: pd.DataFrame,
    names: Sequence[Any],
    title: str,
    floor: float,
    ax: Axes | None,
    inactive: Mask | None = None,
    xlabel: str = "",
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """A strip of dots for each column, one for each case, with its mean and interval.

    ``inactive``: (cases, columns), drawn apart in grey.
    """
    ax = axes_of(ax, float(np.clip(2.0 + 0.3 * len(names), 6.0, 9.5)), 3.8)
    shift = np.empty(effects.shape)
    for column, own in enumerate(effects.T):
        # Spread by rank, so that neighbours in height stand apart; the same in every run.
        shift[np.argsort(own, kind="stable"), column] = (np.arange(len(own)) * _GOLDEN) % 1 - 0.5
    place = np.arange(len(names)) + 0.62 * shift
    away = np.zeros(effects.shape, bool) if inactive is None else inactive
    size = float(np.clip(150 / np.sqrt(max(effects.size, 1)), 2.2, 4.5))
    for chosen, colour, label in ((away, "#bbbbbb", "not clean-active"), (~away, BLUE, "one case")):
        if chosen.any():
            ax.plot(
                place[chosen], effects[chosen], "o", color=colour, alpha=0.4, ms=size, mew=0, label=label,
                zorder=FAINT,
            )  # fmt: skip
    middle = np.arange(len(names))
    ax.vlines(
        middle, summary.ci_low, summary.ci_high, color=DARK, lw=1.6, label=interval_label(**(options or {})),
        zorder=4,
    )  # fmt: skip
    ax.plot(middle, summary["mean"], "D", color=DARK, mfc="white", ms=4, ls="", label="mean", zorder=5)
    name_ticks(ax, names)
    ax.set_xlim(-0.7, len(names) - 0.3)
    ax.set_xlabel(xlabel, fontsize=9)
    return finish(ax, title, floor, "rescue (logits)")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two values of each case, and what to say of their means and difference.

    ``summary``: rows of the first, the second and the difference, as a summary has them.
    """

    name: str
    first: Floats
    second: Floats
    summary: pd.DataFrame


def plot_pairs(
    pairs: Sequence[Pair],
    names: tuple[str, str],
    title: str,
    tested: tuple[int, str],
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """A line for each case from one value to the other: blue where the first is larger, else red.

    Below each pair stands the mean difference with its interval and p-value. ``names``: of the two values.
    ``tested``: over how many of what the p-values are corrected.
    """
    ax = axes_of(ax, float(np.clip(2.6 + 2.1 * len(pairs), 6.0, 9.5)), 4.2)
    signs = np.concatenate([np.sign(pair.first - pair.second) for pair in pairs])
    kinds = (
        (1, BLUE, f"a case, {names[0]} ahead"),
        (-1, RED, f"a case, {names[1]} ahead"),
        (0, PALE, "equal"),
    )
    colours = {sign: colour for sign, colour, _ in kinds}
    for sign, colour, label in kinds:
        if (signs == sign).any():
            ax.plot([], [], color=colour, alpha=0.3, lw=1.2, label=label, zorder=FAINT)
    interval = interval_label(**(options or {}))
    ticks: list[float] = []
    for index, pair in enumerate(pairs):
        left = 2.4 * index
        ticks += [left, left + 1]
        for a, b in zip(pair.first, pair.second, strict=True):
            colour = colours[int(np.sign(a - b))]
            ax.plot([left, left + 1], [a, b], color=colour, alpha=0.3, lw=0.9, zorder=FAINT, label="_")
        both = pair.summary.iloc[:2]
        where = [left, left + 1]
        ax.vlines(where, both.ci_low, both.ci_high, color=DARK, lw=2, zorder=4, label=interval)
        ax.plot(where, both["mean"], "D-", color=DARK, mfc="white", ms=5, lw=1.6, zorder=5,
                label="_" if index else "mean")  # fmt: skip
        interval = "_"  # said once
        text = f"{pair.name}\n" if pair.name else ""
        ax.annotate(
            text + _difference(pair.summary.iloc[2]), (left + 0.5, 0), xycoords=("data", "axes fraction"),
            ha="center", va="top", xytext=(0, -20), textcoords="offset points", fontsize=SMALL, color=DARK,
        )  # fmt: skip
    ax.plot([], [], ls="", label=f"sign-flip p: {correction_label(*tested, **(options or {}))}")
    name_ticks(ax, list(names) * len(pairs), ticks)
    ax.set_xlim(-0.5, ticks[-1] + 0.5)
    return finish(ax, title, floor, "rescue (logits)")


def _difference(row: pd.Series) -> str:
    if np.isnan(row["mean"]):
        return "no difference is defined"
    p = row.get("p_adjusted", row.p_value)
    tested = f", p = {p:.2g}" if not np.isnan(p) else ""
    interval = f" [{row.ci_low:+.3f}, {row.ci_high:+.3f}]" if not np.isnan(row.ci_low) else ""
    return f"difference {row['mean']:+.3f}{interval}{tested}"
