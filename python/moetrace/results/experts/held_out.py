"""Selection on some relations, evaluation on the others (Table 12)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from moetrace.results.experts.arrays import Counts
from moetrace.results.experts.contrast import Contrast
from moetrace.results.experts.evaluate import Evaluator, gather_short
from moetrace.results.experts.expert import Expert
from moetrace.results.experts.select import Choice


@dataclass(frozen=True, eq=False, repr=False)
class HeldOut(Contrast):
    """Each fold's selected expert on the fold's cases, which weren't used to select it.

    >>> held_out = experts.held_out()
    >>> held_out.star, held_out.selected, held_out.active, held_out.summary()

    Attributes:
        star: the expert selected in most folds, of equal ones the lowest.
        rows: one row for each case: case_id, relation_id, fold, star (its fold's), star_rescue,
            control_rescue, specificity (NaN where a case has no control), clean_active, controls.
        folds: one row for each fold: fold, star, layer, expert, recurrence (in the rest), required,
            relations (held out), n, active, rescue, specificity.
        short_cases: case_id, available, used: cases with fewer controls than asked for.
    """

    folds: pd.DataFrame
    short_cases: pd.DataFrame

    @property
    def selected(self) -> int:
        """In how many folds ``star`` is selected."""
        return int((self.folds.star == str(self.star)).sum())

    @property
    def active(self) -> int:
        """Held-out cases in which their fold's expert is clean-active."""
        return int(self.rows.clean_active.sum())

    def _remarks(self) -> list[str]:
        return [
            f"selected in {self.selected} of {len(self.folds)} folds; "
            f"clean-active in {self.active} of {len(self)} held-out cases"
        ]

    def __repr__(self) -> str:
        return f"HeldOut({self.star} {self._remarks()[0]}: {self._means()})"


def most_frequent(stars: list[Expert]) -> Expert:
    """The expert that occurs most often, of equal ones the lowest."""
    counts = Counter(stars)
    return min(counts, key=lambda star: (-counts[star], star))


def held_out(
    cases: pd.DataFrame,
    partition: list[tuple[Counts, Counts]],
    choose: Callable[[Counts], Choice],
    evaluator: Evaluator,
) -> HeldOut:
    """Select on the rest of each fold, evaluate on the fold; ``rows`` are in the order of the cases."""
    parts, folds, short, stars = [], [], [], []
    for fold, (rest, held) in enumerate(partition):
        choice = choose(rest)
        star = choice.star
        own = evaluator.rows(star, held)
        stars.append(star)
        short.append(evaluator.short(star, held))
        parts.append(own.assign(fold=fold, star=str(star)))
        folds.append(
            {
                "fold": fold,
                "star": str(star),
                "layer": star.layer,
                "expert": star.expert,
                "recurrence": choice.recurrence,
                "required": choice.required,
                "relations": tuple(sorted(set(cases.relation_id.iloc[held]))),
                "n": len(held),
                "active": int(own.clean_active.sum()),
                "rescue": own.star_rescue.mean(),
                "specificity": own.specificity.mean(),
            }
        )
    rows = pd.concat(parts).sort_index().reset_index(drop=True)
    first = ["case_id", "relation_id", "fold", "star"]
    rows = rows[first + [name for name in rows.columns if name not in first]]
    return HeldOut(most_frequent(stars), rows, pd.DataFrame(folds), gather_short(short))
