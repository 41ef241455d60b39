"""What the statistics accept: every argument is looked at here, once."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from moetrace.arguments import as_choice, as_count, as_flag, as_number, shown
from moetrace.stats.errors import (
    FewClustersWarning,
    NotFiniteError,
    StatisticsError,
    TooFewCasesError,
    TooFewClustersError,
    refusals,
)

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]
NanPolicy = Literal["raise", "omit"]

MAX_RESAMPLES = 1_000_000
FEW_CLUSTERS = 10
_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True)
class Columns:
    """Checked data: cases x hypotheses, and whether the caller gave a single hypothesis as a vector."""

    values: Floats
    scalar: bool

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Where a case is NaN in a column."""
        return np.isnan(self.values)


def columns(x: npt.ArrayLike, name: str, nan: NanPolicy) -> Columns:
    """``x`` as a matrix of doubles; NaN only where they are to be omitted, infinities never."""
    values = reals(x, name)
    if values.ndim not in (1, 2):
        raise StatisticsError(
            f"{name} has shape {values.shape}; expected cases, or cases x hypotheses: reshape it so that "
            "the first dimension runs over the cases"
        )
    _check_finite(values, name, nan)
    _check_cases(len(values), name)
    scalar = values.ndim == 1
    return Columns(np.ascontiguousarray(values[:, None] if scalar else values), scalar)


def reals(x: npt.ArrayLike, name: str) -> Floats:
    """``x`` as doubles, of any shape."""
    try:
        values = np.asarray(x)
        if values.dtype.kind not in "biuf":
            values = values.astype(np.float64, casting="safe" if values.dtype.kind == "c" else "unsafe")
        found: Floats = values.astype(np.float64, copy=False)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise StatisticsError(f"{name} must be an array of real numbers; found {shown(x)}") from failure
    return found


def _check_cases(cases: int, name: str) -> None:
    if cases < 2:
        raise TooFewCasesError(f"{name} has {cases} case(s); expected at least 2")


def _check_finite(values: Floats, name: str, nan: NanPolicy) -> None:
    if infinite := int(np.isinf(values).sum()):
        raise NotFiniteError(
            f"{name} has {infinite} infinite value(s); expected finite ones: drop those cases"
        )
    if nan == "raise" and (missing := int(np.isnan(values).sum())):
        raise NotFiniteError(
            f"{name} has {missing} NaN value(s); expected none: pass nan='omit' to leave them out, or 0 "
            "for rows that are inactive"
        )


@dataclass(frozen=True)
class Clusters:
    """Cluster of each case as 0 ... count - 1; no labels when cases stand for themselves."""

    labels: Labels
    count: int

    @property
    def given(self) -> bool:
        """Whether the caller gave labels."""
        return self.count > 0

    def of(self, rows: npt.NDArray[np.bool_]) -> Clusters:
        """The clusters of some of the cases."""
        if not self.given:
            return self
        found, labels = np.unique(self.labels[rows], return_inverse=True)
        return Clusters(labels.astype(np.int32), len(found))


def clusters(labels: Any, cases: int) -> Clusters:
    """Labels of any kind that can be sorted, one for each case."""
    if labels is None:
        return Clusters(np.empty(0, np.int32), 0)
    try:
        given = np.asarray(labels)
        found, codes = np.unique(given, return_inverse=True)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise StatisticsError(
            f"cluster is {shown(labels)}; expected a label for each case, all of one kind that can be sorted"
        ) from failure
    if given.shape != (cases,):
        raise StatisticsError(
            f"cluster has shape {given.shape}; expected one label for each of {cases} cases"
        )
    if given.dtype.kind == "f" and np.isnan(given).any():
        raise StatisticsError("cluster has NaN labels; expected a label for each case")
    check_cluster_count(len(found))
    return Clusters(codes.astype(np.int32), len(found))


def check_cluster_count(count: int) -> None:
    """At least two clusters, or none at all."""
    if count == 1:
        raise TooFewClustersError(
            "all cases belong to one cluster; expected at least two: give finer labels, or cluster=None to "
            "treat the cases as independent"
        )


def warn_of_few(groups: Clusters, stacklevel: int) -> None:
    """FewClustersWarning for fewer than ten clusters; ``stacklevel`` is the caller's own."""
    if groups.given and groups.count < FEW_CLUSTERS:
        warnings.warn(
            f"{groups.count} clusters are fewer than {FEW_CLUSTERS}: a bootstrap of so few gives intervals "
            f"that are too short, and no sign-flip p-value below {2 / 2**groups.count:.3g} is possible. Add "
            "cases of other clusters, or report the clusters one by one; cluster=None takes cases for "
            "independent, which those of a cluster seldom are",
            FewClustersWarning,
            stacklevel=stacklevel + 1,
        )


def choice(value: _Choice, name: str, allowed: tuple[_Choice, ...]) -> _Choice:
    """One of some words."""
    with refusals():
        return as_choice(value, name, allowed)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """An integer of [low, high]."""
    with refusals():
        return as_count(value, name, low, high)


def flag(value: Any, name: str) -> bool:
    """True or False."""
    with refusals():
        return as_flag(value, name)


def seed(value: Any) -> int:
    """A seed: 64 bits."""
    return whole(value, "seed", 0, 2**64 - 1)


def fraction(value: Any, name: str, *, closed: bool) -> float:
    """A number between 0 and 1, with or without the ends."""
    with refusals():
        return as_number(value, name, 0, 1, ends=closed)


def threads(value: int | None) -> int:
    """As many as asked for, or as many as this process may run on. No result depends on it."""
    if value is not None:
        return whole(value, "threads", 1, 1024)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
