"""What can be read off the values of coalitions directly: the smallest that suffices, and additivity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace._native import _core
from moetrace.arguments import as_number
from moetrace.coalition import checks
from moetrace.coalition.checks import Floats, Integers, Masks
from moetrace.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class SmallestCoalition:
    """The smallest coalition of each case that gains enough; -1, 0 and NaN where there is none."""

    size: Integers
    """(cases,): number of players, or -1."""
    coalition: Masks
    """(cases,): bitmask, or 0."""
    value: Floats
    """(cases,): the coalition's value, or NaN."""


@dataclass(frozen=True, eq=False)
class Additivity:
    """Sum of singles against the grand coalition, case by case; gains over the empty coalition."""

    singles: Floats
    """(cases,): gains of the players one by one, summed."""
    grand: Floats
    """(cases,): gain of all players together."""
    difference: Floats
    """(cases,): grand - singles. Above 0 the players help each other, below 0 they overlap."""


def smallest_coalition(
    values: npt.ArrayLike, share: float, coalitions: npt.ArrayLike | None = None
) -> SmallestCoalition:
    """The fewest players whose coalition reaches a share of the full rescue, case by case.

    >>> smallest_coalition(values, 0.8).size         # -1 where there is no rescue to share

    The gain of a coalition is v(S) - v(nobody), with v(nobody) normally 0; it has to be at least ``share``
    times the gain of all players together. Of coalitions of equal size the one of the highest value is given,
    then the one of the lowest mask. The empty coalition is never the answer. There is none (-1, 0, NaN) in a
    case whose players together gain nothing or less; for a share above 1 also where no coalition gains so
    much.

    Args:
        values: float64 (cases, 2^k) with column = bitmask or, where ``coalitions`` are given, (cases, m).
        share: above 0 and finite, normally at most 1.
        coalitions: bitmasks (m,) of the columns, the grand coalition (all players that occur) among them. The
            answer is then the smallest of those listed. The empty coalition counts as 0 unless it is listed.

    Raises:
        ArgumentError: for shapes that don't fit, a share out of range, or a value that isn't finite.
    """
    given = checks.table(values)
    masks = _columns(given, coalitions)
    wanted = _share(share)
    with checks.refusals():
        return SmallestCoalition(*_core.smallest_coalition(masks, given, wanted))


def additivity(values: npt.ArrayLike, coalitions: npt.ArrayLike | None = None) -> Additivity:
    """How far from additive a layer is: the sum of singles against the grand coalition.

    >>> found = additivity(values)
    >>> found.difference.mean() / found.grand.mean()

    Args:
        values: float64 (cases, 2^k) with column = bitmask or, where ``coalitions`` are given, (cases, m).
        coalitions: bitmasks (m,) of the columns, with every single player and all of them together.

    Raises:
        ArgumentError: for shapes that don't fit, a single or the grand coalition without a value, or a value
            that isn't finite.
    """
    given = checks.table(values)
    masks = _columns(given, coalitions)
    with checks.refusals():
        return Additivity(*_core.additivity(masks, given))


def _share(share: Any) -> float:
    return as_number(share, "share", 0, ends=False)


def _columns(values: Floats, coalitions: npt.ArrayLike | None) -> Masks:
    """The coalition of each column: as listed, or the column itself."""
    if coalitions is not None:
        return checks.masks(coalitions)
    columns = values.shape[1]
    if columns < 2 or columns & (columns - 1):
        raise ArgumentError(
            f"values have {columns} columns; expected 2^k, one for each coalition of k players and the empty "
            "one first: pass coalitions= where the columns are others"
        )
    return np.arange(columns, dtype=np.uint64)
