"""Games with known values, as tables of one case: column = bitmask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Table = np.ndarray


def table(k: int, value: Callable[[set[int]], float]) -> Table:
    return np.array([[value({j for j in range(k) if mask >> j & 1}) for mask in range(2**k)]], np.float64)


def additive(weights: Sequence[float]) -> Table:
    return table(len(weights), lambda s: sum(weights[j] for j in s))


def unanimity(k: int, carrier: set[int]) -> Table:
    """1 as soon as the whole carrier takes part."""
    return table(k, lambda s: float(carrier <= s))


def weighted_voting(weights: Sequence[int], quota: int) -> Table:
    return table(len(weights), lambda s: float(sum(weights[j] for j in s) >= quota))


def gloves(left: set[int], k: int) -> Table:
    """Pairs of a left and a right glove."""
    return table(k, lambda s: float(min(len(s & left), len(s - left))))


def random_games(k: int, cases: int, seed: int = 0) -> Table:
    return np.random.default_rng(seed).normal(size=(cases, 2**k))


def permuted(values: Table, order: Sequence[int]) -> Table:
    """The game in which player j plays the part of player order[j]."""
    masks = np.arange(values.shape[1])
    played = sum(((masks >> j & 1) << part for j, part in enumerate(order)), np.zeros_like(masks))
    return values[:, played]
