"""Interleaved timing: every measurement of a competitor stands next to one of the yardstick.

A shared or throttling machine changes speed from minute to minute, so a ratio is taken within each pair and
the median of those ratios is reported; the seconds are medians too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class Timed:
    """A call to time, and how many cases it does: ``run(repetition)`` may take other cases each time."""

    key: str
    cases: int
    run: Callable[[int], object]
    seconds: list[float] = field(default_factory=list)  # per case
    ratios: list[float] = field(default_factory=list)  # to the yardstick of the same pair

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios)


def seconds_per_case(timed: Timed, repetition: int) -> float:
    """One measurement; garbage is collected before it, not within it."""
    gc.collect()
    begin = time.perf_counter()
    timed.run(repetition)
    return (time.perf_counter() - begin) / timed.cases


def interleave(yardstick: Timed, others: Iterable[Timed], repeats: int) -> None:
    """Time ``yardstick, other, yardstick, other, ...``, ``repeats`` times round, filling in the samples."""
    others = list(others)
    for repetition in range(repeats):
        if not others:
            yardstick.seconds.append(seconds_per_case(yardstick, repetition))
        for other in others:
            base = seconds_per_case(yardstick, repetition)
            cost = seconds_per_case(other, repetition)
            yardstick.seconds.append(base)
            other.seconds.append(cost)
            other.ratios.append(cost / base)
