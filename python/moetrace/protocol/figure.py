"""The paper's Figure 1 of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.errors import MissingPackageError
from moetrace.protocol.tables import estimated
from moetrace.results.display import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moetrace.protocol.report import Report

INK, BLUE, RED, GREY, PALE = "#22262b", "#1f5fa8", "#b5462f", "#8a9099", "#d6dbe1"


def figure(report: Report) -> Figure:
    """Left: block rescue across layers. Middle: the selected expert. Right: coalitions of routed experts."""
    try:
        import matplotlib.pyplot as plt
        from matplotlib import rc_context
    except ImportError as failure:
        raise MissingPackageError(
            f'a picture needs matplotlib ({failure}): pip install "moetrace[plot]"'
        ) from failure
    style = {
        "font.size": 9, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.linewidth": 0.8, "axes.titleweight": "bold", "axes.titlesize": 9.5,
    }  # fmt: skip
    with rc_context(style):
        drawn, axes = plt.subplots(
            1, 3, figsize=(11, 3.5), layout="constrained", gridspec_kw={"width_ratios": [1.7, 1, 1.15]}
        )
        _layers(report, axes[0])
        _expert(report, axes[1])
        _coalitions(report, axes[2])
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.axhline(0, color=GREY, lw=0.8, zorder=0)
            ax.tick_params(length=2.5)
        axes[0].set_ylabel("mean rescue (logits)")
        level = f"{100 * report.settings.confidence:g} %"
        drawn.get_layout_engine().set(w_pad=0.12)
        drawn.suptitle(
            plain(f"{report.label}: {len(report.layer_rescue)} validation cases, {level} intervals"),
            fontsize=9, color=GREY, x=0.995, ha="right",
        )  # fmt: skip
    return drawn


def _layers(report: Report, ax: Axes) -> None:
    table = report.layers("layers_validation").summary(**report.settings.statistics).sort_values("layer")
    layer, mean = table.layer.to_numpy(), table["mean"].to_numpy()
    ax.fill_between(layer, table.ci_low, table.ci_high, color=BLUE, alpha=0.16, lw=0)
    ax.plot(layer, mean, color=BLUE, lw=1.6)
    ax.plot(layer, mean, "o", color=BLUE, ms=3)
    at = int(np.flatnonzero(layer == report.layer)[0])
    ax.axvline(report.layer, color=RED, lw=0.9, ls=(0, (2, 2)), zorder=0)
    ax.plot(report.layer, mean[at], "o", color=RED, ms=7, mec="white", mew=1.2, zorder=5)
    side = -1 if at > len(layer) / 2 else 1
    ax.annotate(
        f"L{report.layer}  {mean[at]:+.2f}", (report.layer, ax.get_ylim()[1]), xytext=(4 * side, -2),
        textcoords="offset points", color=RED, fontweight="bold", va="top", ha="right" if side < 0 else "left",
    )  # fmt: skip
    floor = report.noise_floor
    ax.axhspan(-floor, floor, color=PALE, lw=0, zorder=0)
    ax.margins(x=0.02)
    ax.set_xlabel("layer")
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("Clean block output restored", loc="left")


def _expert(report: Report, ax: Axes) -> None:
    if report.star is None or report.specificity is None:
        return _nothing(ax, "Selected expert", report.notes.get("expert") or report.notes.get("spec", ""))
    rows = report.specificity.rows
    bars = [
        (str(report.star), rows.star_rescue.to_numpy(), BLUE),
        ("other active\nexperts", rows.control_rescue.to_numpy(), GREY),
        ("specificity", rows.specificity.to_numpy(), RED),
    ]
    _points(report, ax, bars)
    ax.set_title("Selected expert", loc="left")
    return None


def _coalitions(report: Report, ax: Axes) -> None:
    if "coalitions" not in report.traces:
        return _nothing(ax, "Expert coalitions", "no expert was selected")
    trace = report.traces["coalitions"]
    bars = [
        (f"{report.star}\nalone", report.expert_rescue, BLUE),
        (f"clean top-{report.top_k}", trace.effects[:, 0], INK),
        ("routing\nunion", trace.effects[:, 1], INK),
    ]
    _points(report, ax, bars)
    level = float(np.mean(report.layer_rescue))
    ax.axhline(level, color=RED, lw=1.1, ls=(0, (4, 2)))
    ax.annotate(
        f"L{report.layer} block", (0, level), xycoords=("axes fraction", "data"), xytext=(3, 3),
        textcoords="offset points", color=RED, fontsize=8,
    )  # fmt: skip
    ax.set_title("Expert coalitions", loc="left")
    return None


def _points(report: Report, ax: Axes, bars: list[tuple[str, Any, str]]) -> None:
    """A mean with its interval for each of some values by case, its number beside it."""
    for place, (_, values, color) in enumerate(bars):
        own = estimated(report, "x", values)
        ax.bar(place, own["x"], width=0.56, color=color, alpha=0.16, lw=0)
        ax.plot([place - 0.28, place + 0.28], [own["x"]] * 2, color=color, lw=2)
        ax.vlines(place, own["x_low"], own["x_high"], color=color, lw=1.6)
        ax.annotate(
            f"{own['x']:+.2f}", (place + 0.04, own["x"]), xytext=(2, 3), textcoords="offset points",
            color=color, fontsize=8, fontweight="bold",
        )  # fmt: skip
    ax.set_xticks(range(len(bars)), [plain(name) if "\n" not in name else name for name, _, _ in bars])
    ax.set_xlim(-0.6, len(bars) - 0.35)
    ax.margins(y=0.12)


def _nothing(ax: Axes, title: str, why: str) -> None:
    """A panel that the run doesn't have."""
    ax.set_title(title, loc="left")
    ax.text(
        0.5,
        0.5,
        plain(why),
        ha="center",
        va="center",
        wrap=True,
        fontsize=8,
        color=GREY,
        transform=ax.transAxes,
    )
    ax.set_xticks([])
    ax.set_yticks([])
