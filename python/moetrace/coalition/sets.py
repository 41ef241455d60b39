"""Coalitions that the caller lists, as tuples of experts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moetrace.arguments import as_list, is_integer, shown
from moetrace.coalition import checks
from moetrace.errors import ArgumentError

_REMEDY = "; list each expert once, as in [(0, 3), (5,)]"


def checked_sets(sets: Iterable[Iterable[int]], num_experts: int) -> tuple[tuple[int, ...], ...]:
    """Lists of experts, each a coalition, looked at before anything is traced.

    >>> checked_sets([[44, 7], [19]], num_experts=128)
    ((7, 44), (19,))

    A coalition is a set: its experts are returned in ascending order, and two lists of the same experts count
    as one coalition listed twice.

    Args:
        sets: one or more lists of experts.
        num_experts: routed experts of a layer.

    Returns:
        Tuples of Python integers, in the order given.

    Raises:
        ArgumentError: for no lists, an empty one, an expert that the layer doesn't have or that stands twice
            in a list, or a list given twice.
    """
    count = checks.whole(num_experts, "num_experts", 1, 2**31 - 1)
    checked: dict[tuple[int, ...], int] = {}
    for place, experts in enumerate(_items(sets, "sets")):
        coalition = _coalition(experts, f"coalition {place}", count)
        if coalition in checked:
            raise ArgumentError(
                f"coalitions {checked[coalition]} and {place} hold the same experts, {list(coalition)}; "
                "expected each coalition once: remove one of them"
            )
        checked[coalition] = place
    if not checked:
        raise ArgumentError(f"found no coalitions; expected at least one list of experts{_REMEDY}")
    return tuple(checked)


def _coalition(experts: Any, name: str, num_experts: int) -> tuple[int, ...]:
    listed = [_expert(expert, name, num_experts) for expert in _items(experts, name)]
    if not listed:
        raise ArgumentError(f"{name} is empty; expected at least one expert{_REMEDY}")
    repeated = sorted({expert for expert in listed if listed.count(expert) > 1})
    if repeated:
        raise ArgumentError(f"{name} holds expert {repeated[0]} more than once{_REMEDY}")
    return tuple(sorted(listed))


def _items(value: Any, name: str) -> list[Any]:
    return as_list(value, name, f"a list{_REMEDY}")


def _expert(value: Any, name: str, num_experts: int) -> int:
    if not is_integer(value) or not 0 <= int(value) < num_experts:
        raise ArgumentError(
            f"{name} holds {shown(value)}; the layer has experts 0 to {num_experts - 1}{_REMEDY}"
        )
    return int(value)
