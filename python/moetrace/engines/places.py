"""Where patches are made: places, each of them tokens of a case that one patch changes together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moetrace.arguments import as_choice, as_list, is_integer, refuse_type, shown
from moetrace.errors import ArgumentError
from moetrace.functions import call_for_case

if TYPE_CHECKING:
    from moetrace.cases import Case

Rule = Callable[[Any], int | Sequence[int]]  # of a Case
Position = str | int | Rule
Positions = Position | Sequence[Position]

EXPECTED = (
    "'last', 'subject_last', 'subject_first', 'subject', 'after_subject', 'all', a token index, a function "
    "of a case, or a list of them"
)


@dataclass(frozen=True)
class Place:
    """Tokens that one patch changes together, found in each case by a rule.

    >>> Place("subject", lambda case: tuple(range(*case.subject)), most=4)

    ``find``: ascending positions in the prompt; none where a case has no such token. ``most``: how many they
    are at most in any case of the trace. ``of_all``: one of every token by itself, so that it may lie where
    nothing can happen. Places are told apart by their names.
    """

    name: str | int
    find: Callable[[Case], tuple[int, ...]] = field(compare=False, repr=False)
    most: int = 1
    of_all: bool = False


def _last(case: Case) -> tuple[int, ...]:
    return (len(case.input_ids) - 1,)


def _after_subject(case: Case) -> tuple[int, ...]:
    if case.subject[1] >= len(case.input_ids):
        raise ArgumentError(
            f"position is 'after_subject', and case {case.case_id} has no token after its subject; drop the "
            "case, or take another position"
        )
    return (case.subject[1],)


_ONE: dict[str, Callable[[Case], tuple[int, ...]]] = {
    "last": _last,
    "subject_last": lambda case: (case.subject[1] - 1,),
    "subject_first": lambda case: (case.subject[0],),
    "after_subject": _after_subject,
}
LAST = Place("last", _last)
ALL = "all"
NAMES = ("last", "subject_last", "subject_first", "subject", "after_subject", ALL)


def as_positions(position: Any) -> Positions:
    """A user's ``position``, checked: a name, an index, a function of a case, or a list of them.

    ArgumentError for an unknown name, an empty list, one that says a position twice, or anything else.
    """
    if isinstance(position, str) or is_integer(position) or callable(position):
        return _as_position(position, "position")
    if position is None or isinstance(position, float | bool | dict):
        refuse_type(position, "position", EXPECTED)
    given = as_list(position, "position", EXPECTED)
    if not given:
        raise ArgumentError(f"position is an empty list; expected {EXPECTED}")
    found = [_as_position(value, f"position[{at}]") for at, value in enumerate(given)]
    names = [name_of(value) for value in found]
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise ArgumentError(
            f"position names {shown(twice[0])} twice; expected each position once (functions are told apart "
            "by their names)"
        )
    if ALL in names:
        raise ArgumentError(
            "position is a list with 'all', which is every token by itself already; expected 'all' alone, or "
            "a list of other positions"
        )
    return found


def _as_position(value: Any, name: str) -> Position:
    if is_integer(value):
        return int(value)
    if callable(value):
        rule: Rule = value
        return rule
    if not isinstance(value, str):
        refuse_type(value, name, EXPECTED)
    return as_choice(value, name, NAMES)


def name_of(position: Position) -> str | int:
    """What tables call a position: a function by its own name."""
    if isinstance(position, str | int):
        return position
    return str(getattr(position, "__name__", None) or type(position).__name__)


def is_map(position: Positions) -> bool:
    """Whether a trace is of several positions, and its result a map."""
    return isinstance(position, list) or position == ALL


def places_of(position: Positions, cases: Iterable[Case], prefix: bool = True) -> tuple[Place, ...]:
    """The places of a checked ``position`` in some cases.

    >>> places_of("all", cases)

    Of "all" the last place, behind those of every token by itself, is the final token: one that every case
    has. ``prefix``: whether the others find tokens before the subject too. Clean and noised run are the same
    there, so that a patch of theirs changes nothing.
    """
    held = list(cases)
    if isinstance(position, str) and position == ALL:
        longest = max((len(case.input_ids) for case in held), default=1)
        every = (Place(at, _token(at, prefix), of_all=True) for at in range(longest))
        return (*every, LAST)
    given: list[Any] = position if isinstance(position, list) else [position]
    places = [_place(own, held) for own in given]
    if all(isinstance(place.name, int) for place in places):
        return tuple(places)
    return tuple(Place(str(place.name), place.find, place.most) for place in places)


def all_together(cases: Iterable[Case]) -> Place:
    """Every token of a prompt, changed together by one patch."""
    most = max((len(case.input_ids) for case in cases), default=1)
    return Place(ALL, lambda case: tuple(range(len(case.input_ids))), most)


def single_place(position: Positions, cases: Iterable[Case]) -> tuple[Place, ...]:
    """The one token of each case that a trace patches which has no map. ArgumentError for anything else."""
    held = list(cases)
    if is_map(position) or position == "subject":
        raise ArgumentError(
            f"position is {shown(position)}; expected one token of each case. Call it once for each "
            "position; trace_layers and trace_experts take several"
        )
    (place,) = places_of(position, held)
    if place.most > 1:
        raise ArgumentError(
            f"position {place.name!r} gives up to {place.most} tokens of a case; expected one token of each. "
            "trace_layers and trace_experts take several"
        )
    return (place,)


def _token(at: int, prefix: bool) -> Callable[[Case], tuple[int, ...]]:
    def find(case: Case) -> tuple[int, ...]:
        there = at < len(case.input_ids) and (prefix or at >= case.subject[0])
        return (at,) if there else ()

    return find


def _place(position: Position, cases: Sequence[Case]) -> Place:
    if isinstance(position, int):
        return Place(position, lambda case: (_inside(position, f"position {position}", case),))
    if isinstance(position, str):
        if position != "subject":
            return Place(position, _ONE[position])
        most = max((case.subject[1] - case.subject[0] for case in cases), default=1)
        return Place(position, lambda case: tuple(range(*case.subject)), max(1, most))
    name, rule = name_of(position), position
    found = Place(name, lambda case: _said(rule, name, case))
    return Place(name, found.find, max((len(found.find(case)) for case in cases), default=1))


def _said(rule: Rule, name: str | int, case: Case) -> tuple[int, ...]:
    """What a user's function says of a case."""
    wanted = "a function of a Case that gives a token index, or a list of them"
    given = call_for_case(rule, (case,), case.case_id, ArgumentError, f"position {name!r}", wanted)
    expected = "a token index, or a list of different ones"
    values = [given]
    if not is_integer(given):
        if given is None or isinstance(given, str | float | bool | dict):
            raise ArgumentError(
                f"position {name!r} gave {shown(given)} for case {case.case_id}; expected {expected}"
            )
        values = as_list(given, f"position {name!r} of case {case.case_id}", expected)
    if not values or not all(is_integer(value) for value in values):
        raise ArgumentError(
            f"position {name!r} gave {shown(given)} for case {case.case_id}; expected {expected}"
        )
    found = sorted(_inside(int(value), f"position {name!r} gave {value}, which", case) for value in values)
    if len(set(found)) < len(found):
        raise ArgumentError(
            f"position {name!r} gave one token of case {case.case_id} twice ({shown(given)}); expected "
            f"{expected}"
        )
    return tuple(found)


def _inside(index: int, what: str, case: Case) -> int:
    """A position in the prompt, counted from its start."""
    length = len(case.input_ids)
    found = index + length if index < 0 else index
    if not 0 <= found < length:
        raise ArgumentError(f"{what} is outside the prompt of case {case.case_id}, which has {length} tokens")
    return found
