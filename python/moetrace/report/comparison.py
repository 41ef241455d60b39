"""The paper's printed figures beside the run's, where the model is one of the paper's."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moetrace.report.embed import floats
from moetrace.report.parts import Section, Table
from moetrace.report.source import Source

MODELS = {"qwen3-30b-a3b": "Qwen3-30B-A3B-Base", "mixtral-8x7b": "Mixtral-8x7B-v0.1"}
SHOWN = 40  # figures in the chart
_DRAWN = ("printed", "printed_low", "printed_high", "run", "run_low", "run_high")
_LISTED = {
    "table": "table", "row": "row", "figure": "figure", "printed_text": "printed", "run_text": "this run",
    "covers": "interval covers printed mean", "note": "note",
}  # fmt: skip


def comparison_section(source: Source, name: str | None) -> Section:
    """Run and paper side by side, or why not. ``name``: of the paper's model; None finds it by the run's."""
    title = "Beside the paper"
    chosen = name or next((key for key in MODELS if key in source.model_name.lower()), None)
    if chosen is None:
        return Section.without(
            "paper", title,
            f"{source.model_name} is none of the paper's models, so there is nothing to compare it with.",
        )  # fmt: skip
    compare = source.comparison()
    if compare is None:
        return Section.without("paper", title, "This run can't be compared with printed figures.")
    rows: pd.DataFrame = compare(chosen).rows
    if rows.empty:
        return Section.without("paper", title, f"The paper prints no figures of {chosen}.")
    model, known = MODELS[chosen], rows.covers.dropna()
    drawn = rows.dropna(subset=["printed_low", "run_low"]).head(SHOWN)
    lead = [
        f"The figures that the paper prints for {model}, beside those of this run: {int(known.sum())} of "
        f"{len(known)} printed means lie within the run's own intervals."
    ]
    caption = (
        f"Blue: this run, with its {source.level} interval; filled where it covers the printed mean. Grey: "
        f"as the paper prints it for {model}. Figures with an interval on both sides; no test is made here."
    )
    table = rows[list(_LISTED)].assign(covers=rows.covers.map({True: "yes", False: "no"}).fillna(""))
    return Section(
        "paper", title, lead, caption if len(drawn) else "",
        f"Dot chart of {len(drawn)} figures of this run and of the paper's for {model}",
        [Table.of(table.rename(columns=_LISTED), f"This run and the paper, {model}")],
        _chart(drawn) if len(drawn) else {},
    )  # fmt: skip


def _chart(drawn: pd.DataFrame) -> dict[str, Any]:
    names = [
        # A row is named by its column and what stands in it: "metric Rescue".
        f"Table {row.table}{', ' * bool(row.row)}{row.row.partition(' ')[2]}: {row.figure.replace('_', ' ')}"
        for row in drawn.itertuples()
    ]
    data: dict[str, Any] = {"name": names, "covers": drawn.covers.astype(bool).tolist()}
    return data | {column: floats(drawn[column]) for column in _DRAWN}
