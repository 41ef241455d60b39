"""Where patches are made: places, each of them tokens of a case that one patch changes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moetrace.errors import ArgumentError

if TYPE_CHECKING:
    from moetrace.cases import Case

Position = str | int


@dataclass(frozen=True)
class Place:
    """Tokens that one patch changes together, found in each case by a rule.

    >>> Place("subject", lambda case: tuple(range(*case.subject)), most=4)

    ``find``: ascending positions in the prompt; none where a case has no such token. ``most``: how many they
    are at most in any case of the trace. Places are told apart by their names.
    """

    name: Position
    find: Callable[[Case], tuple[int, ...]] = field(compare=False, repr=False)
    most: int = 1


def _last(case: Case) -> tuple[int, ...]:
    return (len(case.input_ids) - 1,)


def _subject_last(case: Case) -> tuple[int, ...]:
    return (case.subject[1] - 1,)


LAST = Place("last", _last)
NAMED = {"last": LAST, "subject_last": Place("subject_last", _subject_last)}


def place_at(position: Position) -> Place:
    """One token: "last", "subject_last", or an index, from the end where negative."""
    if isinstance(position, str):
        return NAMED[position]

    def find(case: Case) -> tuple[int, ...]:
        length = len(case.input_ids)
        index = position + length if position < 0 else position
        if not 0 <= index < length:
            raise ArgumentError(
                f"position {position} is outside the prompt of case {case.case_id}, which has {length} tokens"
            )
        return (index,)

    return Place(position, find)
