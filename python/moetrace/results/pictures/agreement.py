"""Estimates against exact values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moetrace.results.pictures.axes import BLUE, DARK, Floats, axes_of, dress, in_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_agreement(estimates: Floats, exact: Floats, title: str, ax: Axes | None) -> Axes:
    """A dot for each pair, and the line on which they are equal."""
    ax = axes_of(ax, 4.6, 4.4)
    ends = np.array([min(estimates.min(), exact.min()), max(estimates.max(), exact.max())])
    ax.plot(ends, ends, color=DARK, lw=0.8, label="equal")
    ax.plot(exact, estimates, "o", ms=3, alpha=0.5, color=BLUE, ls="", label="a case and expert")
    ax.set_xlabel(in_unit("exact rescue (logits)"), fontsize=9)
    ax.set_ylabel(in_unit("estimate (logits)"), fontsize=9)
    return dress(ax, title)
