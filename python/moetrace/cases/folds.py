"""Dealing groups of cases out to folds."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence

from moetrace.cases.case import Case
from moetrace.errors import ArgumentError


def fold_positions(
    cases: Sequence[Case], by: str | Callable[[Case], Hashable], k: int, seed: int
) -> list[set[int]]:
    """Positions of the cases that each fold holds out: a partition that keeps groups whole.

    Raises:
        ArgumentError: ``k`` is below 2 or above the number of groups, or ``by`` names no attribute.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault(_group(case, by), []).append(place)
    if not 2 <= k <= len(groups):
        raise ArgumentError(
            f"k is {k}; expected at least 2 and at most {len(groups)}, the number of groups by {by!r}"
            f" among {len(cases)} cases"
        )
    dealt = list(groups.values())
    random.Random(seed).shuffle(dealt)
    dealt.sort(key=len, reverse=True)  # stable: groups of one size stay in shuffled order
    folds: list[set[int]] = [set() for _ in range(k)]
    for positions in dealt:
        min(folds, key=len).update(positions)
    return folds


def _group(case: Case, by: str | Callable[[Case], Hashable]) -> Hashable:
    if callable(by):
        return by(case)
    if by not in Case.__dataclass_fields__:
        raise ArgumentError(
            f"by is {by!r}; expected a function of a case or one of {', '.join(Case.__dataclass_fields__)}"
        )
    group: Hashable = getattr(case, by)
    return group
