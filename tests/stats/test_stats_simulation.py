"""What the statistics promise, by simulation: coverage, type-I error, family-wise error, power.

Every bound is the promise plus or minus the Monte-Carlo error of the simulation (four standard errors).
"""

from __future__ import annotations

import numpy as np
import pytest

from moetrace import stats

pytestmark = pytest.mark.slow


def coverage(draw, truth, runs=2000, **arguments):
    """Columns of one call share the resamples, which correlates the runs a little: use several calls."""
    covered = []
    calls = 20
    for seed in range(calls):
        x, extra = draw(np.random.default_rng(seed), runs // calls)
        found = stats.bootstrap(x, seed=seed, n_resamples=1000, **extra, **arguments)
        covered.append((found.ci_low <= truth) & (truth <= found.ci_high))
    return np.mean(covered)


def error_of(share, runs=2000):
    return 4 * np.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("ci", ["percentile", "basic", "bca", "studentized"])
def test_coverage_of_normal_data(ci):
    found = coverage(lambda rng, runs: (rng.normal(1, 1, (100, runs)), {}), 1.0, ci=ci)
    # At n = 100 the intervals that take the normal's spread for t's are about half a percent short.
    assert 0.94 - error_of(0.95) < found < 0.95 + error_of(0.95)


def test_coverage_of_skewed_data_is_best_where_skewness_is_corrected():
    def draw(rng, runs):
        return rng.lognormal(0, 1, (60, runs)), {}

    found = {ci: coverage(draw, np.exp(0.5), ci=ci) for ci in ("percentile", "basic", "bca", "studentized")}
    assert found["basic"] < found["percentile"] < found["bca"] < found["studentized"]
    assert found["studentized"] > 0.90
    assert found["basic"] < 0.90


def clustered(rng, runs, clusters=40, size=6, within=0.5):
    labels = np.repeat(np.arange(clusters), size)
    x = np.sqrt(within) * rng.normal(0, 1, (clusters, runs))[labels]
    return x + np.sqrt(1 - within) * rng.normal(0, 1, (clusters * size, runs)), labels


def test_the_clustered_bootstrap_covers_where_the_plain_one_does_not():
    def draw(with_labels):
        def drawn(rng, runs):
            x, labels = clustered(rng, runs)
            return x, {"cluster": labels} if with_labels else {}

        return drawn

    assert coverage(draw(False), 0.0) < 0.80
    # Forty clusters: the percentile interval is about one percent short of nominal.
    assert 0.93 - error_of(0.95) < coverage(draw(True), 0.0) < 0.95 + error_of(0.95)
    assert coverage(draw(True), 0.0, two_stage=True) > 0.94


def rejections(x, level=0.05, **arguments):
    return stats.sign_flip(x, n_flips=999, **arguments).p_value <= level


@pytest.mark.parametrize("shape", ["normal", "laplace", "sparse"])
def test_type_one_error_of_the_sign_flip_test(shape):
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.laplace(0, 1, (40, 200)) if shape == "laplace" else rng.normal(0, 1, (40, 200))
        if shape == "sparse":
            x[rng.random(x.shape) < 0.7] = 0.0
        shares.append(rejections(x, seed=seed).mean())
    # Columns of one call share the flips: the spread between calls is the error to reckon with.
    error = 4 * np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert np.mean(shares) < 0.05 + error
    assert np.mean(shares) > 0.05 - error - 0.005


def test_clustered_flips_keep_the_level_where_plain_ones_do_not():
    plain, whole = [], []
    for seed in range(20):
        x, labels = clustered(np.random.default_rng(seed), 100)
        plain.append(rejections(x, seed=seed).mean())
        whole.append(rejections(x, seed=seed, cluster=labels).mean())
    assert np.mean(plain) > 0.15
    assert np.mean(whole) < 0.05 + 4 * np.std(whole, ddof=1) / np.sqrt(20)


def correlated(rng, cases=40, sites=60, share=0.8):
    common = rng.normal(0, 1, (cases, 1))
    return np.sqrt(share) * common + np.sqrt(1 - share) * rng.normal(0, 1, (cases, sites))


@pytest.mark.parametrize("correction", ["max_t_single", "max_t"])
@pytest.mark.parametrize("statistic", ["mean", "t"])
def test_family_wise_error_under_correlated_nulls(correction, statistic):
    runs = 800
    errors = 0
    for seed in range(runs):
        x = correlated(np.random.default_rng(seed))
        x[:, ::2] *= 3  # unequal spreads
        found = stats.sign_flip(x, n_flips=499, seed=seed, statistic=statistic, correction=correction)
        errors += found.p_adjusted.min() <= 0.05
    assert errors / runs < 0.05 + error_of(0.05, runs)
    assert errors / runs > 0.02  # and it isn't won by never rejecting


def heavy_and_sparse(rng, cases=30):
    """Null sites as a trace has them: spreads of several powers of ten, mostly zeros in some, one scale."""
    x = correlated(rng, cases, 40, share=0.5) * np.exp(rng.normal(0, 1.5, 40))
    x[:, 10:20] *= rng.random((cases, 10)) < 0.1
    x[:, 20:30] *= rng.standard_t(2, (cases, 10)) ** 2
    return x


@pytest.mark.parametrize("correction", ["max_t", "max_t_single"])
@pytest.mark.parametrize("clusters", [None, 12])
def test_family_wise_error_of_the_default_where_sites_differ_in_spread_and_tails(correction, clusters):
    runs = 1000
    errors = naive = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = heavy_and_sparse(rng)
        labels = None if clusters is None else np.arange(len(x)) % clusters
        if labels is not None:
            x = x + rng.normal(0, 1, (clusters, x.shape[1]))[labels]
        found = stats.sign_flip(x, n_flips=499, seed=seed, correction=correction, cluster=labels)
        assert found.statistic == "t"
        errors += found.p_adjusted.min() <= 0.05
        naive += found.p_value.min() <= 0.05
    assert errors / runs < 0.05 + error_of(0.05, runs)
    assert errors / runs > 0.02
    assert naive / runs > 0.4  # what the correction is for


def test_the_studentised_maximum_finds_narrow_sites_that_the_mean_s_misses():
    """With real effects in narrow sites beside wide null ones."""
    runs = 200
    found = {"mean": 0, "t": 0}
    false = 0
    for seed in range(runs):
        x = correlated(np.random.default_rng(seed), 40, 30, share=0.3)
        x[:, :25] *= 8
        x[:, 25:] += 0.7
        for statistic in found:
            p = stats.sign_flip(x, n_flips=999, seed=seed, statistic=statistic, correction="max_t").p_adjusted
            found[statistic] += (p[25:] <= 0.05).sum()
            false += statistic == "t" and (p[:25] <= 0.05).any()
    assert found["t"] > 0.7 * 5 * runs
    assert found["mean"] < 0.1 * 5 * runs
    assert false / runs < 0.05 + error_of(0.05, runs)


def test_max_t_has_more_power_than_holm_on_correlated_sites():
    """With some sites truly active, over the same flips."""
    runs = 200
    found = dict.fromkeys(("holm", "max_t_single", "max_t"), 0)
    false = 0
    for seed in range(runs):
        x = correlated(np.random.default_rng(seed))
        x[:, :20] += 0.5
        for correction in found:
            adjusted = stats.sign_flip(
                x, n_flips=1999, seed=seed, statistic="t", correction=correction
            ).p_adjusted
            found[correction] += (adjusted[:20] <= 0.05).sum()
            if correction == "max_t":
                false += (adjusted[20:] <= 0.05).any()
    assert found["max_t_single"] > 1.1 * found["holm"]
    assert found["max_t"] >= found["max_t_single"]
    assert false / runs < 0.05 + error_of(0.05, runs)
