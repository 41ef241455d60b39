"""The generator against its published vectors, and every draw against its twin."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace import stats
from moetrace.stats import StatisticsError
from tests.stats import twins

# From the generator's own repository (Random123, kat_vectors, philox4x32 with 10 rounds).
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_twin_gives_the_published_vectors(counter, key, expected):
    assert twins.philox4x32(counter, key) == expected


@pytest.mark.parametrize("n", [2, 3, 13, 128])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_resamples_are_their_twin(n, seed):
    x = np.random.default_rng(n).lognormal(size=n)
    found = stats.bootstrap(x, n_resamples=20, seed=seed)
    expected = np.quantile(twins.resample_counts(n, 20, seed) @ x / n, [0.025, 0.975])
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12)


@pytest.mark.parametrize("two_stage", [False, True])
def test_clustered_resamples_are_their_twin(two_stage):
    labels = np.array([0, 1, 1, 2, 2, 2, 0, 3, 4, 4, 4, 4], np.int32)
    x = np.random.default_rng(0).lognormal(size=12)
    found = stats.bootstrap(x, n_resamples=40, seed=3, cluster=labels, two_stage=two_stage)
    counts = twins.cluster_counts(labels, 40, 3, two_stage)
    expected = np.quantile(counts @ x / counts.sum(axis=1), [0.025, 0.975])
    np.testing.assert_allclose((found.ci_low, found.ci_high), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [31, 32, 33, 150])
def test_signs_are_their_twin(n):
    x = np.random.default_rng(n).lognormal(size=(n, 40)) - 1.2
    found = stats.sign_flip(x, n_flips=200, seed=5)
    expected = twins.flip_p_values(x, twins.flip_signs(n, 200, 5), exact=False)["own"]
    np.testing.assert_array_equal(found.p_value, expected)
    assert len(set(expected)) > 10  # the columns differ, so that other signs would show


def test_samples_without_replacement_are_their_twin():
    for n, k, seed, stream in [
        (8, 3, 0, 0),
        (8, 8, 1, 2**40),
        (1, 1, 0, 5),
        (200, 7, 2**63, 9),
        (5, 0, 0, 0),
    ]:
        found = stats.sample_without_replacement(n, k, seed, stream)
        assert found.tolist() == twins.sample_without_replacement(n, k, seed, stream)
        assert found.dtype == np.int64


def test_integers_are_their_twin_and_a_longer_draw_begins_with_a_shorter_one():
    found = stats.philox_integers(100, 50, seed=3, stream=4)
    assert found.tolist() == [twins.below(100, 3, twins.SAMPLE, 4, i) for i in range(50)]
    np.testing.assert_array_equal(found[:7], stats.philox_integers(100, 7, seed=3, stream=4))


def test_controls_of_a_case_are_known_forever():
    """Written down once: a change of these numbers changes published controls."""
    assert stats.sample_without_replacement(7, 3, seed=0, stream=11072).tolist() == [0, 5, 3]
    assert stats.philox_integers(128, 4, seed=0, stream=636).tolist() == [97, 91, 31, 7]


def test_draws_are_even():
    counts = np.bincount(stats.philox_integers(10, 100_000, seed=1), minlength=10)
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(9_000)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.sample_without_replacement(3, 4),
        lambda: stats.sample_without_replacement(-1, 0),
        lambda: stats.sample_without_replacement(3, 1, seed=-1),
        lambda: stats.sample_without_replacement(3, 1, stream=2**64),
        lambda: stats.sample_without_replacement(3.0, 1),
        lambda: stats.philox_integers(0, 3),
        lambda: stats.philox_integers(True, 3),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(StatisticsError, match="expected an integer from"):
        call()
