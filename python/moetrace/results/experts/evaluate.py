"""Rescue and specificity of whichever experts a search selects; each is worked out once."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from moetrace.results.experts.arrays import Counts
from moetrace.results.experts.controls import Controls, check_controls, draw_controls
from moetrace.results.experts.expert import Expert
from moetrace.results.experts.specificity import specificity_rows
from moetrace.results.experts.view import StarView


class Evaluator:
    """Rows of equation 7 for any star, over all cases of a trace.

    A case's controls depend on the seed and its id alone, so a subset of the rows is what
    :meth:`ExpertTrace.specificity` gives on those cases.
    """

    def __init__(self, view: Callable[[Expert], StarView], controls: int, seed: int) -> None:
        self.asked = check_controls(controls)
        self._view, self._seed = view, seed
        self._rows: dict[Expert, pd.DataFrame] = {}
        self._controls: dict[Expert, Controls] = {}

    def rows(self, star: Expert, cases: Counts) -> pd.DataFrame:
        """Rows of the cases at these positions, in this order; specificity is NaN without controls."""
        if star not in self._rows:
            view = self._view(star)
            self._controls[star] = draw_controls(view, self.asked, self._seed)
            self._rows[star] = specificity_rows(view, self._controls[star])
        return self._rows[star].iloc[cases]

    def short(self, star: Expert, cases: Counts) -> pd.DataFrame:
        """Of these cases, those with fewer controls than asked for."""
        short = self._controls[star].short
        return short[short.case_id.isin(self._controls[star].case_ids[cases])]


def gather_short(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Each case once, with the fewest controls it had."""
    columns = ["case_id", "available", "used"]
    if not tables:
        return pd.DataFrame(columns=columns, dtype="int64")
    everything = pd.concat(tables, ignore_index=True).sort_values(["used", "case_id"], kind="stable")
    return everything.drop_duplicates("case_id").sort_values("case_id").reset_index(drop=True)[columns]
