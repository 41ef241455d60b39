"""Splits and folds of the cases of a trace, by the rules of CaseSet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moetrace.errors import ArgumentError
from moetrace.results.experts.arrays import Counts

if TYPE_CHECKING:
    from moetrace.cases import CaseSet


def split_positions(cases: pd.DataFrame, seed: int, fraction: float) -> tuple[Counts, Counts]:
    """Positions of the discovery and of the validation cases, as :meth:`CaseSet.split` has them."""
    discovery, validation = _stand_in(cases).split(seed, fraction)
    return _positions(discovery), _positions(validation)


def fold_positions(cases: pd.DataFrame, by: str, k: int, seed: int) -> list[tuple[Counts, Counts]]:
    """Positions of the rest and of the held-out cases of each fold, as :meth:`CaseSet.folds` has them."""
    if by != "relation_id":
        raise ArgumentError(f"by is {by!r}; expected 'relation_id'")
    return [(_positions(rest), _positions(held)) for rest, held in _stand_in(cases).folds(by, k, seed)]


def _stand_in(cases: pd.DataFrame) -> CaseSet:
    """A case set in which each case stands for the position that is its id; splits read no more of it."""
    from moetrace.cases import Case, CaseSet

    relations = cases.relation_id.tolist()
    return CaseSet(
        Case((), (0, 0), 0, 0, case_id=place, relation_id=relation)
        for place, relation in enumerate(relations)
    )


def _positions(cases: CaseSet) -> Counts:
    return np.array([case.case_id for case in cases], np.int64)
