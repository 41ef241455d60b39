"""The paper's printed figures beside the run's, where the model is one of the paper's."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moetrace.report.embed import floats
from moetrace.report.parts import Section, Table
from moetrace.report.source import Source

MODELS = {"qwen3-30b-a3b": "Qwen3-30B-A3B-Base", "mixtral-8x7b": "Mixtral-8x7B-v0.1"}
# What a column of the comparison may be called, for the chart; the table shows all of them as they are.
COLUMNS = {
    "name": ("quantity", "name", "figure"),
    "mean": ("mean", "run", "value", "run_mean"),
    "low": ("ci_low", "run_low", "low"),
    "high": ("ci_high", "run_high", "high"),
    "paper": ("paper", "paper_mean", "printed"),
    "paper_low": ("paper_low", "paper_ci_low", "printed_low"),
    "paper_high": ("paper_high", "paper_ci_high", "printed_high"),
}


def comparison_section(source: Source, name: str | None) -> Section:
    """Run and paper side by side, or why not. ``name``: of the paper's model; None finds it by the run's."""
    title = "Beside the paper"
    compare = source.comparison()
    chosen = name or next((key for key in MODELS if key in source.model_name.lower()), None)
    if chosen is None:
        return Section.without(
            "paper", title,
            f"{source.model_name} is none of the paper's models, so there is nothing to compare it with.",
        )  # fmt: skip
    if compare is None:
        return Section.without("paper", title, "This run can't be compared with printed figures.")
    result = compare(chosen)
    table = result if isinstance(result, pd.DataFrame) else getattr(result, "table", None)
    table = table() if callable(table) else table
    if not isinstance(table, pd.DataFrame) or table.empty:
        return Section.without("paper", title, f"The comparison with {chosen} has no figures.")
    columns = {key: next((own for own in names if own in table), None) for key, names in COLUMNS.items()}
    data: dict[str, Any] = {}
    if columns["name"] and columns["mean"] and columns["paper"]:
        data = {
            key: table[own].astype(str).tolist() if key == "name" else floats(table[own])
            for key, own in columns.items()
            if own is not None
        }
    model = MODELS.get(chosen, chosen)
    caption = (
        f"Blue: this run, with its 95 % interval. Grey: as the paper prints it for {model}, with its "
        "interval where it prints one. No test is made here: the table says whether the run's interval "
        "covers the printed mean."
    )
    return Section(
        "paper", title,
        [f"The figures that the paper prints for {model}, beside those of this run."],
        caption if data else "",
        f"Dot chart of this run's figures and the paper's for {model}",
        [Table.of(table, f"This run and the paper, {model}", open=True)], data,
    )  # fmt: skip
