"""The scan of records: each case is scored once, whichever selection asks, and scores survive a kill."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from moetrace.arguments import shown
from moetrace.cases import CaseSet
from moetrace.corruptions import Corruption
from moetrace.errors import CaseError
from moetrace.protocol.folder import read_sealed, write_sealed
from moetrace.protocol.settings import Settings
from moetrace.ranks import here
from moetrace.trace.select_cases import FewCasesWarning, score_cases, select_cases

LEAST = 4  # two discovery and two validation cases: fewer give no interval


class TooFewCasesError(CaseError):
    """So few cases are usable that the protocol can't be run on them."""


class Scan:
    """Clean and noised logit differences by case id, kept in a file.

    >>> scan = Scan(folder / "scan.json", corruption)
    >>> usable = scan.select(model, cases, settings, settings.n, settings.margin, settings.drop)
    """

    def __init__(self, path: Path | None, corruption: Corruption) -> None:
        self._path, self._corruption = path, corruption
        self._scores: dict[int, tuple[float, float]] = {}
        known = here().of_first("scan", lambda: _kept(path))
        self._scores = {int(i): (_number(clean), _number(noised)) for i, clean, noised in known}

    def select(
        self,
        model: Any,
        cases: CaseSet,
        settings: Settings,
        n: int,
        margin: float,
        drop: float,
        progress: Any,
    ) -> CaseSet:
        """:func:`moetrace.select_cases`. TooFewCasesError where nothing can be done with what there is."""
        budget: Any = settings.batch_tokens
        dtype: Any = settings.compute_dtype
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            usable = select_cases(
                model, cases, n, margin, drop, settings.seed, None, budget,
                settings.engine, progress, dtype, self._corruption, _score=self._score,
            )  # fmt: skip
        for warning in caught:
            if not issubclass(warning.category, FewCasesWarning):
                warnings.warn(warning.message, stacklevel=3)
        if len(usable) < n:
            told = f"{len(usable)} of the {n} cases asked for are usable: {self.losses(usable, margin, drop)}"
            if len(usable) < LEAST:
                raise TooFewCasesError(f"only {told}. At least {LEAST} are needed")
            warnings.warn(FewCasesWarning(f"only {told}. The protocol goes on with these"), stacklevel=3)
        return usable

    def losses(self, usable: CaseSet, margin: float, drop: float) -> str:
        """At which filter how many cases fell, and which setting would admit how many of them."""
        fell = (
            ", ".join(f"{count} at {name}" for name, count in usable.dropped.items() if count) or "none fell"
        )
        scores = pd.DataFrame(self._scores.values(), columns=["clean", "noised"]).dropna()
        lost = scores.clean - scores.noised
        good = (scores.clean >= margin) & (lost >= drop)
        advice = []
        for name, low, admits in (
            ("margin", margin / 2, (scores.clean >= margin / 2) & (lost >= drop)),
            ("drop", drop / 2, (scores.clean >= margin) & (lost >= drop / 2)),
        ):
            more = int((admits & ~good).sum())
            if more:
                advice.append(f"{name}={low:g} would admit {more} more")
        if usable.dropped["subject_is_final"]:
            advice.append(f"final_subject='keep' up to {usable.dropped['subject_is_final']} more")
        return f"{fell}; {', '.join(advice) or 'give more records'}"

    def _score(self, model: Any, batch: CaseSet, **options: Any) -> pd.DataFrame:
        """What select_cases asks for: known scores, and new ones of the rest."""
        unknown = [place for place, case in enumerate(batch) if case.case_id not in self._scores]
        if unknown:
            found = score_cases(model, batch.take(unknown), **options)
            for case_id, clean, noised in found.itertuples(index=False):
                self._scores[int(case_id)] = (float(clean), float(noised))
            if self._path is not None and here().first:
                scores = [[i, _plain(clean), _plain(noised)] for i, (clean, noised) in self._scores.items()]
                write_sealed(self._path, {"scores": scores})
        rows = [(case.case_id, *self._scores[case.case_id]) for case in batch]
        return pd.DataFrame(rows, columns=["case_id", "clean", "noised"])


def _kept(path: Path | None) -> list[Any]:
    """What a scan's file holds, if there is one."""
    return list(read_sealed(path)["scores"]) if path is not None and path.exists() else []


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def told(cases: CaseSet) -> str:
    """A funnel in words."""
    return ", ".join(f"{name} {count:,}" for name, count in cases.funnel.items()) or shown(cases)
