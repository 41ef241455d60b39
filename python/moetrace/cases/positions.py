"""Splits and folds of cases by their positions: what :class:`CaseSet` and traces share."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Literal

from moetrace.arguments import as_choice, as_fraction, as_integer, as_seed, shown
from moetrace.errors import ArgumentError

Order = Literal["shuffle", "scan"]
ORDERS: tuple[Order, ...] = ("shuffle", "scan")


def split_positions(
    n: int, seed: int = 0, fraction: float = 0.5, order: Order = "shuffle"
) -> tuple[list[int], list[int]]:
    """Positions of the discovery and of the validation cases, of ``n`` (Tables 2 and 8).

    >>> discovery, validation = split_positions(256, seed=0)

    ``order``: "shuffle" shuffles them by ``random.Random(seed)`` first, "scan" keeps them; the first
    ``round(n * fraction)`` are for discovery.

    Raises:
        ArgumentError: ``fraction`` isn't strictly between 0 and 1, or ``order`` is neither word.
    """
    fraction = as_fraction(fraction, "fraction")
    order, seed = as_choice(order, "order", ORDERS), as_seed(seed)
    positions = list(range(n))
    if order == "shuffle":
        random.Random(seed).shuffle(positions)
    cut = round(n * fraction)
    return positions[:cut], positions[cut:]


def fold_positions(
    groups: Sequence[Hashable], k: int = 5, seed: int = 0, by: object = "relation_id"
) -> list[set[int]]:
    """Positions of the cases that each of ``k`` folds holds out: a partition that keeps groups whole.

    >>> fold_positions([case.relation_id for case in cases], k=5, seed=0)

    ``groups``: the group of each case; they are shuffled by ``random.Random(seed)`` and dealt out, largest
    first, each to the smallest fold. ``by``: what the message calls them.

    Raises:
        ArgumentError: ``k`` is below 2 or above the number of groups.
    """
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    k, seed = as_integer(k, "k"), as_seed(seed)
    if not 2 <= k <= len(members):
        raise ArgumentError(
            f"k is {shown(k)}; expected at least 2 and at most {len(members)}, the number of groups by {by!r}"
            f" among {len(groups)} cases"
        )
    dealt = list(members.values())
    random.Random(seed).shuffle(dealt)
    dealt.sort(key=len, reverse=True)  # stable: groups of one size stay in shuffled order
    folds: list[set[int]] = [set() for _ in range(k)]
    for positions in dealt:
        min(folds, key=len).update(positions)
    return folds
