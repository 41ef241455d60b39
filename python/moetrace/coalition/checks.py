"""What the functions of this package accept: every argument is looked at here, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.arguments import as_count, shown
from moetrace.errors import ArgumentError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint64]

MAX_PLAYERS = 63
"""Players of a game whose coalitions are listed: masks then fit a signed integer of 64 bits."""

MAX_COMPLETE = 20
"""Players of a game of which every coalition has a value."""


@contextmanager
def refusals() -> Iterator[None]:
    """What the compiled core refuses, as an error of this package."""
    try:
        yield
    except ValueError as refusal:
        raise ArgumentError(str(refusal)) from refusal


def whole(value: Any, name: str, low: int, high: int) -> int:
    """An integer of [low, high]."""
    return as_count(value, name, low, high)


def long(value: Any, name: str) -> int:
    """A seed or a stream: 64 bits."""
    return whole(value, name, 0, 2**64 - 1)


def table(values: npt.ArrayLike) -> Floats:
    """Cases x coalitions, as doubles."""
    given = _array(values, "values")
    if given.dtype.kind not in "biuf":
        raise ArgumentError(f"values have dtype {given.dtype}; expected real numbers")
    if given.ndim != 2:
        raise ArgumentError(
            f"values have shape {given.shape}; expected cases x coalitions: pass values[None] for one case"
        )
    return np.ascontiguousarray(given, np.float64)


def masks(coalitions: npt.ArrayLike) -> Masks:
    """Bitmasks in one dimension."""
    given = _integers(coalitions, "coalitions", 1)
    if given.size and (given.min() < 0 or int(given.max()) >= 2**MAX_PLAYERS):
        raise ArgumentError(
            f"coalitions must be bitmasks of players 0 to {MAX_PLAYERS - 1}; found one out of range"
        )
    return np.ascontiguousarray(given, np.uint64)


def orders(permutations: npt.ArrayLike) -> Integers:
    """Permutations, one a row; what is in a row is checked by the core."""
    given = _integers(permutations, "permutations", 2)
    if not 1 <= given.shape[1] <= MAX_PLAYERS:
        raise ArgumentError(f"permutations have {given.shape[1]} players; expected 1 to {MAX_PLAYERS}")
    return np.ascontiguousarray(given, np.int64)


def _integers(values: npt.ArrayLike, name: str, dimensions: int) -> npt.NDArray[Any]:
    given = _array(values, name)
    if given.size and given.dtype.kind not in "iu":
        raise ArgumentError(f"{name} have dtype {given.dtype}; expected integers")
    if given.ndim != dimensions:
        raise ArgumentError(f"{name} have shape {given.shape}; expected {dimensions} dimension(s)")
    return given


def _array(values: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError as failure:
        raise ArgumentError(
            f"{name} must be a rectangular array of numbers; found {shown(values)}"
        ) from failure
