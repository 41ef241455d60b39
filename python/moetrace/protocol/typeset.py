"""Tables as the paper prints them: what each column is called, and how its numbers look.

A table is a DataFrame of plain numbers; an estimate ``x`` stands beside ``x_low`` and ``x_high``, a count
``x`` beside ``x_of``. Here its columns become cells such as "+0.901 [+0.752, +1.053]" and "116/128".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

Row = Mapping[str, Any]
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
        "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What stands in a column: as plain text and as LaTeX."""

    text: str
    latex: str


@dataclass(frozen=True)
class Column:
    """A printed column. ``names``: the columns of the DataFrame that it shows, the first of which it is."""

    heading: str
    names: tuple[str, ...]
    cell: Callable[[Row], Cell]
    latex: str = ""
    left: bool = False


def tex(text: Any) -> str:
    """Any text as LaTeX."""
    return " ".join(str(text).split()).translate(_TEX)


def text(name: str, heading: str) -> Column:
    """A column of words."""

    def cell(row: Row) -> Cell:
        value = "–" if _missing(row[name]) else str(row[name])
        return Cell(value, "--" if value == "–" else tex(value))

    return Column(heading, (name,), cell, left=True)


def count(name: str, heading: str, latex: str = "", of: bool = False) -> Column:
    """A column of whole numbers, as "116/128" where ``of`` is given."""

    def cell(row: Row) -> Cell:
        if _missing(row[name]):
            return Cell("–", "--")
        value = f"{int(row[name])}/{int(row[f'{name}_of'])}" if of else f"{int(row[name])}"
        return Cell(value, value)

    return Column(heading, (name, *([f"{name}_of"] if of else [])), cell, latex)


def number(name: str, heading: str, spec: str = ".2f", latex: str = "") -> Column:
    """A column of numbers without an interval."""

    def cell(row: Row) -> Cell:
        value = "–" if _missing(row[name]) else format(float(row[name]), spec)
        return Cell(value, "--" if value == "–" else f"${value}$")

    return Column(heading, (name,), cell, latex)


def estimate(name: str, heading: str, latex: str = "") -> Column:
    """A column of means with their intervals, in logits."""

    def cell(row: Row) -> Cell:
        mean, low, high = (float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
        if _missing(mean):
            return Cell("–", "--")
        if _missing(low):
            return Cell(f"{mean:+.3f}", f"${mean:+.3f}$")
        return Cell(
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
            rf"${mean:+.3f}$ {{\scriptsize $[{low:+.3f},{high:+.3f}]$}}",
        )

    return Column(heading, (name, f"{name}_low", f"{name}_high"), cell, latex)


def metric(name: str = "value", heading: str = "Value") -> Column:
    """A column whose rows are of different kinds: the row's ``form`` says which."""
    forms = {
        "estimate": estimate(name, heading).cell,
        "count": count(name, heading).cell,
        "of": count(name, heading, of=True).cell,
        "number": number(name, heading).cell,
    }
    names = (name, f"{name}_low", f"{name}_high", f"{name}_of", "form")
    return Column(heading, names, lambda row: forms[row["form"]](row))


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Layout:
    """How one of the paper's tables is printed."""

    number: str
    caption: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Columns of the DataFrame."""
        return [name for column in self.columns for name in column.names]

    def markdown(self, table: pd.DataFrame) -> str:
        """The table in Markdown, with its caption."""
        lines = [f"**Table {self.number}.** {_md(self.caption)}", ""]
        if len(table):
            lines.append("| " + " | ".join(_md(column.heading) for column in self.columns) + " |")
            lines.append("|" + "|".join(" :-- " if column.left else " --: " for column in self.columns) + "|")
            lines += [
                "| " + " | ".join(_md(column.cell(row).text) for column in self.columns) + " |"
                for row in table.to_dict("records")
            ]
        if table.attrs.get("note"):
            lines += ["", _md(table.attrs["note"])] if len(table) else [_md(table.attrs["note"])]
        return "\n".join(lines) + "\n"

    def latex(self, table: pd.DataFrame) -> str:
        """The table in LaTeX; needs booktabs."""
        widths = "".join("l" if column.left else "r" for column in self.columns)
        if self.number in ("2", "4", "8"):  # lines of text
            widths = widths[:-1] + r"p{0.7\linewidth}"
        lines = [r"\begin{table}[t]", r"\centering", r"\small"]
        if len(table):
            lines += [rf"\begin{{tabular}}{{{widths}}}", r"\toprule"]
            lines += [" & ".join(column.latex or tex(column.heading) for column in self.columns) + r" \\"]
            lines.append(r"\midrule")
            lines += [
                " & ".join(column.cell(row).latex for column in self.columns) + r" \\"
                for row in table.to_dict("records")
            ]
            lines += [r"\bottomrule", r"\end{tabular}"]
        note = table.attrs.get("note")
        told = f"{self.caption} {note}" if note else self.caption
        lines += [rf"\caption{{{tex(told)}}}", rf"\label{{tab:moetrace-{self.number}}}", r"\end{table}"]
        return "\n".join(lines) + "\n"


def _md(value: str) -> str:
    """Text that is no mark of Markdown, and no HTML."""
    plain = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "|", "*", "`"):
        plain = plain.replace(mark, "\\" + mark)
    return plain
