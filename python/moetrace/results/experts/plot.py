"""A picture of the experts of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moetrace.results.plots import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREY = "#1f5fa8", "#777777"


def plot_experts(summary: pd.DataFrame, title: str, required: int, floor: float, ax: Axes | None) -> Axes:
    """Mean rescue with its interval, in the order of the rows; filled marks are recurrent experts.

    ``summary`` has a summary's columns, and ``star`` and ``active``.
    """
    if ax is None:
        ax = new_axes(max(4.5, 1.6 + 0.26 * len(summary)), 3.6)
    place, mean = np.arange(len(summary)), summary["mean"].to_numpy()
    recurrent = (summary.active >= required).to_numpy()
    ax.axhspan(-floor, floor, color=_GREY, alpha=0.3, lw=0)
    ax.axhline(0.0, color=_GREY, lw=0.8)
    ax.vlines(place, summary.ci_low, summary.ci_high, color=_BLUE, lw=1.2)
    for chosen, fill, text in ((recurrent, _BLUE, "at least"), (~recurrent, "white", "fewer than")):
        if chosen.any():
            label = f"clean-active in {text} {required} cases"
            ax.plot(place[chosen], mean[chosen], "o", mfc=fill, mec=_BLUE, ms=5, label=label)
    ax.set_xticks(place, summary.star.tolist(), rotation=90, fontsize=8)
    ax.set_ylabel("mean rescue (logits)")
    ax.set_title(title, fontsize=10)
    ax.margins(x=0.02, y=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    if len(summary):
        ax.legend(frameon=False, fontsize=8)
    return ax
