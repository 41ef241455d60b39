"""Does selection depend on the split or on the recurrence threshold (appendix D)?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from moetrace.errors import ArgumentError
from moetrace.results.experts.arrays import Counts
from moetrace.results.experts.evaluate import Evaluator, gather_short
from moetrace.results.experts.expert import Expert
from moetrace.results.experts.partition import split_positions
from moetrace.results.experts.select import Choice, required_cases

_COLUMNS = [
    "seed", "min_active", "required", "star", "layer", "expert", "recurrence", "discovery_rescue",
    "rescue", "specificity", "active", "n",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """What each setting selects, and how it does on the cases that weren't used to select it.

    >>> stable = experts.stability()
    >>> stable.modal, stable.modal_count, stable.mean_rescue, stable.mean_specificity

    Attributes:
        rows: one row for each split seed and threshold: seed, min_active (as given), required (cases of the
            discovery half), star (its name), layer, expert, recurrence and discovery_rescue (on the
            discovery half), rescue, specificity and active (on the validation half), n (its size).
            Where no expert reaches the threshold the star is missing and the figures are NaN.
        short_cases: case_id, available, used: cases with fewer controls than asked for with some star.
    """

    rows: pd.DataFrame
    short_cases: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def modal(self) -> Expert | None:
        """The expert selected most often, of equal ones the lowest; None if no setting selects any."""
        counts = self.counts
        return None if counts.empty else Expert.parse(str(counts.index[0]))

    @property
    def modal_count(self) -> int:
        """In how many settings it is selected."""
        counts = self.counts
        return 0 if counts.empty else int(counts.iloc[0])

    @property
    def counts(self) -> pd.Series:
        """Expert name -> number of settings that select it, most often first."""
        found = Counter(Expert.parse(name) for name in self.rows.star.dropna())
        order = sorted(found, key=lambda expert: (-found[expert], expert))
        return pd.Series({str(expert): found[expert] for expert in order}, name="settings", dtype="int64")

    @property
    def mean_rescue(self) -> float:
        """Validation rescue averaged over the settings that select an expert."""
        return float(self.rows.rescue.mean())

    @property
    def mean_specificity(self) -> float:
        """Validation specificity averaged over the settings that select an expert."""
        return float(self.rows.specificity.mean())

    def __repr__(self) -> str:
        if self.modal is None:
            return f"Stability(no expert selected in any of {len(self)} settings)"
        return (
            f"Stability({self.modal} selected in {self.modal_count} of {len(self)} settings; mean validation "
            f"rescue {self.mean_rescue:+.3f}, specificity {self.mean_specificity:+.3f})"
        )

    def _repr_html_(self) -> str:
        table = self.rows.to_html(index=False, float_format="%.4g", escape=True)
        return f"<p><b>{escape(repr(self))}</b></p>\n{table}"


def stability(
    cases: pd.DataFrame,
    choose: Callable[[float, Counts], Choice | None],
    evaluator: Evaluator,
    seeds: Iterable[int],
    thresholds: Iterable[float],
    fraction: float,
) -> Stability:
    """Split, select and evaluate for each seed and threshold; no forward pass is needed."""
    rows, short = [], []
    settings = list(thresholds)
    for seed in seeds:
        discovery, validation = split_positions(cases, seed, fraction)
        for min_active in settings:
            row: dict[str, Any] = {
                "seed": seed,
                "min_active": min_active,
                "required": required_cases(min_active, len(discovery)),
                "n": len(validation),
            }
            choice = choose(min_active, discovery)
            if choice is not None:
                star = choice.star
                own = evaluator.rows(star, validation)
                short.append(evaluator.short(star, validation))
                row |= {
                    "star": str(star),
                    "layer": star.layer,
                    "expert": star.expert,
                    "recurrence": choice.recurrence,
                    "discovery_rescue": choice.rescue,
                    "rescue": own.star_rescue.mean(),
                    "specificity": own.specificity.mean(),
                    "active": int(own.clean_active.sum()),
                }
            rows.append(row)
    if not rows:
        raise ArgumentError("there is no setting; expected at least one seed and one threshold")
    table = pd.DataFrame(rows, columns=_COLUMNS)
    counts = dict.fromkeys(("layer", "expert", "recurrence", "active"), "Int64")
    figures = dict.fromkeys(("discovery_rescue", "rescue", "specificity"), "float64")
    return Stability(table.astype({**counts, **figures, "star": object}), gather_short(short))
