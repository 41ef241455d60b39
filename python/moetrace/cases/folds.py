"""The groups that folds keep whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from moetrace.cases.case import Case
from moetrace.errors import ArgumentError


def groups_of(cases: Sequence[Case], by: str | Callable[[Case], Hashable]) -> list[Hashable]:
    """The group of each case; ``by`` is an attribute of Case or a function of a case.

    >>> groups_of(cases, "relation_id")

    ArgumentError where Case has no such attribute.
    """
    if callable(by):
        return [by(case) for case in cases]
    if by not in Case.__dataclass_fields__:
        raise ArgumentError(
            f"by is {by!r}; expected a function of a case or one of {', '.join(Case.__dataclass_fields__)}"
        )
    return [getattr(case, by) for case in cases]
