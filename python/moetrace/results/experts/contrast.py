"""Per-case figures of an expert, and their summary."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import pandas as pd

from moetrace.results.display import result_html
from moetrace.results.experts.arrays import Floats
from moetrace.results.experts.expert import Expert
from moetrace.results.trace_result import TraceResult


def summarise(effects: Floats, names: pd.DataFrame, cases: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """:meth:`TraceResult.summary` of any columns over cases; ``names`` has a row for each column."""
    result = TraceResult(
        cases.reset_index(drop=True), names.reset_index(drop=True), effects, effects, pd.DataFrame(), {}
    )
    return result.summary(**options)


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """An expert's rescue beside that of others, case by case.

    ``rows``: one row for each case, with case_id and relation_id. ``star``: the expert.
    """

    star: Expert
    rows: pd.DataFrame

    # What the summary calls a quantity, and the column of rows that holds it; the contrast comes last.
    quantities: ClassVar[dict[str, str]] = {
        "rescue": "star_rescue",
        "control": "control_rescue",
        "specificity": "specificity",
    }

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean(self) -> float:
        """Mean specificity over the cases, in logits."""
        return float(self.rows.specificity.mean())

    @property
    def positive_fraction(self) -> float:
        """Share of the cases with positive specificity."""
        known = self.rows.specificity.dropna()
        return float((known > 0).mean())

    def summary(self, **options: Any) -> pd.DataFrame:
        """Mean, interval and test of each quantity (Table 1; with ``by="relation_id"`` Table 5).

        >>> held.specificity(star).summary(by="relation_id")

        One row each for rescue, control and specificity: quantity, mean, positive_fraction, ci_low,
        ci_high, p_value, n. ``options`` are those of :meth:`ExpertTrace.summary`.
        """
        effects = self.rows[list(self.quantities.values())].to_numpy(dtype=float)
        names = pd.DataFrame({"quantity": list(self.quantities)})
        return summarise(effects, names, self.rows[["case_id", "relation_id"]], **options)

    def _means(self) -> str:
        means = (f"{name} {self.rows[column].mean():+.3f}" for name, column in self.quantities.items())
        return ", ".join(means)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.star}: {self._means()}; {len(self)} cases)"

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.summary(), pd.DataFrame()) + self._notes()

    def _notes(self) -> str:
        return "".join(f"<p>{escape(note)}</p>" for note in self._remarks())

    def _remarks(self) -> list[str]:
        """What a reader should know beside the table."""
        return []
