"""Recurrence-first selection (section 3.4, section 4.2)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from moetrace.arguments import as_choice, as_number, is_integer, shown
from moetrace.effects.contrasts import Bools, Floats
from moetrace.errors import ArgumentError, NoCasesError

# Over which cases an expert's mean rescue is taken: those in which it is clean-active, or all.
Mean = Literal["active", "all"]
MEANS: tuple[Mean, ...] = ("active", "all")
EXPECTED = "a share of the cases (a float in (0, 1]) or a number of cases (an integer of at least 1)"

# 0.7 of 10 cases is 7, although 0.7 * 10 is a little more in floating point.
_ROUNDING = 1e-9


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
    if is_integer(min_active) and min_active >= 1:
        return int(min_active)
    try:
        share = math.nan if is_integer(min_active) else as_number(min_active, "min_active", 0, 1)
    except ArgumentError:
        share = math.nan
    if not share > 0:
        raise ArgumentError(f"min_active is {shown(min_active)}; expected {EXPECTED}")
    return max(1, math.ceil(share * n - _ROUNDING))


def mean_rescue(rescue: Floats, active: Bools, mean: Mean = "active") -> Floats:
    """(experts,): mean rescue of each expert over the cases where it is clean-active, or over all.

    >>> mean_rescue(rescue, clean_active, "all")      # zero rows included, as in Table 1

    ``rescue`` and ``active``: (cases, experts). NaN for an expert without a case. Sums are correctly rounded,
    so that the order of the cases decides nothing.

    Raises:
        ArgumentError: ``mean`` is neither "active" nor "all".
    """
    mean = as_choice(mean, "mean", MEANS)
    counted = np.asarray(active, np.bool_) if mean == "active" else np.ones(active.shape, np.bool_)
    columns = zip(rescue.T, counted.T, strict=True)
    found = [math.fsum(own[keep].tolist()) / keep.sum() if keep.any() else math.nan for own, keep in columns]
    return np.array(found, np.float64)


def recurrence_first(
    rescue: Floats, active: Bools, required: int, mean: Mean = "active"
) -> npt.NDArray[np.int64]:
    """Experts that are clean-active in at least ``required`` cases, the one to select first.

    >>> recurrence_first(rescue, clean_active, required=64)[0]

    Highest mean rescue first; of equal means the higher recurrence, then the lower column. Why recurrence
    comes first (section 3.4): "an expert can obtain high mean rescue by appearing in only one or two
    discovery cases", which is true of its mean over the cases in which it is active.
    """
    recurrence = active.sum(axis=0)
    columns = np.flatnonzero(recurrence >= required)
    means = mean_rescue(rescue[:, columns], active[:, columns], mean)
    order: npt.NDArray[np.int64] = columns[np.lexsort((columns, -recurrence[columns], -means))]
    return order
