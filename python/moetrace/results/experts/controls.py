"""Same-source active-random controls (section 3.4, Table 2)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import pandas as pd

from moetrace.errors import ArgumentError
from moetrace.results.experts.arrays import Counts, Floats
from moetrace.results.experts.errors import FewControlsWarning, NoControlsError
from moetrace.results.experts.view import StarView

_WORD = 2**64 - 1  # streams of the generator are unsigned, case ids may be negative


@dataclass(frozen=True, eq=False)
class Controls:
    """Control experts of every case and their mean rescue (NaN where a case has none)."""

    asked: int
    case_ids: Counts
    available: Counts
    experts: tuple[tuple[int, ...], ...]
    rescue: Floats

    @property
    def short(self) -> pd.DataFrame:
        """Cases with fewer other clean-active experts than asked for: case_id, available, used."""
        fewer = self.available < self.asked
        own = self.available[fewer]
        return pd.DataFrame({"case_id": self.case_ids[fewer], "available": own, "used": own})


def draw_controls(view: StarView, controls: int, seed: int) -> Controls:
    """Up to ``controls`` clean-active experts other than the star for each case, without replacement.

    A case's draw is a function of (seed, case id) and of the experts active in it: not of the other cases.
    """
    from moetrace.stats import sample_without_replacement

    asked = check_controls(controls)
    others, case_ids = view.others, view.cases.case_id.to_numpy(np.int64)
    experts: list[tuple[int, ...]] = []
    rescue = np.full(len(case_ids), np.nan)
    for case, case_id in enumerate(case_ids.tolist()):
        active = np.flatnonzero(others[case])
        k = min(asked, len(active))
        drawn = active[np.sort(sample_without_replacement(len(active), k, seed=seed, stream=case_id & _WORD))]
        experts.append(tuple(view.experts[drawn].tolist()))
        if k:
            rescue[case] = view.rescue[case, drawn].mean()
    return Controls(asked, case_ids, others.sum(axis=1), tuple(experts), rescue)


def check_controls(controls: Any) -> int:
    """A number of controls, at least 1."""
    try:
        asked = 0 if isinstance(controls, bool) else index(controls)
    except TypeError:
        asked = 0
    if asked < 1:
        raise ArgumentError(f"controls is {controls!r}; expected an integer of at least 1")
    return asked


def refuse_lonely(view: StarView) -> None:
    """NoControlsError where the star is alone in every case in which it is clean-active."""
    both = view.star_active & view.others.any(axis=1)
    if not both.any():
        raise NoControlsError(
            f"{view.star} is the only clean-active expert of its layer in all {int(view.star_active.sum())} "
            "cases where it is clean-active; a comparison needs another one (a model that routes to one "
            "expert has none). Use .rows or .summary() for its rescue alone"
        )


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
