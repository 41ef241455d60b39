"""Specificity of an expert against active-random controls (equation 7)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from moetrace.results.experts.contrast import Contrast
from moetrace.results.experts.controls import Controls
from moetrace.results.experts.view import StarView


@dataclass(frozen=True, eq=False, repr=False)
class Specificity(Contrast):
    """Rescue of an expert minus the mean rescue of its controls, case by case.

    >>> spec = held.specificity(star, controls=3, seed=0)
    >>> spec.mean, spec.summary(), spec.summary(by="relation_id")

    Attributes:
        rows: case_id, relation_id, star_rescue (0 where the star isn't clean-active), control_rescue,
            specificity (logits), clean_active (the star's), controls (a tuple of expert numbers).
        short_cases: case_id, available, used: cases with fewer other clean-active experts than asked for.
            Those with none (used 0) have no specificity and no row.
        controls: how many were asked for. seed: of their draw.
    """

    short_cases: pd.DataFrame
    controls: int
    seed: int

    def _remarks(self) -> list[str]:
        active = int(self.rows.clean_active.sum())
        remarks = [
            f"clean-active in {active} of {len(self)} cases; {self.controls} controls each, seed {self.seed}"
        ]
        if len(self.short_cases):
            without = int((self.short_cases.used == 0).sum())
            remarks.append(f"{len(self.short_cases)} cases have fewer controls, {without} of them none")
        return remarks

    def __repr__(self) -> str:
        return f"Specificity({self.star}: {self._means()}; {'; '.join(self._remarks())})"


def specificity_rows(view: StarView, controls: Controls) -> pd.DataFrame:
    """One row for each case; NaN where it has no control."""
    return pd.DataFrame(
        {
            "case_id": view.cases.case_id,
            "relation_id": view.cases.relation_id,
            "star_rescue": view.star_rescue,
            "control_rescue": controls.rescue,
            "specificity": view.star_rescue - controls.rescue,
            "clean_active": view.star_active,
            "controls": list(controls.experts),
        }
    )


def specificity(view: StarView, controls: Controls, seed: int) -> Specificity:
    """Equation 7 over the cases that have a control."""
    rows = specificity_rows(view, controls).dropna(subset="specificity").reset_index(drop=True)
    return Specificity(view.star, rows, controls.short, controls.asked, seed)
