"""Pictures of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from moetrace.errors import MoetraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREY = "#1f5fa8", "#777777"


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure; an error with the remedy where matplotlib is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as failure:
        raise MoetraceError("a picture needs matplotlib: pip install 'moetrace[plot]'") from failure
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def plot_layers(summary: pd.DataFrame, floor: float, ax: Axes | None = None) -> Axes:
    """Mean rescue by layer with the interval as a band; filled marks where p_adjusted is below 0.05."""
    from matplotlib.ticker import MaxNLocator

    if ax is None:
        ax = new_axes(max(5.0, 2.5 + 0.14 * len(summary)), 3.4)
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
