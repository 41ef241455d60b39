"""The groups that folds keep whole."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from moetrace.arguments import as_choice, shown
from moetrace.cases.case import Case
from moetrace.errors import ArgumentTypeError


def groups_of(cases: Sequence[Case], by: str | Callable[[Case], Hashable]) -> list[Hashable]:
    """The group of each case; ``by`` is an attribute of Case or a function of a case.

    >>> groups_of(cases, "relation_id")

    ArgumentError where Case has no such attribute, or the function fails.
    """
    if callable(by):
        try:
            groups = [by(case) for case in cases]
            hash(tuple(groups))
        except Exception as failure:
            raise ArgumentTypeError(
                f"by is {shown(by)}, which doesn't give a case's group ({failure}); expected a function of a "
                "case that returns something hashable"
            ) from failure
        return groups
    name = as_choice(by, "by", tuple(Case.__dataclass_fields__))
    return [getattr(case, name) for case in cases]
