"""How results look: tables in a notebook, with whatever comes from data escaped, and pictures."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moetrace.errors import MoetraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREY = "#1f5fa8", "#777777"


def result_html(title: str, summary: pd.DataFrame, failed: pd.DataFrame) -> str:
    """A heading, the summary table, and what fell out."""
    parts = [f"<p><b>{escape(title)}</b></p>", summary.to_html(index=False, float_format="%.4g", escape=True)]
    if len(failed):
        ids = ", ".join(map(str, failed.case_id.tolist()[:20]))
        parts.append(f"<p>{len(failed)} cases left out (non-finite logits): {escape(ids)}</p>")
    return "\n".join(parts)


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure; an error with the remedy where matplotlib is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as failure:
        raise MoetraceError('a picture needs matplotlib: pip install "moetrace[plot]"') from failure
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def plot_layers(summary: pd.DataFrame, floor: float, ax: Axes | None = None) -> Axes:
    """Mean rescue by layer with the interval as a band; filled marks where p_adjusted is below 0.05."""
    if ax is None:
        ax = new_axes(max(5.0, 2.5 + 0.14 * len(summary)), 3.4)
    from matplotlib.ticker import MaxNLocator

    layer, mean = summary.layer.to_numpy(), summary["mean"].to_numpy()
    n = int(summary.n.iloc[0])
    ax.axhspan(-floor, floor, color=_GREY, alpha=0.3, lw=0)
    ax.axhline(0.0, color=_GREY, lw=0.8)
    ax.fill_between(
        layer, summary.ci_low, summary.ci_high, color=_BLUE, alpha=0.2, lw=0, label="95 % interval"
    )
    ax.plot(layer, mean, color=_BLUE, lw=1.5)
    survives = summary.get("p_adjusted", summary.p_value).to_numpy() < 0.05
    ax.plot(layer[survives], mean[survives], "o", color=_BLUE, ms=5, label="adjusted p < 0.05")
    if (~survives).any():
        ax.plot(layer[~survives], mean[~survives], "o", mfc="white", mec=_BLUE, ms=5, label="not significant")
    top = int(mean.argmax())
    ax.annotate(
        f"L{layer[top]}", (layer[top], summary.ci_high.iloc[top]), xytext=(0, 4),
        textcoords="offset points", ha="center", color=_BLUE, fontweight="bold",
    )  # fmt: skip
    ax.set_xlabel("layer")
    ax.set_ylabel("mean rescue (logits)")
    ax.set_title(f"Clean block output restored at one layer, {n} cases", fontsize=10)
    ax.margins(y=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


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
