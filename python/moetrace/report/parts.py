"""What a page is made of: numbers as text, tables, and sections that say so where they have nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd

MINUS, NO_NUMBER = "\u2212", "\u2013"

HEADS = {
    "relation_id": "relation", "case_id": "case", "ci_low": "interval from", "ci_high": "to",
    "p_value": "p", "p_adjusted": "adjusted p", "positive_fraction": "share above 0", "n": "cases",
    "star": "expert", "clean_active": "clean-active", "star_rescue": "rescue",
    "control_rescue": "controls, mean",
}  # fmt: skip


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number as text, with a true minus sign; a dash for NaN.

    >>> number(-0.5, sign=True)
    '−0.500'
    """
    if value != value:
        return NO_NUMBER
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def interval(low: float, high: float) -> str:
    """An interval's ends."""
    return f"{number(low)} to {number(high)}" if low == low else "no interval (too few cases)"


def p_text(value: float) -> str:
    """A p-value, no finer than the sign flips can tell."""
    if value != value:
        return "no test (too few cases)"
    return f"p\u00a0=\u00a0{p_number(value)}"


def p_number(value: float) -> str:
    """A p-value alone: 1 of 10,000 flips is 0.0001."""
    return number(value, 4) if not value < 0.00005 else tiny(value)


def tiny(value: float) -> str:
    """A small number as a power of ten.

    >>> tiny(2.04e-06)
    '2.0 × 10⁻⁶'
    """
    digits, power = f"{value:.1e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits}\u00a0×\u00a010{raised}"


def counted(count: int, thing: str) -> str:
    """A count and what is counted: "1 case", "128 cases"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def relation_text(relation: Any) -> str:
    """A relation as a reader sees it."""
    return str(relation) or "(no relation)"


def cell(value: Any) -> str:
    """One value of a table as text."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(int(value)).replace("-", MINUS)
    if isinstance(value, Real):
        plain = float(value)
        text = f"{plain:.4g}" if plain == plain else NO_NUMBER
        return text.replace("e-", f"e{MINUS}").replace("-", MINUS)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set | np.ndarray):
        return ", ".join(cell(item) for item in value)
    return NO_NUMBER if value is None or value is pd.NA or value is pd.NaT else str(value)


@dataclass(frozen=True)
class Column:
    """Head of a column; ``numeric`` ones are set to the right and sorted as numbers."""

    head: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Text cells under heads, as the template shows them; folded away unless ``open``. ``note``: below it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    open: bool = False
    note: str = ""

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str, plain: bool = True, open: bool = False) -> Table:
        """From a DataFrame; ``plain`` turns the package's column names into words."""
        columns = []
        for place, name in enumerate(frame.columns):
            values = frame.iloc[:, place]
            numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
            head = HEADS.get(str(name), str(name).replace("_", " ")) if plain else str(name)
            columns.append(Column(head, bool(numeric)))
        texts = [p_number if str(name) in ("p_value", "p_adjusted") else cell for name in frame.columns]
        rows = [
            [text(value) for text, value in zip(texts, row, strict=True)]
            for row in frame.itertuples(index=False, name=None)
        ]
        return cls(caption, columns, rows, open)

    @classmethod
    def pairs(cls, values: Mapping[str, Any], caption: str, open: bool = False) -> Table:
        """Names and values, one pair a row; mappings inside are unfolded."""
        rows = [[name.replace("_", " "), _brief(value)] for name, value in _unfolded(values)]
        return cls(caption, [Column("name", False), Column("value", False)], rows, open)


def _brief(value: Any) -> str:
    """A value; of a long list its beginning and its length."""
    if isinstance(value, list | tuple) and len(value) > 24:
        return f"{cell(value[:8])}, … ({len(value)} in all)"
    return cell(value)


def _unfolded(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _unfolded(value, f"{prefix}{name}: ")
        else:
            found.append((f"{prefix}{name}", value))
    return found


@dataclass
class Section:
    """One part of the page.

    ``lead``: sentences above it. ``caption``: what its chart shows, with test and correction. ``tables``: the
    chart's numbers. ``data``: what the page's script reads under the section's
    id. ``absent``: why there is nothing to show.
    """

    id: str
    title: str
    lead: Sequence[str] = ()
    caption: str = ""
    label: str = ""
    tables: Sequence[Table] = ()
    data: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    absent: str = ""

    @classmethod
    def without(cls, id: str, title: str, reason: str) -> Section:
        """A section with a line that says why it is empty."""
        return cls(id, title, absent=reason)
