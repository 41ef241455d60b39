"""What traces of several positions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.engines.places import Place
from moetrace.trace.session import Session, case_table


def mapped(places: Sequence[Place]) -> list[int]:
    """Numbers of the places that a map shows. Of every token by itself all but the last place, at which the
    null patch is made: no other is in every case.
    """
    return [at for at, place in enumerate(places) if place.of_all] or list(range(len(places)))


def null_place(places: Sequence[Place]) -> int:
    """Where the null patch is made."""
    return len(places) - 1 if places[0].of_all else 0


def tokens_at(session: Session) -> npt.NDArray[np.int64]:
    """int64 (cases, places of the map): the token of each, the last of several; -1 where a case has none."""
    places = [session.job.places[at] for at in mapped(session.job.places)]
    found = np.full((len(session.cases), len(places)), -1, dtype=np.int64)
    for row, case in enumerate(session.cases):
        for column, place in enumerate(places):
            if place.of_all:
                found[row, column] = column if column < len(case.input_ids) else -1
            elif tokens := place.find(case):
                found[row, column] = tokens[-1]
    return found


def map_cases(session: Session) -> pd.DataFrame:
    """The table of cases with their prompts: subject_start, subject_stop and input_ids."""
    table = case_table(session)
    table["subject_start"] = [case.subject[0] for case in session.cases]
    table["subject_stop"] = [case.subject[1] for case in session.cases]
    table["input_ids"] = [list(case.input_ids) for case in session.cases]
    return table
