"""Selection on other splits and on other relations, without another forward pass (appendix D, Table 12)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.arguments import as_list
from moetrace.cases import case_keys
from moetrace.cases.positions import fold_positions, split_positions
from moetrace.effects import required_cases
from moetrace.errors import ArgumentError
from moetrace.results.comparisons import Contrast
from moetrace.results.controls import ControlledRows, gather_short
from moetrace.results.display import result_html
from moetrace.results.expert_name import Expert
from moetrace.results.pictures import plot_counts
from moetrace.results.selection import Candidates, SelectionRule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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

    def plot(self, ax: Axes | None = None) -> Axes:
        """In how many settings each expert is selected. Needs matplotlib."""
        counts = self.counts
        title = f"Experts selected in {len(self)} settings ({int(self.rows.star.isna().sum())} select none)"
        return plot_counts(counts.index.tolist(), counts.tolist(), title, ("expert", "settings"), ax)

    def __repr__(self) -> str:
        if self.modal is None:
            return f"Stability(no expert selected in any of {len(self)} settings)"
        return (
            f"Stability({self.modal} selected in {self.modal_count} of {len(self)} settings; mean validation "
            f"rescue {self.mean_rescue:+.3f}, specificity {self.mean_specificity:+.3f})"
        )

    def _repr_html_(self) -> str:
        note = "means over the validation half, in logits; uncorrected, and no p_value is given"
        return result_html(repr(self), self.rows, None, [note])


def stability(
    cases: pd.DataFrame,
    candidates: Candidates,
    rule: SelectionRule,
    controlled: ControlledRows,
    seeds: Iterable[int],
    thresholds: Iterable[float],
    fraction: float,
) -> Stability:
    """Split, select and evaluate for each seed and threshold, which takes the place of the rule's."""
    rows, short = [], []
    settings = as_list(thresholds, "thresholds", "a list of shares or numbers of cases")
    for seed in as_list(seeds, "seeds", "a list of seeds"):
        discovery, validation = map(np.array, split_positions(len(cases), seed, fraction))
        for min_active in settings:
            row: dict[str, Any] = {
                "seed": seed,
                "min_active": min_active,
                "required": required_cases(min_active, len(discovery)),
                "n": len(validation),
            }
            selection = candidates.select(replace(rule, min_active=min_active), discovery)
            if selection is not None:
                star = selection.star
                own = controlled.rows(star, validation)
                short.append(controlled.short(star, validation))
                row |= {
                    "star": str(star),
                    "layer": star.layer,
                    "expert": star.expert,
                    "recurrence": selection.recurrence,
                    "discovery_rescue": selection.rescue,
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

    @property
    def _title(self) -> str:
        return (
            f"Experts selected on other relations ({self.star} in {self.selected} of {len(self.folds)} folds)"
        )

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
    candidates: Candidates,
    rule: SelectionRule,
    controlled: ControlledRows,
    k: int,
    seed: int,
) -> HeldOut:
    """Select on the rest of each fold, evaluate on the fold; ``rows`` are in the order of the cases."""
    parts, folds, short, stars = [], [], [], []
    for fold, positions in enumerate(fold_positions(cases.relation_id.tolist(), k, seed)):
        held = np.array(sorted(positions))
        rest = np.setdiff1d(np.arange(len(cases)), held)
        selection = candidates.select(rule, rest)
        if selection is None:
            raise candidates.refusal(rule, rest)
        star = selection.star
        own = controlled.rows(star, held)
        stars.append(star)
        short.append(controlled.short(star, held))
        parts.append(own.assign(fold=fold, star=str(star)))
        folds.append(
            {
                "fold": fold,
                "star": str(star),
                "layer": star.layer,
                "expert": star.expert,
                "recurrence": selection.recurrence,
                "required": selection.required,
                "relations": tuple(sorted(set(cases.relation_id.iloc[held]))),
                "n": len(held),
                "active": int(own.clean_active.sum()),
                "rescue": own.star_rescue.mean(),
                "specificity": own.specificity.mean(),
            }
        )
    rows = pd.concat(parts).sort_index().reset_index(drop=True)
    first = [*case_keys(rows), "fold", "star"]
    rows = rows[first + [name for name in rows.columns if name not in first]]
    return HeldOut(most_frequent(stars), rows, pd.DataFrame(folds), gather_short(short))
