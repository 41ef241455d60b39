"""The table behind every ``.summary()``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moetrace.stats import checks
from moetrace.stats.checks import Clusters, Floats
from moetrace.stats.errors import DegenerateWarning, FewClustersWarning, StatisticsError
from moetrace.stats.flips import CORRECTIONS, STATISTICS, Correction, FlipStatistic, sign_flip
from moetrace.stats.intervals import INTERVALS, Interval, bootstrap

if TYPE_CHECKING:
    import pandas as pd


def summary_table(
    effects: npt.ArrayLike,
    *,
    ci: Interval = "percentile",
    n_resamples: int = 5000,
    n_flips: int = 10_000,
    seed: int = 0,
    cluster: Any = None,
    correction: Correction | None = None,
    confidence: float = 0.95,
    statistic: FlipStatistic | None = None,
    threads: int | None = None,
) -> pd.DataFrame:
    """Mean, interval and test of every site.

    >>> mt.stats.summary_table(layers.effects, correction="max_t")

    A NaN is a case that gave no finite number at that site: it is left out of that site's row, and ``n``
    counts the rest. Inactive rows are zeros by the paper's rule, and count. A site with fewer than two
    cases, or whose cases belong to fewer than two clusters, keeps its mean and has NaN for interval and
    p-values. The interval of a site that doesn't vary (an expert that is never active) is a point,
    without a warning.

    Args:
        effects: cases x sites, real numbers.
        ci: ``"percentile"``, ``"basic"``, ``"bca"`` or ``"studentized"``.
        n_resamples: the paper has 5,000.
        n_flips: the paper has 10,000.
        seed: 0 to 2^64 - 1; of the resamples and the flips, which are independent of each other.
        cluster: a label for each case; resamples and flips then keep clusters together, and no p-value is
            below 2^(1 - clusters).
        correction: ``"max_t"`` (step-down) or ``"max_t_single"`` (single-step), both family-wise over the
            sites, ``"holm"`` or ``"bh"``: adds ``p_adjusted``. See :func:`sign_flip`.
        confidence: of the interval.
        statistic: of the sign flips. ``None`` is ``"t"``, the studentised mean, where a correction runs
            over several sites, else ``"mean"``. It changes ``p_adjusted`` of max-T alone: ``p_value`` is
            the paper's test of the mean either way. ``"mean"`` under max-T lets the sites of the widest
            spread hide the others.
        threads: default all that this process may use.

    Returns:
        One row for each column of ``effects``, with columns ``mean, positive_fraction, ci_low, ci_high,
        p_value, [p_adjusted,] n``. Fewer than ten clusters are a :class:`FewClustersWarning`.

    Raises:
        StatisticsError: for infinite effects, shapes that don't fit, arguments out of range, or cases that
            all belong to one cluster.
    """
    import pandas as pd

    values, groups = _checked(effects, cluster)
    checks.warn_of_few(groups, stacklevel=2)
    # All of them here, since without a site that can be tested nothing else looks at them.
    checks.choice(ci, "ci", INTERVALS)
    checks.whole(n_resamples, "n_resamples", 2, checks.MAX_RESAMPLES)
    checks.whole(n_flips, "n_flips", 1, 2**31 - 1)
    checks.seed(seed)
    checks.fraction(confidence, "confidence", closed=False)
    checks.threads(threads)
    if correction is not None:
        checks.choice(correction, "correction", CORRECTIONS)
    if statistic is not None:
        checks.choice(statistic, "statistic", STATISTICS)
    known = ~np.isnan(values)
    n = known.sum(axis=0)
    names = ["mean", "positive_fraction", "ci_low", "ci_high", "p_value"]
    table = {
        name: np.full(values.shape[1], np.nan) for name in names + ["p_adjusted"] * (correction is not None)
    }
    any_case = n > 0
    table["mean"][any_case] = np.where(known, values, 0.0).sum(axis=0)[any_case] / n[any_case]
    table["positive_fraction"][any_case] = (values > 0).sum(axis=0)[any_case] / n[any_case]

    usable = _testable(known, n, groups)
    if usable.any():
        chosen = values[:, usable]
        labels = groups.labels if groups.given else None
        common: dict[str, Any] = {"seed": seed, "cluster": labels, "nan": "omit", "threads": threads}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateWarning)
            warnings.simplefilter("ignore", FewClustersWarning)  # said above, once
            interval = bootstrap(chosen, ci=ci, confidence=confidence, n_resamples=n_resamples, **common)
            test = sign_flip(chosen, n_flips=n_flips, statistic=statistic, correction=correction, **common)
        table["mean"][usable] = interval.estimate
        table["ci_low"][usable] = interval.ci_low
        table["ci_high"][usable] = interval.ci_high
        table["p_value"][usable] = test.p_value
        if correction is not None:
            assert test.p_adjusted is not None
            table["p_adjusted"][usable] = test.p_adjusted
    return pd.DataFrame({**table, "n": n})


def _checked(effects: npt.ArrayLike, cluster: Any) -> tuple[Floats, Clusters]:
    values = checks.reals(effects, "effects")
    if values.ndim != 2:
        raise StatisticsError(f"effects has shape {values.shape}; expected cases x sites")
    if np.isinf(values).any():
        raise StatisticsError("effects has infinite values; expected finite ones, or NaN for those to omit")
    return values, checks.clusters(cluster, len(values))


def _testable(
    known: npt.NDArray[np.bool_], n: npt.NDArray[np.int64], groups: Clusters
) -> npt.NDArray[np.bool_]:
    """Sites with at least two cases, of at least two clusters."""
    usable = n >= 2
    if groups.given:
        held = np.zeros((groups.count, known.shape[1]), np.bool_)
        np.logical_or.at(held, groups.labels, known)
        usable &= held.sum(axis=0) >= 2
    return usable
