"""What must not matter, doesn't: threads, batches, order of columns, shift, scale, sign."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moetrace import stats
from tests.stats import twins

VALUES = st.floats(-100, 100).map(lambda value: value if abs(value) > 1e-3 else 0.0)
MATRICES = hnp.arrays(np.float64, st.tuples(st.integers(2, 40), st.integers(1, 20)), elements=VALUES)
SEEDS = st.integers(0, 2**64 - 1)
quick = settings(max_examples=40, deadline=None)
pytestmark = pytest.mark.filterwarnings("ignore::moetrace.stats.DegenerateWarning")


def fields(result):
    return {
        name: np.atleast_1d(getattr(result, name))
        for name in result._per_column
        if getattr(result, name) is not None
    }


def assert_same(a, b, columns=slice(None)):
    for name, values in fields(a).items():
        np.testing.assert_array_equal(values[columns], fields(b)[name], err_msg=name)


@quick
@given(MATRICES, SEEDS, st.sampled_from(["percentile", "basic", "bca", "studentized"]))
def test_threads_do_not_matter_to_the_bootstrap(x, seed, ci):
    results = [
        stats.bootstrap(x, ci=ci, n_resamples=300, seed=seed, threads=threads) for threads in (1, 2, 4)
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@quick
@given(MATRICES, SEEDS)
def test_threads_do_not_matter_to_sign_flips(x, seed):
    results = [
        stats.sign_flip(x, n_flips=1100, seed=seed, threads=threads, correction="max_t")
        for threads in (1, 2, 4)
    ]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@quick
@given(MATRICES, SEEDS, st.randoms(use_true_random=False))
def test_order_of_columns_does_not_matter(x, seed, random):
    order = np.array(random.sample(range(x.shape[1]), x.shape[1]))
    plain = stats.bootstrap(x, ci="bca", n_resamples=200, seed=seed)
    assert_same(plain, stats.bootstrap(x[:, order], ci="bca", n_resamples=200, seed=seed), order)
    for correction in ("max_t_single", "max_t"):
        plain = stats.sign_flip(x, n_flips=200, seed=seed, correction=correction)
        shuffled = stats.sign_flip(x[:, order], n_flips=200, seed=seed, correction=correction)
        assert_same(plain, shuffled, order)


@quick
@given(MATRICES, SEEDS)
def test_a_column_alone_is_the_column_among_others(x, seed):
    column = x.shape[1] // 2
    together = stats.bootstrap(x, n_resamples=200, seed=seed)
    assert_same(
        together, stats.bootstrap(x[:, column], n_resamples=200, seed=seed), slice(column, column + 1)
    )
    together = stats.sign_flip(x, n_flips=200, seed=seed)
    assert together.p_value[column] == stats.sign_flip(x[:, column], n_flips=200, seed=seed).p_value


@quick
@given(MATRICES, SEEDS, st.floats(-50, 50))
def test_shift_moves_the_interval_along(x, seed, shift):
    scale = np.abs(x).max() + abs(shift) + 1
    for ci in ("percentile", "basic"):
        plain = stats.bootstrap(x, ci=ci, n_resamples=200, seed=seed)
        moved = stats.bootstrap(x + shift, ci=ci, n_resamples=200, seed=seed)
        np.testing.assert_allclose(moved.ci_low, plain.ci_low + shift, atol=1e-12 * scale)
        np.testing.assert_allclose(moved.ci_high, plain.ci_high + shift, atol=1e-12 * scale)
        np.testing.assert_allclose(moved.standard_error, plain.standard_error, rtol=1e-6, atol=1e-12 * scale)


@quick
@given(MATRICES, SEEDS, st.sampled_from([0.25, 2.0, 1024.0]))
def test_scale_stretches_the_interval_and_leaves_p(x, seed, factor):
    for ci in ("percentile", "basic", "bca"):
        plain = stats.bootstrap(x, ci=ci, n_resamples=200, seed=seed)
        stretched = stats.bootstrap(factor * x, ci=ci, n_resamples=200, seed=seed)
        np.testing.assert_array_equal(stretched.ci_low, factor * plain.ci_low)
        np.testing.assert_array_equal(stretched.ci_high, factor * plain.ci_high)
    plain = stats.sign_flip(x, n_flips=200, seed=seed, correction="max_t_single")
    stretched = stats.sign_flip(factor * x, n_flips=200, seed=seed, correction="max_t_single")
    np.testing.assert_array_equal(stretched.p_adjusted, plain.p_adjusted)


@quick
@given(MATRICES, SEEDS, st.floats(0.01, 100))
def test_any_positive_scale_leaves_p(x, seed, factor):
    plain = stats.sign_flip(x, n_flips=200, seed=seed)
    np.testing.assert_array_equal(stats.sign_flip(factor * x, n_flips=200, seed=seed).p_value, plain.p_value)


@quick
@given(MATRICES, SEEDS)
def test_the_sign_mirrors_the_interval_and_leaves_p(x, seed):
    plain = stats.bootstrap(x, ci="percentile", n_resamples=201, seed=seed)
    mirrored = stats.bootstrap(-x, ci="percentile", n_resamples=201, seed=seed)
    np.testing.assert_allclose(mirrored.ci_low, -plain.ci_high, atol=1e-12)
    np.testing.assert_allclose(mirrored.ci_high, -plain.ci_low, atol=1e-12)
    np.testing.assert_array_equal(
        stats.sign_flip(-x, n_flips=99, seed=seed).p_value, stats.sign_flip(x, n_flips=99, seed=seed).p_value
    )


@quick
@given(MATRICES, SEEDS)
def test_p_values_are_probabilities_above_zero(x, seed):
    found = stats.sign_flip(x, n_flips=99, seed=seed, correction="max_t")
    assert ((found.p_value > 0) & (found.p_value <= 1)).all()
    assert (found.p_adjusted >= found.p_value).all()


def test_more_resamples_begin_with_fewer():
    x = np.random.default_rng(0).normal(0, 1, 10)
    replicates = twins.resample_counts(10, 500, 1) @ x / 10
    for resamples in (50, 500):
        found = stats.bootstrap(x, n_resamples=resamples, seed=1)
        expected = np.quantile(replicates[:resamples], [0.025, 0.975])
        np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12)


def test_results_are_known_forever():
    """Written down once: a change of these numbers changes published results."""
    x = np.array([0.5, -1.25, 2.0, 3.5, 0.0, 0.75, -0.5, 1.0])
    found = stats.bootstrap(x, seed=0)
    assert (found.ci_low, found.ci_high) == (-0.125, 1.7820312499999886)
    assert stats.sign_flip(x, n_flips=200, seed=0).p_value == 59 / 201
