"""How many forward passes and token rows something took.

>>> with counting() as counted:
...     mt.trace_layers(model, cases)
>>> counted.forwards, counted.rows
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Counted:
    """Calls of a model's own forward, and token rows that went into them or joined them later."""

    forwards: int = 0
    rows: int = 0


_counting: ContextVar[tuple[Counted, ...]] = ContextVar("counting", default=())


@contextmanager
def counting() -> Iterator[Counted]:
    """Count what happens in the block, in blocks within it too."""
    counted = Counted()
    token = _counting.set((*_counting.get(), counted))
    try:
        yield counted
    finally:
        _counting.reset(token)


def count_forward(rows: int) -> None:
    """One forward pass over so many token rows."""
    for counted in _counting.get():
        counted.forwards += 1
        counted.rows += rows
