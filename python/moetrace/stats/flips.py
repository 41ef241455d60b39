"""Sign-flip tests."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moetrace import _stats
from moetrace.stats import checks
from moetrace.stats.adjustment import adjusted
from moetrace.stats.checks import Clusters, Floats, NanPolicy
from moetrace.stats.errors import TooFewCasesError, refusals
from moetrace.stats.results import SignFlipResult, unwrap

FlipStatistic = Literal["mean", "t"]
Correction = Literal["max_t", "max_t_single", "holm", "bh"]

STATISTICS: tuple[FlipStatistic, ...] = ("mean", "t")
CORRECTIONS: tuple[Correction, ...] = ("max_t", "max_t_single", "holm", "bh")


def sign_flip(
    x: npt.ArrayLike,
    *,
    n_flips: int = 10_000,
    seed: int = 0,
    cluster: Any = None,
    statistic: FlipStatistic | None = None,
    correction: Correction | None = None,
    nan: NanPolicy = "raise",
    threads: int | None = None,
) -> SignFlipResult:
    """Test whether effects are symmetric around zero, by flipping the signs of cases.

    >>> mt.stats.sign_flip(rescue).p_value
    >>> mt.stats.sign_flip(effects, correction="max_t").p_adjusted    # every site, family-wise

    Two-sided: b flips of m have a statistic at least as extreme as the observed one, and
    p = (b + 1) / (m + 1). Where all 2^n assignments of signs are no more than ``n_flips``, they are
    enumerated, p is their exact share, and the result says ``exact``. p is never zero.

    Statistics count as equal when they differ by no more than 1e-12 of the mean absolute effect, so that
    rounding breaks no tie.

    Args:
        x: cases, or cases x hypotheses. All columns share the flips.
        n_flips: 1 to 2^31 - 1; the paper has 10,000.
        seed: 0 to 2^64 - 1. The sign of case i in flip b depends on (seed, b, i) alone.
        cluster: a label for each case; one sign for a cluster. 2^n is then of clusters, and no p is below
            2^(1 - clusters).
        statistic: ``"mean"`` as in the paper, or ``"t"``, its studentised form (over the sums of clusters
            where there are any). ``None`` is ``"t"`` where there is a correction over several columns, else
            ``"mean"``. No flip changes a case's square, so t grows with the mean and a column's ``p_value``
            is the same with both, the paper's (Table 2); so are Holm and Benjamini-Hochberg. They differ in
            the maximum over columns of max-T: a mean's is taken by the columns of the widest spread, which
            then hide narrow ones, and only ``"t"`` weighs columns alike. Where columns lack different
            cases, a sum over the root of its sum of squares stands for t in comparisons between columns.
        correction: ``None``; ``"max_t"``, the step-down maximum, or ``"max_t_single"``, the single-step
            one, whose p are never smaller: both with family-wise error over the columns under any
            dependence between them (Westfall and Young 1993, algorithms 2.8 and 2.5); ``"holm"``;
            ``"bh"``, the false discovery rate.
        nan: ``"omit"`` leaves a case out of the columns in which it is NaN; a case that is NaN in all of
            them is dropped beforehand.
        threads: default all that this process may use. Results are the same to the last bit.

    Returns:
        A :class:`SignFlipResult` with ``estimate`` (the mean), ``p_value``, ``p_adjusted``, ``exact``,
        ``n``; floats for a vector, arrays for a matrix. Fewer than ten clusters are a
        :class:`FewClustersWarning`.

    Raises:
        StatisticsError: for fewer than two cases or clusters, values that are not finite, shapes that
            don't fit, arguments out of range.
    """
    if statistic is not None:
        checks.choice(statistic, "statistic", STATISTICS)
    checks.choice(nan, "nan", ("raise", "omit"))
    if correction is not None:
        checks.choice(correction, "correction", CORRECTIONS)
    given = checks.columns(x, "x", nan)
    if statistic is None:
        statistic = "mean" if correction is None or given.values.shape[1] < 2 else "t"
    groups = checks.clusters(cluster, len(given.values))
    checks.warn_of_few(groups, stacklevel=2)
    values, groups, n = _without_missing(given.values, groups)
    values, exponent = _tamed(values)
    sums = _stats.cluster_sums(values, groups.labels, groups.count) if groups.given else values
    with refusals():
        counts = _stats.sign_flip(
            sums * _scales(sums, n, statistic),
            checks.whole(n_flips, "n_flips", 1, 2**31 - 1),
            checks.seed(seed),
            checks.threads(threads),
        )
    p_value = _share(counts.own, counts)
    means = np.ldexp(values.sum(axis=0) / n, exponent)
    return SignFlipResult(
        estimate=unwrap(means, given.scalar),
        observed=unwrap(means if statistic == "mean" else _t(sums), given.scalar),
        p_value=unwrap(p_value, given.scalar),
        p_adjusted=_correct(p_value, counts, correction, given.scalar),
        n=unwrap(n, given.scalar),
        exact=counts.exact,
        n_flips=counts.flips,
        statistic=statistic,
        correction=correction,
        seed=int(seed),
        n_clusters=groups.count or None,
    )


def _without_missing(values: Floats, groups: Clusters) -> tuple[Floats, Clusters, npt.NDArray[np.int64]]:
    """Zeros for NaN, which no flip changes; and how many cases each column has."""
    missing = np.isnan(values)
    n = np.asarray((~missing).sum(axis=0), np.int64)
    if missing.any():
        if (n < 2).any():
            column = int(np.argmax(n < 2))
            raise TooFewCasesError(
                f"column {column} has {n[column]} case(s) that are not NaN; expected at least 2"
            )
        keep = np.asarray(~missing.all(axis=1))
        values = np.where(missing, 0.0, values)[keep]
        groups = groups.of(keep)
        checks.check_cluster_count(groups.count)
    return values, groups, n


def _tamed(values: Floats) -> tuple[Floats, int]:
    """Values whose sums and squares neither overflow nor vanish, and the power of two that they lack.

    A power of two changes no digit, and no statistic of flips but the mean's own size.
    """
    largest = float(np.abs(values).max(initial=0.0))
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) < 400:
        return values, 0
    return np.ldexp(values, -exponent), exponent


def _scales(sums: Floats, n: npt.NDArray[np.int64], statistic: FlipStatistic) -> Floats:
    """What turns a column's sum into something that orders flips, and columns, as the statistic does.

    No flip changes a sum of squares, so t = r sqrt(m - 1) / sqrt(1 - r^2) with r = sum / sqrt(m sum of
    squares): it grows with r, and r is a sum of scaled values.
    """
    if statistic == "mean":
        return np.asarray(n.max(initial=1) / n, np.float64)
    size: Floats = np.sqrt(np.square(sums).sum(axis=0))
    scales: Floats = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
    return scales


def _t(sums: Floats) -> Floats:
    units = len(sums)
    total = sums.sum(axis=0)
    spread = np.sqrt(np.square(sums - total / units).sum(axis=0) * units / (units - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total == 0, 0.0, total / spread)


def _share(at_least: npt.NDArray[np.int64], counts: _stats.SignFlipCounts) -> Floats:
    identity = 0 if counts.exact else 1  # enumeration visits the observed signs themselves
    share: Floats = (at_least + identity) / (counts.flips + identity)
    return share


def _correct(
    p_value: Floats, counts: _stats.SignFlipCounts, correction: Correction | None, scalar: bool
) -> Any:
    if correction is None:
        return None
    if correction == "max_t_single":
        result = _share(counts.single_step, counts)
    elif correction == "max_t":
        result = _stats.monotone(_share(counts.step_down, counts), counts.order)
    else:
        result = adjusted(p_value, correction)
    return unwrap(result, scalar)
