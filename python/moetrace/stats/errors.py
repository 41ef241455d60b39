"""Errors and warnings of the statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moetrace.errors import ArgumentError, FewClustersWarning, MoetraceWarning

__all__ = [
    "DegenerateWarning",
    "FewClustersWarning",
    "NotFiniteError",
    "StatisticsError",
    "TooFewCasesError",
    "TooFewClustersError",
    "refusals",
]


class StatisticsError(ArgumentError):
    """Data or an argument that a statistic is not defined for."""


class TooFewCasesError(StatisticsError):
    """Fewer than two cases: nothing can be said about their spread."""


class TooFewClustersError(StatisticsError):
    """Fewer than two clusters: resampling them can only give the data back."""


class NotFiniteError(StatisticsError):
    """NaN that the caller didn't ask to omit, or an infinite value."""


class DegenerateWarning(MoetraceWarning):
    """A statistic doesn't vary between resamples: its interval is a single point."""


@contextmanager
def refusals() -> Iterator[None]:
    """What the compiled core refuses, as an error of this package."""
    try:
        yield
    except StatisticsError:
        raise
    except ValueError as refusal:
        raise StatisticsError(str(refusal)) from refusal
