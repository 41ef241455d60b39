"""Bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moetrace import _stats
from moetrace.stats import checks
from moetrace.stats.checks import Clusters, Columns, Floats, NanPolicy
from moetrace.stats.errors import DegenerateWarning, StatisticsError, TooFewCasesError, refusals
from moetrace.stats.results import BootstrapResult, unwrap

Statistic = Literal["mean", "ratio", "difference", "positive_fraction", "quantile"]
Interval = Literal["percentile", "basic", "bca", "studentized"]

_STATISTICS: tuple[Statistic, ...] = ("mean", "ratio", "difference", "positive_fraction", "quantile")
INTERVALS: tuple[Interval, ...] = ("percentile", "basic", "bca", "studentized")
_Run = Callable[[Floats, Floats | None, Clusters], _stats.BootstrapIntervals]


def bootstrap(
    x: npt.ArrayLike,
    y: npt.ArrayLike | None = None,
    *,
    statistic: Statistic = "mean",
    ci: Interval = "percentile",
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
    cluster: Any = None,
    two_stage: bool = False,
    nan: NanPolicy = "raise",
    threads: int | None = None,
    q: float = 0.5,
) -> BootstrapResult:
    """Bootstrap a statistic over cases.

    >>> mt.stats.bootstrap(rescue)                                      # mean, 95 % percentile interval
    >>> mt.stats.bootstrap(expert, layer, statistic="ratio")            # Table 7
    >>> mt.stats.bootstrap(effects, ci="bca", cluster=relation_ids)     # cases x hypotheses

    Args:
        x: cases, or cases x hypotheses; real numbers. Columns share the resamples.
        y: of the same shape (or a vector beside a matrix): denominators of a ratio, or what is subtracted.
        statistic: ``"mean"``; ``"ratio"``, mean of x over mean of y; ``"difference"``, mean of x - y over
            the same cases; ``"positive_fraction"``, share of cases above zero; ``"quantile"`` at ``q``
            (linear interpolation).
        ci: ``"percentile"`` as in the paper, ``"basic"``, ``"bca"`` with the jackknife's acceleration, or
            ``"studentized"`` (mean and difference, without clusters).
        confidence: strictly between 0 and 1.
        n_resamples: 2 to 1,000,000; the paper has 5,000.
        seed: 0 to 2^64 - 1. Draw i of resample b depends on (seed, b, i) and the number of cases alone.
        cluster: a label for each case. Clusters are resampled and keep their cases.
        two_stage: resample the cases within each drawn cluster too.
        nan: ``"omit"`` computes each column as if the cases that are NaN in it weren't there. Inactive
            rows are zeros by the paper's rule, not NaN.
        threads: default all that this process may use. Results are the same to the last bit.
        q: level of the quantile.

    Returns:
        A :class:`BootstrapResult`: ``estimate``, ``ci_low``, ``ci_high``, ``standard_error`` (standard
        deviation of the replicates) and ``n``; floats for a vector, arrays for a matrix. A statistic that
        doesn't vary has a point for an interval, and a :class:`DegenerateWarning` says so. Fewer than ten
        clusters are a :class:`FewClustersWarning`.

    Raises:
        StatisticsError: for fewer than two cases or clusters, values that are not finite, shapes that
            don't fit, arguments out of range, denominators whose mean is zero.
    """
    two_stage = checks.flag(two_stage, "two_stage")
    checks.choice(statistic, "statistic", _STATISTICS)
    checks.choice(ci, "ci", INTERVALS)
    checks.choice(nan, "nan", ("raise", "omit"))
    first = checks.columns(x, "x", nan)
    second = _second_sample(first, y, statistic, nan)
    groups = checks.clusters(cluster, len(first.values))
    checks.warn_of_few(groups, stacklevel=2)
    _check_combination(statistic, ci, groups, two_stage)
    level = checks.fraction(q, "q", closed=True)
    settings: dict[str, Any] = {
        "interval": getattr(_stats.Interval, ci),
        "confidence": checks.fraction(confidence, "confidence", closed=False),
        "resamples": checks.whole(n_resamples, "n_resamples", 2, checks.MAX_RESAMPLES),
        "seed": checks.seed(seed),
        "two_stage": bool(two_stage),
        "threads": checks.threads(threads),
    }

    def run(above: Floats, below: Floats | None, own: Clusters) -> _stats.BootstrapIntervals:
        options = _stats.BootstrapOptions(clusters=own.count, **settings)
        with refusals():
            if statistic == "ratio":
                assert below is not None
                return _stats.bootstrap_ratio(above, below, own.labels, options)
            if statistic == "quantile":
                return _stats.bootstrap_quantile(above, level, own.labels, options)
            return _stats.bootstrap_mean(_as_means(above, below, statistic), own.labels, options)

    return BootstrapResult(
        **_by_pattern(run, first, second, groups),
        statistic=statistic,
        ci=ci,
        confidence=float(confidence),
        n_resamples=int(n_resamples),
        seed=int(seed),
        n_clusters=groups.count or None,
        two_stage=bool(two_stage),
    )


def _second_sample(first: Columns, y: npt.ArrayLike | None, statistic: str, nan: NanPolicy) -> Columns | None:
    paired = statistic in ("ratio", "difference")
    if paired != (y is not None):
        need = "needs a second sample y" if paired else "takes no second sample y"
        raise StatisticsError(f"statistic={statistic!r} {need}")
    if y is None:
        return None
    second = checks.columns(y, "y", nan)
    shape = first.values.shape
    if second.values.shape not in (shape, (shape[0], 1)):
        raise StatisticsError(
            f"y has {second.values.shape}, x has {shape}; expected the same cases and columns"
        )
    return Columns(np.ascontiguousarray(np.broadcast_to(second.values, shape)), second.scalar)


def _check_combination(statistic: str, ci: str, groups: Clusters, two_stage: bool) -> None:
    if two_stage and not groups.given:
        raise StatisticsError("two_stage=True needs cluster labels; pass cluster=")
    if ci == "studentized" and (groups.given or statistic not in ("mean", "difference")):
        raise StatisticsError(
            "ci='studentized' is made for a mean or difference without clusters; use ci='bca' here"
        )


def _as_means(above: Floats, below: Floats | None, statistic: str) -> Floats:
    if statistic == "positive_fraction":
        return (above > 0).astype(np.float64)
    return above if below is None else above - below


def _patterns(missing: npt.NDArray[np.bool_]) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]]:
    """(cases to keep, columns) for each set of columns that lack the same cases."""
    if not missing.any():
        yield np.ones(len(missing), np.bool_), np.arange(missing.shape[1])
        return
    found, owner = np.unique(missing, axis=1, return_inverse=True)
    for index in range(found.shape[1]):
        yield ~found[:, index], np.flatnonzero(owner.ravel() == index)


def _by_pattern(run: _Run, first: Columns, second: Columns | None, groups: Clusters) -> dict[str, Any]:
    missing = first.missing if second is None else first.missing | second.missing
    width = first.values.shape[1]
    out = {name: np.empty(width) for name in ("estimate", "low", "high", "standard_error", "degenerate")}
    sizes = np.empty(width, np.int64)
    for keep, owned in _patterns(missing):
        whole = keep.all() and len(owned) == width
        if (left := int(keep.sum())) < 2:
            raise TooFewCasesError(
                f"column {owned[0]} has {left} case(s) that are not NaN; expected at least 2"
            )
        own_groups = groups if whole else groups.of(keep)
        checks.check_cluster_count(own_groups.count)
        parts = [
            None if given is None else given.values if whole else given.values[np.ix_(keep, owned)]
            for given in (first, second)
        ]
        assert parts[0] is not None
        intervals = run(parts[0], parts[1], own_groups)
        for name, values in out.items():
            values[owned] = getattr(intervals, name)
        sizes[owned] = left
    _warn_of_points(out.pop("degenerate"))
    out["ci_low"] = out.pop("low")
    out["ci_high"] = out.pop("high")
    return {name: unwrap(values, first.scalar) for name, values in {**out, "n": sizes}.items()}


def _warn_of_points(degenerate: Floats) -> None:
    if count := int(degenerate.sum()):
        warnings.warn(
            f"{count} of {len(degenerate)} column(s) don't vary between resamples; their interval is a point",
            DegenerateWarning,
            stacklevel=4,
        )
