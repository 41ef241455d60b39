"""How results look: tables in a notebook, and pictures. What comes from data is escaped in both.

A label says what was computed: the interval's level and kind, the test, the correction and over how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import refuse_type, shown
from moetrace.errors import ArgumentError, MissingPackageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Mask = npt.NDArray[np.bool_]

_BLUE, _RED, _GREY = "#1f5fa8", "#b5462f", "#777777"
_LEVEL = 0.05
_CORRECTIONS = {
    "max_t": "max-T",
    "max_t_single": "single-step max-T",
    "holm": "Holm",
    "bh": "Benjamini-Hochberg",
}
_LONGEST = 60


def result_html(title: str, summary: pd.DataFrame, failed: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """A heading, the summary table, what a reader should know beside it, and which cases fell out."""
    parts = [f"<p><b>{_html(title)}</b></p>", summary.to_html(index=False, float_format="%.4g", escape=True)]
    parts += [f"<p>{_html(note)}</p>" for note in notes]
    if len(failed):
        ids = ", ".join(map(str, failed.case_id.tolist()[:20]))
        parts.append(f"<p>{len(failed)} cases left out (non-finite logits): {_html(ids)}</p>")
    # Half of a surrogate pair can't be sent to a browser.
    return "\n".join(parts).encode("utf-8", "replace").decode()


def _html(text: str) -> str:
    return escape(text).replace("\n", " ")


def interval_label(ci: str = "percentile", confidence: float = 0.95, **others: Any) -> str:
    """ "95 % percentile interval", of the arguments of a summary."""
    clusters = ", clustered by relation" if others.get("cluster") else ""
    return f"{100 * confidence:.6g} % {ci} interval{clusters}"


def correction_label(count: int, things: str, correction: str | None = None, **others: Any) -> str:
    """Which correction, over what: "max-T over 24 layers"."""
    if correction is None:
        return f"uncorrected for {count} {things}" if count > 1 else "uncorrected"
    of_means = " of means" if others.get("statistic") == "mean" and correction.startswith("max_t") else ""
    return f"{_CORRECTIONS[correction]}{of_means} over {count} {things}"


def table_note(count: int, things: str, **options: Any) -> str:
    """What intervals and p-values of a table are."""
    return f"{interval_label(**options)}s; sign-flip p_value {correction_label(count, things, **options)}."


def expert_notes(shown: int, found: int) -> list[str]:
    """What a table of the best experts doesn't tell by itself: that they were chosen by what it shows."""
    return [
        f"The {shown} with the highest mean over the cases where they are clean-active, of {found} experts "
        "ever clean-active. They were chosen on these very cases, which no p_value here accounts for: test "
        "an expert on other cases, held.specificity(star), or all of them, .summary(correction='max_t'). In "
        "the table a case counts as 0 where the expert is inactive.",
        table_note(found, "experts"),
    ]


def refuse_groups(
    options: Mapping[str, Any],
    what: str = "a picture shows all cases together",
    instead: str = ".summary(by=...)",
) -> None:
    """ArgumentError for a summary by groups: it has several rows for what is one mark, or row, here."""
    if options.get("by") is not None:
        raise ArgumentError(f"by is {shown(options['by'])}; {what}: use {instead}")


def plain(text: Any) -> str:
    """Text for a picture: one line, not too long, and never read as mathematics."""
    shown = "".join(mark if mark.isprintable() else " " for mark in str(text))
    return (shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…").replace("$", r"\$")


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure; an error with the remedy where matplotlib is missing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as failure:
        raise MissingPackageError(
            f'a picture needs matplotlib ({failure}): pip install "moetrace[plot]"'
        ) from failure
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes that a user gives, or those of a new figure. ArgumentTypeError for anything else."""
    if ax is None:
        return new_axes(width, height)
    if not (hasattr(ax, "fill_between") and hasattr(ax, "get_figure")):
        refuse_type(ax, "ax", "the Axes of a matplotlib figure, or None for a new one")
    return ax


def plot_layers(
    summary: pd.DataFrame, floor: float, ax: Axes | None = None, options: Mapping[str, Any] | None = None
) -> Axes:
    """Mean rescue by layer with the interval as a band; filled marks where the test is below 0.05.

    ``options``: what the summary was asked for, as its labels say.
    """
    given = dict(options or {})
    summary = summary.sort_values("layer", ignore_index=True)
    ax = axes_of(ax, max(5.0, 2.5 + 0.14 * len(summary)), 3.4)

    layer, mean = summary.layer.to_numpy(), summary["mean"].to_numpy()
    ax.fill_between(
        layer, summary.ci_low, summary.ci_high, color=_BLUE, alpha=0.2, lw=0, label=interval_label(**given)
    )
    ax.plot(layer, mean, color=_BLUE, lw=1.5)
    p = summary.get("p_adjusted", summary.p_value).to_numpy()
    test = f"{_LEVEL}, {correction_label(len(summary), 'layers', **given)}"
    below = p < _LEVEL
    _mark(
        ax,
        layer,
        mean,
        [
            (below, _BLUE, f"sign-flip p < {test}"),
            (p >= _LEVEL, "white", f"p ≥ {_LEVEL}" if below.any() else f"sign-flip p ≥ {test}"),
            (np.isnan(p), "#cccccc", "too few cases for a test"),
        ],
    )
    top = int(mean.argmax())
    height = summary.ci_high.iloc[top]
    ax.annotate(
        f"L{layer[top]}", (layer[top], mean[top] if np.isnan(height) else height), xytext=(0, 4),
        textcoords="offset points", ha="center", color=_BLUE, fontweight="bold",
    )  # fmt: skip
    ax.set_xlabel("layer")
    _whole_numbers(ax)
    return _finish(ax, f"Clean block output restored at one layer, {int(summary.n.iloc[0])} cases", floor)


def plot_points(
    summary: pd.DataFrame,
    names: Sequence[Any],
    title: str,
    floor: float,
    ax: Axes | None,
    marks: Sequence[tuple[Mask, str, str]] = (),
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Means with their intervals, one named point for each row of a summary.

    ``marks``: which rows, fill and label; all alike where there are none.
    """
    ax = axes_of(ax, max(4.5, 1.6 + 0.26 * len(summary)), 3.6)
    place, mean = np.arange(len(summary)), summary["mean"].to_numpy()
    if len(summary):
        label = interval_label(**(options or {}))
        ax.vlines(place, summary.ci_low, summary.ci_high, color=_BLUE, lw=1.2, label=label)
    _mark(ax, place, mean, marks or [(np.ones(len(summary), bool), _BLUE, "mean")])
    shown = [plain(name) for name in names]
    ax.set_xticks(place, shown, rotation=90 if len("".join(shown)) > 50 else 0, fontsize=8)
    ax.margins(x=0.02 if len(summary) > 8 else 0.1)
    return _finish(ax, title, floor)


def plot_experts(
    summary: pd.DataFrame,
    title: str,
    required: int,
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Experts in the order of the rows; filled marks are recurrent ones. Also has ``star``, ``active``."""
    recurrent = (summary.active >= required).to_numpy()
    marks = [
        (recurrent, _BLUE, f"clean-active in at least {required} cases"),
        (~recurrent, "white", f"clean-active in fewer than {required} cases"),
    ]
    return plot_points(summary, summary.star.tolist(), title, floor, ax, marks, options)


def plot_lines(
    lines: Mapping[str, tuple[npt.ArrayLike, pd.DataFrame]],
    title: str,
    xlabel: str,
    floor: float,
    ax: Axes | None,
    options: Mapping[str, Any] | None = None,
) -> Axes:
    """Summaries over a number, each a line with its intervals. ``lines``: label -> (x, summary)."""
    ax = axes_of(ax, 5.0, 3.4)
    interval = interval_label(**(options or {}))
    for color, (name, (x, summary)) in zip((_BLUE, _RED), lines.items(), strict=False):
        place = np.asarray(x)
        ax.fill_between(place, summary.ci_low, summary.ci_high, color=color, alpha=0.2, lw=0, label=interval)
        ax.plot(place, summary["mean"], "o-", color=color, ms=5, lw=1.5, label=plain(name))
    ax.set_xlabel(xlabel)
    return _finish(ax, title, floor)


def plot_counts(
    names: Sequence[Any], counts: Sequence[int], title: str, labels: tuple[str, str], ax: Axes | None
) -> Axes:
    """Bars of counts. ``labels``: of the axes."""
    ax = axes_of(ax, max(4.0, 1.6 + 0.3 * len(names)), 3.2)
    ax.bar(np.arange(len(names)), counts, color=_BLUE, width=0.7)
    ax.set_xticks(np.arange(len(names)), [plain(name) for name in names], fontsize=8)
    ax.tick_params(axis="x", rotation=90 if len(names) > 8 else 0)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _mark(ax: Axes, x: Any, y: Any, marks: Sequence[tuple[Mask, str, str]]) -> None:
    for chosen, fill, label in marks:
        if chosen.any():
            ax.plot(x[chosen], y[chosen], "o", mfc=fill, mec=_BLUE, ms=5, label=label)


def _whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator  # there, as there are axes

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _finish(ax: Axes, title: str, floor: float) -> Axes:
    """What all pictures of rescue share: the numerical floor, zero, a title and a legend."""
    ax.axhspan(-floor, floor, color=_GREY, alpha=0.3, lw=0, zorder=0)
    ax.axhline(0.0, color=_GREY, lw=0.8, zorder=0)
    ax.set_ylabel("mean rescue (logits)")
    ax.set_title(title, fontsize=10)
    ax.margins(y=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=8)
    return ax
