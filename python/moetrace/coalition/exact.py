"""Values and interactions from the values of all coalitions (C++ does the sums)."""

from __future__ import annotations

import numpy.typing as npt

from moetrace._native import _core
from moetrace.coalition import checks
from moetrace.coalition.checks import Floats
from moetrace.errors import ArgumentError


def shapley(values: npt.ArrayLike) -> Floats:
    """What each expert contributes to a rescue: Shapley values, case by case.

    >>> shapley([[0.0, 0.2, 0.1, 0.5]])          # nobody, player 0, player 1, both
    array([[0.3, 0.2]])

    The value of player j averages v(S + j) - v(S) over all orders in which the players may join, S being
    those that came before. The values of a case sum to v(all) - v(nobody), the grand coalition's rescue; a
    player that never adds anything has 0.

    Args:
        values: float64 (cases, 2^k), 1 <= k <= 20. The column is the coalition's bitmask (bit j is player j);
            column 0 is the empty coalition, normally 0, and is used as given.

    Returns:
        float64 (cases, k), in the unit of the values.

    Raises:
        ArgumentError: for columns that aren't 2^k, or a value that isn't finite (the case is named).
    """
    given = checks.table(values)
    with checks.refusals():
        found: Floats = _core.shapley(given)
    return found


def banzhaf(values: npt.ArrayLike) -> Floats:
    """Banzhaf values, case by case: v(S + j) - v(S) averaged over all coalitions S of the others alike.

    >>> banzhaf([[0.0, 0.2, 0.1, 0.5]])
    array([[0.3, 0.2]])

    They need not sum to the grand coalition's rescue; :func:`efficiency_gap` says by how much they don't.
    Arguments, result and errors are those of :func:`shapley`.
    """
    given = checks.table(values)
    with checks.refusals():
        found: Floats = _core.banzhaf(given)
    return found


def shapley_interaction(values: npt.ArrayLike) -> Floats:
    """Pairwise Shapley interaction indices (Grabisch & Roubens 1999), case by case.

    >>> shapley_interaction([[0.0, 0.2, 0.1, 0.5]])[0]
    array([[0.3, 0.2],
           [0.2, 0.2]])

    Entry (i, j) averages v(S+i+j) - v(S+i) - v(S+j) + v(S) over the coalitions S without i and j, with
    weights s! (k-s-2)! / (k-1)!: above 0 the two need each other, below 0 one can stand in for the other, and
    0 in an additive game. The same definition for a single player is the Shapley value: it stands on the
    diagonal.

    Returns:
        float64 (cases, k, k), symmetric. Arguments and errors are those of :func:`shapley`.
    """
    given = checks.table(values)
    with checks.refusals():
        found: Floats = _core.shapley_interaction(given)
    return found


def banzhaf_interaction(values: npt.ArrayLike) -> Floats:
    """Pairwise Banzhaf interaction indices: all coalitions of the others weigh 2^-(k-2).

    >>> banzhaf_interaction(values)[case, i, j]

    As :func:`shapley_interaction` otherwise; the Banzhaf values stand on the diagonal.
    """
    given = checks.table(values)
    with checks.refusals():
        found: Floats = _core.banzhaf_interaction(given)
    return found


def efficiency_gap(shares: npt.ArrayLike, values: npt.ArrayLike) -> Floats:
    """How far players' values are from summing to the grand coalition's: 0 to rounding for Shapley values.

    >>> abs(efficiency_gap(shapley(values), values)).max() < 1e-9
    True

    Args:
        shares: (cases, k).
        values: (cases, 2^k), as for :func:`shapley`.

    Returns:
        float64 (cases,): the sum of the shares, less v(all) - v(nobody).

    Raises:
        ArgumentError: for shapes that don't fit each other.
    """
    parts, whole = checks.table(shares), checks.table(values)
    if len(parts) != len(whole) or whole.shape[1] != 1 << parts.shape[1]:
        raise ArgumentError(
            f"shares have shape {parts.shape} and values {whole.shape}; expected (cases, k) and (cases, 2^k)"
        )
    gap: Floats = parts.sum(axis=1) - (whole[:, -1] - whole[:, 0])
    return gap
