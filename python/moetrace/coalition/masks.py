"""Coalitions as bitmasks, and how many of them are too many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moetrace._native import _core
from moetrace.arguments import as_count, as_list
from moetrace.coalition import checks
from moetrace.coalition.checks import MAX_COMPLETE, MAX_PLAYERS, Masks
from moetrace.errors import ArgumentError

__all__ = ["LIMIT", "MAX_COMPLETE", "MAX_PLAYERS", "check_count", "members", "membership", "subsets"]

LIMIT = 4096
"""Coalitions of one case that are patched without being asked for twice: all those of 12 experts."""


def subsets(k: int) -> Masks:
    """Every non-empty coalition of ``k`` players, ascending.

    >>> subsets(2)
    array([1, 2, 3], dtype=uint64)

    Args:
        k: 1 to 20.

    Returns:
        uint64 bitmasks, shape (2^k - 1,); bit j is player j.

    Raises:
        ArgumentError: for another ``k``.
    """
    masks: Masks = _core.subsets(checks.whole(k, "k", 1, MAX_COMPLETE))
    return masks


def check_count(k: int, limit: int = LIMIT) -> int:
    """How many coalitions ``k`` players have, 2^k - 1; refused above ``limit``.

    >>> check_count(8)
    255

    Raises:
        ArgumentError: above the limit; the message gives the count and the sampled alternative.
    """
    limit = as_count(limit, "limit")
    count = (1 << checks.whole(k, "k", 1, MAX_PLAYERS)) - 1
    if count > limit:
        raise ArgumentError(
            f"{k} experts have {count} coalitions, and each is a patch of every case; expected at most "
            f"{limit}: sample permutations instead (moetrace.coalition.sample_permutations and "
            "sampled_shapley, with standard errors), choose fewer experts, or raise the limit"
        )
    return count


def membership(coalitions: npt.ArrayLike, k: int) -> npt.NDArray[np.bool_]:
    """Which players belong to which coalition.

    >>> membership([1, 3], 2)
    array([[ True, False],
           [ True,  True]])
    >>> patches = membership(masks, k) @ deltas      # sums of patch vectors, (coalitions, hidden)

    Args:
        coalitions: bitmasks, shape (m,).
        k: players, 1 to 63.

    Returns:
        bool, shape (m, k).

    Raises:
        ArgumentError: for a coalition with a player of ``k`` or more.
    """
    masks = checks.masks(coalitions)
    count = checks.whole(k, "k", 1, MAX_PLAYERS)
    if masks.size and int(masks.max()) >> count:
        raise ArgumentError(
            f"coalitions have players beyond the {count} that k gives; expected masks below 2^k"
        )
    bits: npt.NDArray[np.uint64] = masks[:, None] >> np.arange(count, dtype=np.uint64)
    return (bits & np.uint64(1)).astype(np.bool_)


def members(coalition: int, experts: Sequence[int]) -> tuple[int, ...]:
    """The experts of a coalition, where player j is ``experts[j]``.

    >>> members(0b101, [7, 19, 44])
    (7, 44)

    Raises:
        ArgumentError: for a coalition with more players than there are experts.
    """
    experts = as_list(experts, "experts", "a list of experts")
    mask = checks.whole(coalition, "coalition", 0, (1 << len(experts)) - 1)
    return tuple(expert for player, expert in enumerate(experts) if mask >> player & 1)
