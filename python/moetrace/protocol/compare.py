"""The paper's printed figures beside a run's."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from moetrace.arguments import as_choice
from moetrace.protocol.settings import NOISE
from moetrace.protocol.tables import relation_counts
from moetrace.results.display import plain
from moetrace.results.pictures.axes import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.protocol.report import Report

_COLUMNS = [
    "table", "row", "figure", "printed", "printed_low", "printed_high", "run", "run_low", "run_high",
    "covers", "printed_text", "run_text", "note",
]  # fmt: skip
_PRINTED, _RUN = "#777777", "#1f5fa8"
_NAN = float("nan")


@cache
def published() -> dict[str, Any]:
    """The figures of arXiv:2606.03780v1, by model."""
    text = (resources.files("moetrace.protocol") / "published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Printed figures beside a run's.

    >>> found = report.compare("qwen3-30b-a3b")
    >>> found.rows[found.rows.covers == False], found.plot()

    Attributes:
        name: the printed model.
        model: what the run calls its own, and its corruption where that isn't the paper's noise.
        rows: one row for each printed figure: table ("D" is appendix D), row, figure (a column of the run's
            table), printed with printed_low and printed_high, run with run_low and run_high, covers (whether
            the run's interval covers the printed mean; missing where the run has none), both as text, and a
            note where the paper contradicts itself.
        shared_cases: of the printed case ids (Table 8), how many the run has in the same half.
    """

    name: str
    model: str
    rows: pd.DataFrame
    shared_cases: dict[str, tuple[int, int]]

    @property
    def covered(self) -> tuple[int, int]:
        """How many printed means the run's intervals cover, and of how many."""
        known = self.rows.covers.dropna()
        return int(known.sum()), len(known)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Means with intervals, printed and run's, a line each. Needs matplotlib."""
        shown = self.rows.dropna(subset=["printed_low", "run_low"]).iloc[::-1]
        ax = axes_of(ax, 7.5, 1.4 + 0.3 * max(1, len(shown)))
        for place, (_, row) in enumerate(shown.iterrows()):
            for kind, color, shift in (("printed", _PRINTED, 0.14), ("run", _RUN, -0.14)):
                filled = kind == "printed" or bool(row.covers)
                ax.plot(
                    [row[f"{kind}_low"], row[f"{kind}_high"]], [place + shift] * 2, color=color, lw=2,
                    solid_capstyle="butt",
                )  # fmt: skip
                ax.plot(row[kind], place + shift, "o", color=color, ms=5, mfc=color if filled else "white")
        for kind, color in ((f"printed ({self.name})", _PRINTED), (f"this run ({self.model})", _RUN)):
            ax.plot([], [], "o-", color=color, label=plain(kind), ms=5, lw=2)
        ax.plot([], [], "o", color=_RUN, mfc="white", ms=5, label="its interval misses the printed mean")
        ax.set_yticks(range(len(shown)), [plain(_named(row)) for _, row in shown.iterrows()], fontsize=8)
        ax.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
        ax.set_xlabel("logits (Table 7: ratios)")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(-0.7, len(shown) - 0.3)
        ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=1)
        return ax

    def __repr__(self) -> str:
        hit, of = self.covered
        return (
            f"Comparison({self.model} with the printed {self.name}: {hit} of {of} printed means are within "
            f"the run's intervals, {len(self.rows)} figures)"
        )

    def _repr_html_(self) -> str:
        shown = self.rows[["table", "row", "figure", "printed_text", "run_text", "covers", "note"]]
        return f"<p><b>{escape(repr(self))}</b></p>{shown.to_html(index=False, escape=True, na_rep='')}"


def compare(report: Report, name: str) -> Comparison:
    """A run beside the printed figures of ``name``. ArgumentError for a model that the paper hasn't."""
    models = published()["models"]
    name = as_choice(name, "name", tuple(models))
    printed = models[name]
    rows = [_row(report, figure) for figure in printed["figures"]]
    shared = {}
    for split, ids in printed["case_ids"].items():
        own = {case.case_id for case in report.cases[split]}
        shared[split] = (len(own.intersection(ids)), len(ids))
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"covers": "boolean"})
    corruption = report.settings.corruption
    label = report.label if corruption == NOISE else f"{report.label}, corruption {corruption!r}"
    return Comparison(name, label, table, shared)


def _row(report: Report, figure: dict[str, Any]) -> dict[str, Any]:
    run = _of_run(report, figure)
    low, value, high = (_float(run.get(key)) for key in ("low", "value", "high"))
    printed = {key: _float(figure.get(key)) for key in ("value", "low", "high")}
    known = not (math.isnan(low) or math.isnan(printed["value"]))
    return {
        "table": figure["table"],
        "row": ", ".join(f"{key} {item}" for key, item in figure["row"].items()),
        "figure": figure["figure"],
        "printed": printed["value"],
        "printed_low": printed["low"],
        "printed_high": printed["high"],
        "run": value,
        "run_low": low,
        "run_high": high,
        "covers": low <= printed["value"] <= high if known else None,
        "printed_text": figure.get("text") or _shown(printed["value"], printed["low"], printed["high"]),
        "run_text": run.get("text") or _shown(value, low, high),
        "note": figure.get("note", ""),
    }


def _of_run(report: Report, figure: dict[str, Any]) -> dict[str, Any]:
    """The run's own: value, low and high, or text; empty where it has none."""
    number, column = figure["table"], figure["figure"]
    if number == "D":
        stable = report.stability
        value = None if stable is None else getattr(stable, column)
        return {} if value is None else {"text": str(value)} if column == "modal" else {"value": value}
    if number == "4":
        counts = dict(relation_counts(report.cases["usable"]))
        return {"value": counts.get(figure["row"]["relation"], 0)}
    table = report.tables[number]
    for key, item in figure["row"].items():
        table = table[table[key] == item]
    if table.empty:
        return {}
    row = table.iloc[0]
    if "text" in figure:
        return {"text": str(row[column])} if isinstance(row[column], str) else {}
    return {"value": row[column], "low": row.get(f"{column}_low"), "high": row.get(f"{column}_high")}


def _float(value: Any) -> float:
    return _NAN if value is None or value is pd.NA else float(value)


def _shown(value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:g}" if value == int(value) and abs(value) >= 1 else f"{value:+.3f}"
    return text if math.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _named(row: Any) -> str:
    what = str(row.figure).replace("_", " ")
    of = f", {row.row.partition(' ')[2]}" if row.row else ""
    return f"Table {row.table}{of}: {what}"
