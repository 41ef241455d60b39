"""Sampled orders and the Shapley values estimated from them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from scipy import stats

from moetrace.coalition import (
    prefix_coalitions,
    sample_permutations,
    sampled_shapley,
    shapley,
)
from moetrace.errors import ArgumentError
from moetrace.stats import philox_integers
from tests.coalition import games, oracle


def complete(values: np.ndarray) -> np.ndarray:
    return np.arange(values.shape[1])


def all_orders(k: int) -> np.ndarray:
    return np.array(list(permutations(range(k))))


def estimate(values: np.ndarray, orders: np.ndarray, **options: bool) -> tuple[np.ndarray, np.ndarray]:
    found = sampled_shapley(orders, complete(values), values, **options)
    return found.mean, found.standard_error


@pytest.mark.parametrize("k", [1, 2, 9, 63])
def test_rows_are_permutations_and_a_function_of_the_arguments(k: int) -> None:
    orders = sample_permutations(k, 40, seed=3, stream=8)
    assert orders.shape == (40, k)
    assert orders.dtype == np.int64
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(k), (40, 1)))
    np.testing.assert_array_equal(orders, sample_permutations(k, 40, seed=3, stream=8))
    np.testing.assert_array_equal(orders[:7], sample_permutations(k, 7, seed=3, stream=8))


def test_seeds_and_streams_differ_and_share_nothing_with_the_statistics() -> None:
    draws = [
        sample_permutations(20, 5, seed, stream) for seed, stream in ((0, 0), (0, 1), (1, 0), (2**63, 0))
    ]
    draws.append(sample_permutations(20, 5, 0, 2**40))
    assert len({draw.tobytes() for draw in draws}) == len(draws)
    # With a counter in common the first step of an order and the first integer would always agree.
    firsts = [(sample_permutations(20, 1, s)[0, 0], philox_integers(20, 1, s)[0]) for s in range(60)]
    assert sum(int(a) == int(b) for a, b in firsts) < 15


def test_every_order_is_equally_likely() -> None:
    """Chi-square over the 24 orders of 4 players; an error of one part in 30 would be seen."""
    orders = sample_permutations(4, 48_000, seed=1)
    counts = Counter(map(tuple, orders.tolist()))
    assert len(counts) == factorial(4)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_antithetic_rows_are_reversed_and_begin_with_the_plain_ones() -> None:
    pairs = sample_permutations(9, 20, seed=5, stream=2, antithetic=True)
    np.testing.assert_array_equal(pairs[1::2], pairs[::2, ::-1])
    np.testing.assert_array_equal(pairs[::2], sample_permutations(9, 10, seed=5, stream=2))


def test_prefix_coalitions_are_the_sets_that_form() -> None:
    orders = sample_permutations(7, 30, seed=2)
    expected = {sum(1 << int(j) for j in row[: step + 1]) for row in orders for step in range(7)}
    found = prefix_coalitions(orders)
    assert found.dtype == np.uint64
    assert found.tolist() == sorted(expected)
    assert prefix_coalitions([[2, 0, 1]]).tolist() == [4, 5, 7]
    large = prefix_coalitions(sample_permutations(63, 4))
    assert int(large[-1]) == 2**63 - 1
    assert len(large) <= 4 * 63
    assert prefix_coalitions(all_orders(5)).tolist() == list(range(1, 32))


@pytest.mark.parametrize("k", range(1, 7))
def test_over_all_orders_the_estimate_is_exact_and_so_is_its_variance(k: int) -> None:
    values = games.random_games(k, cases=3, seed=k)
    orders = all_orders(k)
    mean, error = estimate(values, orders)
    np.testing.assert_allclose(mean, shapley(values), atol=1e-12)
    added = np.array([[oracle.marginals(order, dict(enumerate(row))) for order in orders] for row in values])
    np.testing.assert_allclose(mean, added.mean(axis=1), atol=1e-12)
    if k == 1:
        assert np.isnan(error).all()
    else:
        np.testing.assert_allclose(error, stats.sem(added, axis=1), rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(error**2 * (len(orders) - 1), added.var(axis=1), rtol=1e-9, atol=1e-14)


def test_pairs_are_averaged_before_their_spread_is_taken() -> None:
    values = games.random_games(6, cases=2, seed=4)
    orders = sample_permutations(6, 50, seed=9, antithetic=True)
    mean, error = estimate(values, orders, antithetic=True)
    added = np.array([[oracle.marginals(order, dict(enumerate(row))) for order in orders] for row in values])
    halves = added.reshape(2, 25, 2, 6).mean(axis=2)
    np.testing.assert_allclose(mean, halves.mean(axis=1), atol=1e-13)
    np.testing.assert_allclose(error, stats.sem(halves, axis=1), rtol=1e-10)
    np.testing.assert_allclose(estimate(values, orders)[0], mean, atol=1e-13)


def test_an_antithetic_pair_is_exact_when_players_interact_in_pairs_only() -> None:
    rng = np.random.default_rng(0)
    alone, jointly = rng.normal(size=5), np.triu(rng.normal(size=(5, 5)), 1)
    taking_part = (np.arange(32)[:, None] >> np.arange(5)) & 1
    values = (taking_part @ alone + np.einsum("mi,ij,mj->m", taking_part, jointly, taking_part))[None]
    mean, error = estimate(values, sample_permutations(5, 12, antithetic=True), antithetic=True)
    np.testing.assert_allclose(mean, shapley(values), atol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    assert estimate(values, sample_permutations(5, 12))[1].max() > 0.05


@pytest.mark.parametrize("antithetic", [False, True])
def test_standard_errors_are_those_of_repeated_samples(antithetic: bool) -> None:
    """Over 400 streams the estimates scatter as their standard errors say, around the exact values."""
    values = games.random_games(5, cases=1, seed=11)
    exact = shapley(values)[0]
    found = [
        estimate(
            values, sample_permutations(5, 40, seed=0, stream=s, antithetic=antithetic), antithetic=antithetic
        )
        for s in range(400)
    ]
    means = np.array([mean[0] for mean, _ in found])
    squared = np.array([error[0] ** 2 for _, error in found]).mean(axis=0)
    np.testing.assert_allclose(means.var(axis=0, ddof=1), squared, rtol=0.35)
    z = (means.mean(axis=0) - exact) / np.sqrt(squared / 400)
    assert np.abs(z).max() < 4
    if not antithetic:
        added = np.array([oracle.marginals(order, dict(enumerate(values[0]))) for order in all_orders(5)])
        np.testing.assert_allclose(squared, added.var(axis=0) / 40, rtol=0.1)


def test_every_sample_shares_out_the_grand_coalition() -> None:
    values = games.random_games(10, cases=4, seed=6)
    mean, _ = estimate(values, sample_permutations(10, 3))
    np.testing.assert_allclose(mean.sum(axis=1), values[:, -1] - values[:, 0], atol=1e-12)


def test_columns_in_any_order_and_an_empty_coalition_that_is_not_listed() -> None:
    values = games.random_games(5, cases=3, seed=7)
    orders = sample_permutations(5, 20, seed=1)
    shuffled = np.random.default_rng(1).permutation(32)
    expected = sampled_shapley(orders, np.arange(32), values)
    found = sampled_shapley(orders, shuffled, values[:, shuffled])
    np.testing.assert_array_equal(found.mean, expected.mean)
    np.testing.assert_array_equal(found.standard_error, expected.standard_error)
    masks = prefix_coalitions(orders)
    values[:, 0] = 0
    np.testing.assert_array_equal(
        sampled_shapley(orders, masks, values[:, masks]).mean,
        sampled_shapley(orders, np.arange(32), values).mean,
    )
    assert (found.n_draws, found.antithetic) == (20, False)


def test_more_players_than_a_complete_table_holds() -> None:
    """40 players, v(S) = (sum of weights)^2: the Shapley value is w_j times the sum of all weights."""
    weights = np.random.default_rng(3).uniform(0.1, 1, 40)
    orders = sample_permutations(40, 60, seed=2, antithetic=True)
    masks = prefix_coalitions(orders)
    taking_part = (masks[:, None] >> np.arange(40, dtype=np.uint64)) & np.uint64(1)
    found = sampled_shapley(orders, masks, (taking_part @ weights)[None] ** 2, antithetic=True)
    np.testing.assert_allclose(found.mean[0], weights * weights.sum(), rtol=1e-10)
    assert found.n_draws == 30


def test_one_draw_has_no_standard_error() -> None:
    values = games.random_games(3, cases=2)
    assert np.isnan(estimate(values, np.array([[0, 1, 2]]))[1]).all()
    pair = np.array([[0, 1, 2], [2, 1, 0]])
    assert np.isnan(estimate(values, pair, antithetic=True)[1]).all()
    assert np.isfinite(estimate(values, pair)[1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0; expected an integer from 1 to 63"),
        ({"k": 64}, "k is 64"),
        ({"k": 2.0}, r"k is 2\.0"),
        ({"n": 0}, "n is 0; expected an integer from 1"),
        ({"n": 2**32}, "expected 1 to 1073741824 of 4 players"),
        ({"n": 3, "antithetic": True}, "odd count of 3 antithetic"),
        ({"seed": -1}, "seed is -1"),
        ({"stream": 2**64}, "stream is 18446744073709551616"),
    ],
)
def test_samples_that_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        sample_permutations(**({"k": 4, "n": 2} | arguments))


def test_estimates_that_are_refused() -> None:
    values, masks = np.zeros((1, 4)), [0, 1, 2, 3]
    for orders in ([[0, 0]], [[0, 2]], [[-1, 0]]):
        with pytest.raises(
            ArgumentError, match="row 0 is no permutation; expected each player of 0 to 1 once"
        ):
            sampled_shapley(orders, masks, values)
    with pytest.raises(ArgumentError, match=r"coalition \{1\} has no value"):
        sampled_shapley([[0, 1], [1, 0]], [1, 3], values[:, :2])
    with pytest.raises(ArgumentError, match=r"coalition \{0\} is listed twice, in columns 0 and 2"):
        sampled_shapley([[0, 1]], [1, 3, 1], values[:, :3])
    with pytest.raises(ArgumentError, match="4 columns of values for 3 coalitions"):
        sampled_shapley([[0, 1]], [1, 2, 3], values)
    with pytest.raises(ArgumentError, match="row 1 is not row 0 reversed"):
        sampled_shapley([[0, 1], [0, 1]], masks, values, antithetic=True)
    with pytest.raises(ArgumentError, match="1 antithetic permutations; expected an even count"):
        sampled_shapley([[0, 1]], masks, values, antithetic=True)
    with pytest.raises(ArgumentError, match=r"case 0 has the value nan for coalition \{1\}"):
        sampled_shapley([[0, 1]], [3, 1, 2], [[0.0, 0.0, np.nan]])
    with pytest.raises(ArgumentError, match="at least one whole row"):
        sampled_shapley(np.zeros((0, 2), int), masks, values)
    with pytest.raises(ArgumentError, match="permutations have shape"):
        prefix_coalitions([0, 1])
    with pytest.raises(ArgumentError, match="permutations have 0 players"):
        prefix_coalitions(np.zeros((2, 0), int))
    with pytest.raises(ArgumentError, match="dtype float64; expected integers"):
        prefix_coalitions([[0.0, 1.0]])
    with pytest.raises(ArgumentError, match="bitmasks of players 0 to 62"):
        sampled_shapley([[0, 1]], [-1, 1, 3], values[:, :3])
