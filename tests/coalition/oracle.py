"""The definitions, written out: slow, in exact fractions, and without a thought of how the core does it."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations
from math import factorial
from typing import Any

import numpy as np

Game = dict[frozenset[int], Fraction]


def game_of(row: Any) -> tuple[int, Game]:
    """The values of one case, keyed by coalition."""
    k = len(row).bit_length() - 1
    players = range(k)
    coalitions = (frozenset(j for j in players if mask >> j & 1) for mask in range(len(row)))
    return k, {coalition: Fraction(float(value)) for coalition, value in zip(coalitions, row, strict=True)}


def without(k: int, *players: int) -> list[frozenset[int]]:
    """Every coalition of the other players."""
    others = [j for j in range(k) if j not in players]
    return [frozenset(chosen) for size in range(len(others) + 1) for chosen in combinations(others, size)]


def shapley_over_orders(row: Any) -> list[float]:
    """What each player adds on joining, averaged over all k! orders."""
    k, v = game_of(row)
    total = [Fraction(0)] * k
    for order in permutations(range(k)):
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            total[player] += v[before | {player}] - v[before]
    return [float(value / factorial(k)) for value in total]


def shapley_over_subsets(row: Any) -> list[float]:
    """Shapley (1953): weights s! (k - s - 1)! / k!."""
    k, v = game_of(row)
    return [
        float(
            sum(
                Fraction(factorial(len(s)) * factorial(k - len(s) - 1), factorial(k)) * (v[s | {j}] - v[s])
                for s in without(k, j)
            )
        )
        for j in range(k)
    ]


def banzhaf(row: Any) -> list[float]:
    k, v = game_of(row)
    return [float(sum(v[s | {j}] - v[s] for s in without(k, j)) / 2 ** (k - 1)) for j in range(k)]


def interaction(row: Any, kind: str) -> np.ndarray:
    """Grabisch & Roubens (1999) for pairs; NaN on the diagonal."""
    k, v = game_of(row)
    square = np.full((k, k), np.nan)
    for i, j in permutations(range(k), 2):
        total = Fraction(0)
        for s in without(k, i, j):
            weight = (
                Fraction(factorial(len(s)) * factorial(k - len(s) - 2), factorial(k - 1))
                if kind == "shapley"
                else Fraction(1, 2 ** (k - 2))
            )
            total += weight * (v[s | {i, j}] - v[s | {i}] - v[s | {j}] + v[s])
        square[i, j] = float(total)
    return square


def marginals(order: Any, value_of: dict[int, float]) -> list[float]:
    """What each player adds when the players join in this order."""
    joined, added = 0, [0.0] * len(order)
    for player in order:
        before, joined = joined, joined | 1 << int(player)
        added[int(player)] = value_of[joined] - value_of[before]
    return added


def smallest(values: dict[int, float], share: float) -> tuple[int, int, float]:
    """Size, mask and value of the smallest coalition that gains the share of what all gain."""
    grand = 0
    for mask in values:
        grand |= mask
    none = values.get(0, 0.0)
    full = values[grand] - none
    enough = [
        (mask.bit_count(), -value, mask)
        for mask, value in values.items()
        if mask and full > 0 and value - none >= share * full
    ]
    if not enough:
        return -1, 0, float("nan")
    size, value, mask = min(enough)
    return size, mask, -value
