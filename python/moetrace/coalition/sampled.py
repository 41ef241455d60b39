"""Shapley values from sampled orders, for more players than have all their coalitions patched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt

from moetrace._native import _core
from moetrace.arguments import as_flag
from moetrace.coalition import checks
from moetrace.coalition.checks import Floats, Integers, Masks


@dataclass(frozen=True, eq=False)
class SampledShapley:
    """Estimated Shapley values with their standard errors."""

    mean: Floats
    """(cases, k), in the unit of the values."""
    standard_error: Floats
    """(cases, k): of the mean, over draws; NaN with a single draw."""
    n_draws: int
    """Independent draws: permutations, or pairs of them."""
    antithetic: bool
    """Whether a draw is a pair of a permutation and its reverse."""


def sample_permutations(
    k: int, n: int, seed: int = 0, stream: int = 0, *, antithetic: bool = False
) -> Integers:
    """``n`` random orders of ``k`` players.

    >>> orders = sample_permutations(16, 200, seed=0, stream=case_id)
    >>> masks = prefix_coalitions(orders)            # patch these coalitions: values of shape (cases, m)
    >>> sampled_shapley(orders, masks, values)

    A function of its arguments alone (Philox 4x32-10, Fisher-Yates with rejection, so that every order is
    exactly as likely as any other). A longer sample begins with a shorter one's rows.

    Args:
        k: players, 1 to 63.
        n: rows, at least 1; even when antithetic.
        seed: 0 to 2^64 - 1.
        stream: 0 to 2^64 - 1, for instance a case id: streams are independent of each other.
        antithetic: every drawn order is followed by its reverse; row 2i is row i of a plain sample. A pair is
            exact where players interact in pairs only, so this often needs fewer rows for the same error.

    Returns:
        int64 (n, k).

    Raises:
        ArgumentError: for an argument out of range.
    """
    players = checks.whole(k, "k", 1, checks.MAX_PLAYERS)
    count = checks.whole(n, "n", 1, 2**32)
    with checks.refusals():
        rows: Integers = _core.sample_permutations(
            players,
            count,
            checks.long(seed, "seed"),
            checks.long(stream, "stream"),
            as_flag(antithetic, "antithetic"),
        )
    return rows


def prefix_coalitions(permutations: npt.ArrayLike) -> Masks:
    """The distinct coalitions that form while players join in these orders: those to be patched.

    >>> prefix_coalitions([[0, 1, 2], [1, 0, 2]])
    array([1, 2, 3, 7], dtype=uint64)

    Args:
        permutations: integers (n, k), each row a permutation of 0 to k - 1.

    Returns:
        uint64 bitmasks, ascending, without the empty coalition; the last is the grand coalition.

    Raises:
        ArgumentError: for a row that is no permutation.
    """
    orders = checks.orders(permutations)
    with checks.refusals():
        masks: Masks = _core.prefix_coalitions(orders)
    return masks


def sampled_shapley(
    permutations: npt.ArrayLike,
    coalitions: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    antithetic: bool = False,
) -> SampledShapley:
    """Shapley values estimated from sampled orders, case by case.

    >>> found = sampled_shapley(orders, prefix_coalitions(orders), values)
    >>> found.mean, found.standard_error

    The mean of what each player adds on joining: unbiased, and in every sample the means of a case sum to
    v(all) - v(nobody). The standard error is that of the mean over permutations or, where they are antithetic
    pairs, over pairs: sqrt(sum (x - mean)^2 / (m (m - 1))) for m draws.

    Args:
        permutations: integers (n, k), each row a permutation of 0 to k - 1.
        coalitions: bitmasks (m,), in any order, with every coalition of :func:`prefix_coalitions`; more may
            be there. The empty coalition counts as 0 unless it is listed.
        values: float64 (cases, m).
        antithetic: whether rows 1, 3, 5, ... are the rows before them reversed; this is checked.

    Raises:
        ArgumentError: for a coalition that forms and has no value or two, for rows that are no permutations
            or no pairs, or a value that isn't finite (the case is named).
    """
    orders = checks.orders(permutations)
    masks, given = checks.masks(coalitions), checks.table(values)
    paired = as_flag(antithetic, "antithetic")
    with checks.refusals():
        mean, error = _core.sampled_shapley(orders, masks, given, paired)
    return SampledShapley(mean, error, len(orders) // 2 if paired else len(orders), paired)
