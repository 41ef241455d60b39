"""One expert among the others of its layer, and the active-random controls that it is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from moetrace.effects import all_active, draw_controls, mean_over_set, specificity
from moetrace.errors import ArgumentError, MoetraceWarning
from moetrace.results.expert_arrays import Bools, Counts, Floats
from moetrace.results.expert_name import Expert, NeverActiveError


class NoControlsError(ArgumentError):
    """The expert is alone wherever it is clean-active, so there is nothing to compare it with."""


class FewControlsWarning(MoetraceWarning):
    """Some cases have fewer other clean-active experts than controls were asked for."""


@dataclass(frozen=True, eq=False)
class ExpertInLayer:
    """What the comparisons read: all experts of the star's layer, in the order of their numbers.

    ``rescue`` and ``active``: (cases, experts of the layer), the rescue 0 where not clean-active.
    ``cases``: case_id, relation_id, and true and foil where known. ``column``: the star's.
    """

    star: Expert
    column: int
    experts: Counts
    cases: pd.DataFrame
    rescue: Floats
    active: Bools
    noised_active: Bools

    @property
    def star_rescue(self) -> Floats:
        """Rescue of the star in every case; 0 where it isn't clean-active."""
        own: Floats = self.rescue[:, self.column]
        return own

    @property
    def star_active(self) -> Bools:
        """Where the star is clean-active."""
        own: Bools = self.active[:, self.column]
        return own

    @property
    def others(self) -> Bools:
        """A⁻(x), equation 11, as bools (cases, experts)."""
        return all_active(self.active, self.column)

    def refuse_incomparable(self) -> None:
        """NeverActiveError for a star that is clean-active nowhere, NoControlsError for one that is alone."""
        if not self.star_active.any():
            raise NeverActiveError(
                f"{self.star} is clean-active in none of the {len(self.cases)} cases, so it was never "
                "patched and there is nothing to compare; .candidates() lists the experts that are"
            )
        both = self.star_active & self.others.any(axis=1)
        if not both.any():
            raise NoControlsError(
                f"{self.star} is the only clean-active expert of its layer in all "
                f"{int(self.star_active.sum())} cases where it is clean-active; a comparison needs another "
                "one (a model that routes to one expert has none). Use .rows or .summary() for its rescue "
                "alone"
            )


@dataclass(frozen=True, eq=False)
class Controls:
    """Controls of every case: ``drawn``, bool (cases, experts of the layer), of so many ``asked`` for."""

    compared: ExpertInLayer
    asked: int
    drawn: Bools

    @classmethod
    def draw(cls, compared: ExpertInLayer, asked: int, seed: int) -> Controls:
        """Table 2's draw."""
        case_ids = compared.cases.case_id.to_numpy(np.int64)
        return cls(compared, asked, draw_controls(compared.others, asked, case_ids, seed))

    @property
    def specificity(self) -> Floats:
        """Equation 7 in every case; NaN where a case has no control."""
        return specificity(self.compared.rescue, self.compared.column, self.drawn)

    @property
    def rows(self) -> pd.DataFrame:
        """One row for each case; NaN where it has no control."""
        compared = self.compared
        return compared.cases.assign(
            star_rescue=compared.star_rescue,
            control_rescue=mean_over_set(compared.rescue, self.drawn),
            specificity=self.specificity,
            clean_active=compared.star_active,
            controls=[tuple(compared.experts[own].tolist()) for own in self.drawn],
        )

    @property
    def short(self) -> pd.DataFrame:
        """Cases with fewer other clean-active experts than asked for: case_id, available, used."""
        available = self.compared.others.sum(axis=1)
        fewer = available < self.asked
        own = available[fewer]
        case_ids = self.compared.cases.case_id.to_numpy(np.int64)[fewer]
        return pd.DataFrame({"case_id": case_ids, "available": own, "used": own})


class ControlledRows:
    """Rows of equation 7 for whichever experts a search selects; each expert's are worked out once.

    A case's controls depend on the seed and its id alone, so a subset of the rows is what
    :meth:`ExpertTrace.specificity` gives on those cases.
    """

    def __init__(self, compared: Callable[[Expert], ExpertInLayer], asked: int, seed: int) -> None:
        self.asked = asked
        self._compared, self._seed = compared, seed
        self._known: dict[Expert, tuple[pd.DataFrame, pd.DataFrame]] = {}

    def rows(self, star: Expert, cases: Counts) -> pd.DataFrame:
        """Rows of the cases at these positions, in this order; specificity is NaN without controls."""
        return self._of(star)[0].iloc[cases]

    def short(self, star: Expert, cases: Counts) -> pd.DataFrame:
        """Of these cases, those with fewer controls than asked for."""
        rows, short = self._of(star)
        return short[short.case_id.isin(rows.case_id.iloc[cases])]

    def _of(self, star: Expert) -> tuple[pd.DataFrame, pd.DataFrame]:
        if star not in self._known:
            controls = Controls.draw(self._compared(star), self.asked, self._seed)
            self._known[star] = (controls.rows, controls.short)
        return self._known[star]


def gather_short(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Each case once, with the fewest controls it had."""
    columns = ["case_id", "available", "used"]
    if not tables:
        return pd.DataFrame(columns=columns, dtype="int64")
    everything = pd.concat(tables, ignore_index=True).sort_values(["used", "case_id"], kind="stable")
    return everything.drop_duplicates("case_id").sort_values("case_id").reset_index(drop=True)[columns]


def warn_of_short(short: pd.DataFrame, asked: int, n: int, stacklevel: int) -> None:
    """FewControlsWarning that names the cases and how many controls they had."""
    if short.empty:
        return
    used = ", ".join(f"{count} in {cases}" for count, cases in short.used.value_counts().sort_index().items())
    without = int((short.used == 0).sum())
    excluded = f"; the {without} without any have no specificity and are left out of it" if without else ""
    warnings.warn(
        f"{len(short)} of {n} cases have fewer than {asked} other clean-active experts and were compared "
        f"with all they have (controls used: {used} cases){excluded}. Case ids "
        f"{short.case_id.tolist()[:20]}; .short_cases of .specificity() lists them all",
        FewControlsWarning,
        stacklevel=stacklevel + 1,
    )
