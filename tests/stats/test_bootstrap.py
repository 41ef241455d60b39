"""Bootstrap intervals against their numpy twins and against scipy, on the very same resamples."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.stats

from moetrace import stats
from moetrace.stats import DegenerateWarning
from tests.stats import twins

RESAMPLES = 2000
SPREAD = 1e-6  # the interval's ends are exact; the standard error is that of near values
AIR_CONDITIONING = np.array([3, 5, 7, 18, 43, 85, 91, 98, 100, 130, 230, 487.0])


@cache
def draws_of(n, seed=0):
    return twins.resample_counts(n, RESAMPLES, seed)


def indices_of(counts):
    return np.array([np.repeat(np.arange(len(row)), row) for row in counts])


def samples():
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random(40) < 0.1, rng.normal(1, 1, 40), 0.0)
    return {
        "normal": rng.normal(0.3, 1, 128),
        "skewed": rng.exponential(1, 50),
        "sparse": sparse,
        "two cases": np.array([1.0, 2.5]),
        "whole numbers": rng.integers(-3, 4, 30).astype(float),
        "air conditioning": AIR_CONDITIONING,
    }


@pytest.mark.parametrize("name", samples())
@pytest.mark.parametrize("ci", ["percentile", "basic", "bca"])
def test_mean_is_its_twin(name, ci):
    x = samples()[name]
    found = stats.bootstrap(x, ci=ci, n_resamples=RESAMPLES, confidence=0.9)
    replicates = draws_of(len(x)) @ x / len(x)
    without = (x.sum() - x) / (len(x) - 1)
    expected = twins.interval(replicates, x.mean(), ci, 0.9, without)
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.standard_error, replicates.std(ddof=1), rtol=SPREAD)
    assert found.estimate == pytest.approx(x.mean(), rel=1e-15)
    assert found.n == len(x)


@pytest.mark.parametrize("ci", ["percentile", "basic", "BCa"])
@pytest.mark.parametrize("name", ["normal", "skewed", "air conditioning"])
def test_mean_is_scipys_on_the_same_resamples(name, ci, monkeypatch):
    x = samples()[name]
    indices = indices_of(draws_of(len(x)))
    monkeypatch.setattr(
        scipy.stats._resampling,
        "_bootstrap_resample",
        lambda sample, n_resamples=None, rng=None, **_: sample[..., indices],
    )
    theirs = scipy.stats.bootstrap((x,), np.mean, n_resamples=RESAMPLES, method=ci, vectorized=True)
    ours = stats.bootstrap(x, ci=ci.lower(), n_resamples=RESAMPLES)
    np.testing.assert_allclose((ours.ci_low, ours.ci_high), theirs.confidence_interval, rtol=1e-11)
    np.testing.assert_allclose(ours.standard_error, theirs.standard_error, rtol=SPREAD)


def test_air_conditioning_data_of_davison_and_hinkley():
    """Example 5.8: a = 0.0938; with many resamples the BCa levels and the interval settle."""
    found = stats.bootstrap(AIR_CONDITIONING, ci="bca", n_resamples=200_000)
    low, high = scipy.stats.bootstrap(
        (AIR_CONDITIONING,), np.mean, n_resamples=100_000, batch=10_000, rng=0
    ).confidence_interval
    assert found.estimate == pytest.approx(108.0833, abs=1e-4)
    assert found.ci_low == pytest.approx(low, rel=0.01)
    assert found.ci_high == pytest.approx(high, rel=0.01)


def test_standard_error_of_all_resamples_of_a_small_sample():
    x = np.array([1.0, 2.0, 4.0])
    everything = np.array([x[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)])
    found = stats.bootstrap(x, n_resamples=400_000)
    assert found.standard_error == pytest.approx(everything.std(), rel=0.005)
    assert found.ci_low == np.quantile(everything, 0.025, method="inverted_cdf")


@pytest.mark.parametrize("ci", ["percentile", "basic", "bca"])
def test_ratio_is_its_twin(ci):
    rng = np.random.default_rng(1)
    y = rng.normal(1, 0.5, 60)
    x = 0.5 * y + rng.normal(0, 0.3, 60)
    counts = draws_of(60)
    found = stats.bootstrap(x, y, statistic="ratio", ci=ci, n_resamples=RESAMPLES)
    without = (x.sum() - x) / (y.sum() - y)
    expected = twins.interval((counts @ x) / (counts @ y), x.sum() / y.sum(), ci, 0.95, without)
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12)
    assert found.estimate == pytest.approx(x.mean() / y.mean())


def test_a_vector_of_denominators_serves_every_column():
    rng = np.random.default_rng(2)
    x, y = rng.normal(0, 1, (30, 3)), rng.normal(2, 0.3, 30)
    found = stats.bootstrap(x, y, statistic="ratio", n_resamples=300)
    for column in range(3):
        alone = stats.bootstrap(x[:, column], y, statistic="ratio", n_resamples=300)
        assert found.ci_low[column] == alone.ci_low


def test_difference_and_positive_fraction_are_means():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0.2, 1, 40), rng.normal(0, 1, 40)
    pairs = [
        (stats.bootstrap(x, y, statistic="difference", ci="bca"), stats.bootstrap(x - y, ci="bca")),
        (stats.bootstrap(x, statistic="positive_fraction"), stats.bootstrap((x > 0) * 1.0)),
    ]
    for found, expected in pairs:
        assert (found.estimate, found.ci_low, found.ci_high, found.standard_error) == (
            expected.estimate,
            expected.ci_low,
            expected.ci_high,
            expected.standard_error,
        )
    zeros_and_one = np.array([0.0, 0.0, 0.0, 1.0])
    assert stats.bootstrap(zeros_and_one, statistic="positive_fraction").estimate == 0.25


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("ci", ["percentile", "basic", "bca"])
def test_quantile_is_its_twin(q, ci):
    x = samples()["skewed"]
    replicates = np.quantile(x[indices_of(draws_of(len(x)))], q, axis=1)
    without = np.array([np.quantile(np.delete(x, i), q) for i in range(len(x))])
    found = stats.bootstrap(x, statistic="quantile", q=q, ci=ci, n_resamples=RESAMPLES)
    expected = twins.interval(replicates, np.quantile(x, q), ci, 0.95, without)
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, replicates.std(ddof=1), rtol=1e-12)


def test_studentised_interval_is_its_twin():
    x = samples()["skewed"]
    resampled = x[indices_of(draws_of(len(x)))]
    root = np.sqrt(len(x))
    t = (resampled.mean(axis=1) - x.mean()) / (resampled.std(axis=1, ddof=1) / root)
    low, high = np.quantile(t, [0.025, 0.975])
    error = x.std(ddof=1) / root
    found = stats.bootstrap(x, ci="studentized", n_resamples=RESAMPLES)
    expected = (x.mean() - high * error, x.mean() - low * error)
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, resampled.mean(axis=1).std(ddof=1), rtol=1e-10)


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("ci", ["percentile", "basic", "bca"])
@pytest.mark.parametrize("statistic", ["mean", "ratio", "quantile"])
def test_clustered_bootstrap_is_its_twin(statistic, ci, two_stage):
    rng = np.random.default_rng(4)
    labels = np.sort(rng.integers(0, 9, 50)).astype(np.int32)
    x = rng.normal(0, 1, 50) + rng.normal(0, 1, 9)[labels]
    y = rng.normal(2, 0.2, 50) if statistic == "ratio" else None
    counts = twins.cluster_counts(labels, RESAMPLES, 0, two_stage)
    names = np.array([f"P{code:02d}" for code in labels])
    found = stats.bootstrap(
        x, y, statistic=statistic, ci=ci, cluster=names, two_stage=two_stage, n_resamples=RESAMPLES
    )

    def value(weights):
        if statistic == "quantile":
            return np.median(np.repeat(x, weights))
        return weights @ x / (weights.sum() if y is None else weights @ y)

    replicates = np.array([value(row) for row in counts])
    without = np.array([value((labels != g).astype(int)) for g in range(9)])
    expected = twins.interval(replicates, value(np.ones(50, int)), ci, 0.95, without)
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-11)
    assert found.n_clusters == 9


def test_omitted_cases_are_as_if_they_were_not_there():
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (20, 12))
    x[3] = np.nan
    x[5, 2] = x[7, 2] = x[0, 9] = np.nan
    labels = np.arange(20) % 6
    for arguments in ({}, {"ci": "bca"}, {"cluster": labels}, {"statistic": "quantile"}):
        whole = stats.bootstrap(x, nan="omit", n_resamples=200, **arguments)
        for column in range(12):
            keep = ~np.isnan(x[:, column])
            alone = dict(arguments)
            if "cluster" in alone:
                alone["cluster"] = labels[keep]
            expected = stats.bootstrap(x[keep, column], n_resamples=200, **alone)
            assert whole.n[column] == keep.sum() == expected.n
            assert (whole.ci_low[column], whole.ci_high[column]) == (expected.ci_low, expected.ci_high)


def test_zeros_count_as_cases():
    rescue = np.array([0.0, 0.0, 1.0, 2.0])
    assert stats.bootstrap(rescue).estimate == 0.75
    assert stats.bootstrap(rescue).n == 4


@pytest.mark.parametrize("ci", ["percentile", "basic", "bca", "studentized"])
def test_a_constant_column_has_a_point_and_a_warning(ci):
    with pytest.warns(DegenerateWarning, match="1 of 1"):
        found = stats.bootstrap(np.full(10, 0.1), ci=ci)
    assert (found.estimate, found.ci_low, found.ci_high, found.standard_error) == (0.1, 0.1, 0.1, 0.0)


@pytest.mark.parametrize("ci", ["percentile", "basic", "bca", "studentized"])
@pytest.mark.parametrize("power", [-360, -340, 340, 345])  # 1e-108, 1e-102, 1e102, 1e104
def test_intervals_scale_with_the_data_to_the_bit(ci, power):
    """Squares and cubes of such numbers leave the range of doubles; a power of two scales exactly."""
    x = np.random.default_rng(4).lognormal(0, 1, 40)
    plain = stats.bootstrap(x, ci=ci, n_resamples=400)
    scaled = stats.bootstrap(np.ldexp(x, power), ci=ci, n_resamples=400)
    for name in ("estimate", "ci_low", "ci_high", "standard_error"):
        assert getattr(scaled, name) == np.ldexp(getattr(plain, name), power), name


@pytest.mark.parametrize("scale", [1e104, 1e-106])
def test_bca_at_scales_that_are_no_powers_of_two(scale):
    x = np.random.default_rng(5).gamma(2, size=30)
    plain = stats.bootstrap(x, ci="bca", n_resamples=400)
    scaled = stats.bootstrap(x * scale, ci="bca", n_resamples=400)
    expected = np.multiply([plain.ci_low, plain.ci_high], scale)
    np.testing.assert_allclose([scaled.ci_low, scaled.ci_high], expected)
