"""What all pictures share: axes, colours, names of ticks, the numerical floor, title and legend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from moetrace.arguments import refuse_type
from moetrace.errors import MissingPackageError
from moetrace.results.display import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Plot = TypeVar("Plot", bound=Callable[..., Any])
_unit: ContextVar[str] = ContextVar("moetrace_unit", default="logits")

BLUE, RED, GREY, DARK, PALE = "#1f5fa8", "#b5462f", "#777777", "#222222", "#d9d9d9"
SMALL = 8  # points, of ticks and legends
_LETTER = 4.1  # points that a letter of that size takes, generously
FAINT = 1.5  # drawing order of the cases, under means and over zero
_ROW = 13.5  # points of a row of the legend


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure, in inches; an error with the remedy where matplotlib is missing."""
    ax: Axes = _pyplot().subplots(figsize=(width, height), layout="constrained")[1]
    return ax


def new_panels(rows: int, columns: int, width: float, height: float, shared: bool = True) -> npt.NDArray[Any]:
    """Axes (rows, columns) of a new figure that share both scales, where ``shared``."""
    _, panels = _pyplot().subplots(
        rows, columns, figsize=(width, height), layout="constrained", sharex=shared, sharey=shared,
        squeeze=False,
    )  # fmt: skip
    found: npt.NDArray[Any] = panels
    return found


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as failure:
        raise MissingPackageError(
            f'a picture needs matplotlib ({failure}): pip install "moetrace[plot]"'
        ) from failure
    return plt


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes that a user gives, or those of a new figure. ArgumentTypeError for anything else."""
    if ax is None:
        return new_axes(width, height)
    if not (hasattr(ax, "fill_between") and hasattr(ax, "get_figure")):
        refuse_type(ax, "ax", "the Axes of a matplotlib figure, or None for a new one")
    return ax


def mark(ax: Axes, x: Any, y: Any, marks: Sequence[tuple[Mask, str, str]], size: float = 5) -> None:
    """Round marks in several fills. ``marks``: which points, fill and label."""
    for chosen, fill, label in marks:
        if chosen.any():
            ax.plot(x[chosen], y[chosen], "o", mfc=fill, mec=BLUE, ms=size, label=label, zorder=3)


def star(ax: Axes, place: npt.NDArray[Any], label: str) -> None:
    """Stars along the lower edge, at what passed a test; the legend also says where nothing did."""
    low = ax.get_xaxis_transform()
    label = label if len(place) else f"none at {label}"
    ax.plot(place, np.full(len(place), 0.025), "*", color=DARK, ms=6, ls="", label=label, transform=low)


def name_ticks(ax: Axes, names: Sequence[Any], place: Any = None) -> None:
    """Names along the lower edge, turned where they wouldn't fit."""
    shown = [plain(name) for name in names]
    where = np.arange(len(shown)) if place is None else place
    longest = max(map(len, shown), default=0)
    turned = len(shown) * (longest + 2) * _LETTER > width_of(ax)
    ax.set_xticks(where, shown, rotation=90 if turned else 0, fontsize=SMALL)


def whole_numbers(ax: Axes) -> None:
    """Ticks of the lower edge at integers."""
    from matplotlib.ticker import MaxNLocator  # there, as there are axes

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def width_of(ax: Axes) -> float:
    """Points that the axes are wide, about: a layout that is worked out on drawing makes them wider."""
    figure: Any = ax.figure
    growth = 1.1 if figure.get_layout_engine() is not None else 1.0
    return float(growth * ax.get_position().width * figure.get_figwidth() * 72)


def of_its_metric(plot: Plot) -> Plot:
    """For the ``plot`` of a result: labels name the unit of its metric in the place of logits."""

    @wraps(plot)
    def drawn(self: Any, *args: Any, **options: Any) -> Any:
        before = _unit.set(self.unit)
        try:
            return plot(self, *args, **options)
        finally:
            _unit.reset(before)

    return cast("Plot", drawn)


def in_unit(label: str) -> str:
    """A label in the unit of what is drawn.

    >>> in_unit("mean rescue (logits)")
    'mean rescue (logits)'
    """
    return label.replace("logits", _unit.get())


def floor_band(ax: Axes, floor: float, horizontal: bool = False) -> None:
    """Zero, and around it what numerics alone can give."""
    span, line = (ax.axvspan, ax.axvline) if horizontal else (ax.axhspan, ax.axhline)
    if floor > 0:
        label = in_unit(f"numerical floor, ±{floor:.1e} logits")
        span(-floor, floor, color=GREY, alpha=0.35, lw=0, zorder=0, label=label)
    line(0.0, color=GREY, lw=0.8, zorder=0)


def finish(
    ax: Axes, title: str, floor: float, ylabel: str = "mean rescue (logits)", horizontal: bool = False
) -> Axes:
    """What all pictures of rescue share: the numerical floor, zero, a label, a title and a legend."""
    floor_band(ax, floor, horizontal)
    if horizontal:
        ax.set_xlabel(in_unit(ylabel), fontsize=9)
    else:
        ax.set_ylabel(in_unit(ylabel), fontsize=9)
        ax.margins(y=0.1)
    return dress(ax, title)


def dress(ax: Axes, title: str, above: bool = False) -> Axes:
    """Title at the left, the legend under it and above the data, no frame.

    In a figure of the user's that has no layout the legend stands among the data, unless ``above``.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    handles, labels = ax.get_legend_handles_labels()
    rows = 0
    figure: Any = ax.figure
    if labels and not above and figure.get_layout_engine() is None:
        ax.legend(handles, labels, loc="best", fontsize=SMALL, framealpha=0.85, edgecolor="none")
    elif labels:
        columns = _columns(labels, width_of(ax))
        rows = ceil(len(labels) / columns)
        legend = ax.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False,
            fontsize=SMALL, borderaxespad=0.3, borderpad=0, handlelength=1.7, columnspacing=1.5,
        )  # fmt: skip
        for key, handle in zip(legend.legend_handles, handles, strict=True):
            if key is not None and handle.get_zorder() == FAINT:  # else too faint to be told apart
                key.set_alpha(0.9)
    ax.set_title(title, fontsize=10, x=0, ha="left", pad=6 + _ROW * rows)
    return ax


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns of a legend fit; it is filled column by column."""
    for columns in range(min(len(labels), 4), 1, -1):
        parts = np.array_split(np.array([len(label) for label in labels]), columns)
        if sum(part.max() * _LETTER + 36 for part in parts) <= width:
            return columns
    return 1
