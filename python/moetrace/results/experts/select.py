"""Recurrence-first selection (section 3.4, section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moetrace.errors import ArgumentError, NoCasesError
from moetrace.results.experts.arrays import Bools, Counts, Floats
from moetrace.results.experts.expert import Expert

# 0.7 of 10 cases is 7, although 0.7 * 10 is a little more in floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Choice:
    """A selected expert, in how many cases it was clean-active of how many required, and its mean rescue."""

    star: Expert
    recurrence: int
    required: int
    rescue: float


def required_cases(min_active: float, n: int) -> int:
    """In how many of ``n`` cases an expert must be clean-active.

    >>> required_cases(0.5, 128), required_cases(64, 128)
    (64, 64)

    A float in (0, 1] is a share, rounded up; an integer of at least 1 is a count.

    Raises:
        ArgumentError: anything else.
        NoCasesError: ``n`` is 0.
    """
    if n == 0:
        raise NoCasesError("the trace holds no cases; .failed says what became of them")
    if not isinstance(min_active, bool) and isinstance(min_active, int | np.integer) and min_active >= 1:
        return int(min_active)
    if isinstance(min_active, float | np.floating) and 0 < min_active <= 1:
        return max(1, math.ceil(float(min_active) * n - _ROUNDING))
    raise ArgumentError(
        f"min_active is {min_active!r}; expected a share of the cases (a float in (0, 1]) or a number of "
        "cases (an integer of at least 1)"
    )


def selection_order(effects: Floats, active: Bools, required: int) -> Counts:
    """Columns that are active in at least ``required`` cases, the one to select first.

    Highest mean over all cases first; of equal means the higher recurrence, then the lower column, which is
    the lower layer and then the lower expert. Means are of correctly rounded sums, so that the order of the
    cases decides nothing.
    """
    recurrence = active.sum(axis=0)
    columns = np.flatnonzero(recurrence >= required)
    means = np.array([math.fsum(own) / len(effects) for own in effects[:, columns].T.tolist()])
    order: Counts = columns[np.lexsort((columns, -recurrence[columns], -means))]
    return order
