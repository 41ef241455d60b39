"""Shapley and Banzhaf values and interactions against their definitions, axioms and known games."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from moetrace.coalition import banzhaf, banzhaf_interaction, efficiency_gap, shapley, shapley_interaction
from moetrace.errors import ArgumentError
from tests.coalition import games, oracle

INDICES = (shapley, banzhaf, shapley_interaction, banzhaf_interaction)


@st.composite
def random_games(draw: st.DrawFn, low: int = 1, high: int = 5) -> np.ndarray:
    k = draw(st.integers(low, high))
    values = st.floats(-8, 8, width=32)
    return draw(arrays(np.float64, (draw(st.integers(1, 3)), 2**k), elements=values))


@pytest.mark.parametrize("k", range(1, 7))
def test_shapley_is_the_mean_over_all_orders(k: int) -> None:
    values = games.random_games(k, cases=2, seed=k)
    np.testing.assert_allclose(
        shapley(values), [oracle.shapley_over_orders(row) for row in values], atol=1e-13
    )


@pytest.mark.parametrize("k", range(1, 10))
def test_values_and_interactions_are_the_sums_over_subsets(k: int) -> None:
    values = games.random_games(k, cases=2, seed=k)
    phi, beta = shapley(values), banzhaf(values)
    assert phi.shape == beta.shape == (2, k)
    for case, row in enumerate(values):
        np.testing.assert_allclose(phi[case], oracle.shapley_over_subsets(row), atol=1e-13)
        np.testing.assert_allclose(beta[case], oracle.banzhaf(row), atol=1e-13)


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize("kind", ["shapley", "banzhaf"])
def test_interactions_are_the_sums_over_subsets(k: int, kind: str) -> None:
    values = games.random_games(k, cases=2, seed=k)
    index, diagonal = {
        "shapley": (shapley_interaction, shapley),
        "banzhaf": (banzhaf_interaction, banzhaf),
    }[kind]
    found = index(values)
    assert found.shape == (2, k, k)
    for case, row in enumerate(values):
        expected = oracle.interaction(row, kind)
        np.fill_diagonal(expected, diagonal(values)[case])
        np.testing.assert_allclose(found[case], expected, atol=1e-13)
        np.testing.assert_array_equal(found[case], found[case].T)


@given(random_games())
def test_shapley_values_share_out_the_grand_coalition(values: np.ndarray) -> None:
    phi = shapley(values)
    np.testing.assert_allclose(phi.sum(1), values[:, -1] - values[:, 0], atol=1e-12)
    np.testing.assert_allclose(efficiency_gap(phi, values), 0, atol=1e-12)


@given(random_games(low=2), st.randoms(use_true_random=False))
def test_names_of_players_do_not_matter(values: np.ndarray, random: object) -> None:
    k = values.shape[1].bit_length() - 1
    order = list(range(k))
    random.shuffle(order)  # type: ignore[attr-defined]
    renamed = games.permuted(values, order)
    for index in (shapley, banzhaf):
        np.testing.assert_allclose(index(renamed), index(values)[:, order], atol=1e-12)
    for index in (shapley_interaction, banzhaf_interaction):
        np.testing.assert_allclose(index(renamed), index(values)[:, order][:, :, order], atol=1e-12)


@given(random_games(high=4), st.floats(-4, 4), st.data())
def test_a_player_that_adds_a_constant_gets_it_and_interacts_with_nobody(
    values: np.ndarray, constant: float, data: st.DataObject
) -> None:
    k = values.shape[1].bit_length() - 1
    place = data.draw(st.integers(0, k))
    with_dummy = np.concatenate([values, values + constant], axis=1)  # the dummy is the last player
    order = [j for j in range(k + 1) if j != place]
    game = games.permuted(with_dummy, [*range(place), k, *range(place, k)])
    for index, pairs in ((shapley, shapley_interaction), (banzhaf, banzhaf_interaction)):
        np.testing.assert_allclose(index(game)[:, place], constant, atol=1e-12)
        np.testing.assert_allclose(index(game)[:, order], index(values), atol=1e-12)
        np.testing.assert_allclose(pairs(game)[:, place, order], 0, atol=1e-12)


@given(random_games(low=3, high=3), random_games(low=3, high=3), st.floats(-3, 3), st.floats(-3, 3))
def test_every_index_is_linear(first: np.ndarray, second: np.ndarray, a: float, b: float) -> None:
    cases = min(len(first), len(second))
    first, second = first[:cases], second[:cases]
    for index in INDICES:
        np.testing.assert_allclose(
            index(a * first + b * second), a * index(first) + b * index(second), atol=1e-11
        )


@given(random_games(low=2))
@settings(max_examples=50)
def test_a_pair_that_acts_as_one_player(values: np.ndarray) -> None:
    """Its Banzhaf value is the sum of the two, and of each one without the other plus their interaction."""
    k = values.shape[1].bit_length() - 1
    masks = np.arange(2 ** (k - 1))
    merged = values[:, (masks >> 1 << 2) | (masks & 1) * 3]  # players 0 and 1 act as one
    beta, pairs = banzhaf(values), banzhaf_interaction(values)
    absent = values[:, (masks >> 1 << 2) | (masks & 1) * 2]  # player 0 never takes part
    other = values[:, (masks >> 1 << 2) | (masks & 1)]  # player 1 never takes part
    np.testing.assert_allclose(
        banzhaf(merged)[:, 0], banzhaf(absent)[:, 0] + banzhaf(other)[:, 0] + pairs[:, 0, 1], atol=1e-12
    )
    np.testing.assert_allclose(banzhaf(merged)[:, 0], beta[:, 0] + beta[:, 1], atol=1e-12)


def test_an_additive_game() -> None:
    weights = [0.5, -1.0, 0.25, 2.0]
    game = games.additive(weights)
    np.testing.assert_allclose(shapley(game), [weights], atol=1e-15)
    np.testing.assert_allclose(banzhaf(game), [weights], atol=1e-15)
    for index in (shapley_interaction, banzhaf_interaction):
        np.testing.assert_allclose(index(game)[0], np.diag(weights), atol=1e-15)


def test_a_unanimity_game() -> None:
    """Of a carrier of 3: Shapley 1/3 each, Banzhaf 1/4; of a pair in it 1/2 by both."""
    game = games.unanimity(5, {0, 2, 3})
    np.testing.assert_allclose(shapley(game), [[1 / 3, 0, 1 / 3, 1 / 3, 0]], atol=1e-15)
    np.testing.assert_allclose(banzhaf(game), [[1 / 4, 0, 1 / 4, 1 / 4, 0]], atol=1e-15)
    for index in (shapley_interaction, banzhaf_interaction):
        pairs = index(game)[0]
        np.testing.assert_allclose([pairs[0, 2], pairs[0, 3], pairs[2, 3]], 1 / 2, atol=1e-15)
        np.testing.assert_allclose([pairs[0, 1], pairs[1, 4], pairs[3, 4]], 0, atol=1e-15)


def test_majority_of_five() -> None:
    game = games.weighted_voting([1] * 5, quota=3)
    np.testing.assert_allclose(shapley(game), [[1 / 5] * 5], atol=1e-15)
    np.testing.assert_allclose(banzhaf(game), [[comb(4, 2) / 16] * 5], atol=1e-15)


def test_weighted_voting() -> None:
    """[51; 50, 49, 1]: the first player has 4/6 of the orders, the others one each."""
    game = games.weighted_voting([50, 49, 1], quota=51)
    np.testing.assert_allclose(shapley(game), [[4 / 6, 1 / 6, 1 / 6]], atol=1e-15)
    np.testing.assert_allclose(banzhaf(game), [[3 / 4, 1 / 4, 1 / 4]], atol=1e-15)


def test_gloves() -> None:
    """One left glove, two right ones: 2/3 and 1/6 each; the right gloves replace each other."""
    game = games.gloves({0}, k=3)
    np.testing.assert_allclose(shapley(game), [[2 / 3, 1 / 6, 1 / 6]], atol=1e-15)
    pairs = shapley_interaction(game)[0]
    np.testing.assert_allclose([pairs[0, 1], pairs[0, 2], pairs[1, 2]], [1 / 2, 1 / 2, -1 / 2], atol=1e-15)


def test_sixteen_players() -> None:
    """A symmetric game has every value in closed form: v(S) = |S|^2."""
    sizes = np.array([mask.bit_count() for mask in range(2**16)], np.float64)
    game = (sizes**2)[None]
    np.testing.assert_allclose(shapley(game), np.full((1, 16), 16.0), rtol=1e-12)
    np.testing.assert_allclose(banzhaf(game), np.full((1, 16), 16.0), rtol=1e-12)
    pairs = shapley_interaction(game)[0]
    np.testing.assert_allclose(pairs[~np.eye(16, dtype=bool)], 2, rtol=1e-12)
    assert shapley(np.append(np.zeros(2**16 - 1), 1.0)[None])[0, 7] == pytest.approx(float(Fraction(1, 16)))


def test_the_empty_coalition_counts_as_given() -> None:
    np.testing.assert_allclose(shapley([[1.0, 3.0]]), [[2.0]])
    np.testing.assert_allclose(shapley_interaction([[1.0, 3.0]]), [[[2.0]]])


def test_other_dtypes_layouts_and_no_cases() -> None:
    values = games.random_games(3, cases=4)
    single = values.astype(np.float32)
    np.testing.assert_array_equal(shapley(single), shapley(single.astype(np.float64)))
    np.testing.assert_array_equal(shapley(np.asfortranarray(values)), shapley(values))
    np.testing.assert_array_equal(shapley(values[::2]), shapley(values)[::2])
    assert shapley(np.empty((0, 8))).shape == (0, 3)
    assert banzhaf_interaction(np.empty((0, 8))).shape == (0, 3, 3)


@pytest.mark.parametrize("index", INDICES)
def test_what_is_refused(index: object) -> None:
    assert callable(index)
    for columns in (0, 1, 3, 12):
        with pytest.raises(ArgumentError, match=rf"found {columns} columns; expected 2\^k"):
            index(np.zeros((2, columns)))
    values = np.zeros((3, 8))
    values[1, 5] = np.nan
    with pytest.raises(ArgumentError, match=r"case 1 has the value nan for coalition \{0, 2\} \(column 5\)"):
        index(values)
    with pytest.raises(ArgumentError, match="case 0 has the value -inf"):
        index([[0.0, -np.inf]])
    with pytest.raises(ArgumentError, match=r"shape \(8,\); expected cases x coalitions"):
        index(np.zeros(8))
    with pytest.raises(ArgumentError, match="dtype complex"):
        index(np.zeros((1, 8), np.complex128))
    with pytest.raises(ArgumentError, match="rectangular"):
        index([[0.0, 1.0], [0.0]])
    with pytest.raises(ArgumentError, match=r"2\^21 columns; expected at most 2\^20: sample"):
        index(np.zeros((1, 2**21)))


def test_shares_and_values_must_fit() -> None:
    with pytest.raises(ArgumentError, match=r"expected \(cases, k\) and \(cases, 2\^k\)"):
        efficiency_gap(np.zeros((2, 3)), np.zeros((2, 16)))
    gap = efficiency_gap(banzhaf(games.unanimity(3, {0, 1, 2})), games.unanimity(3, {0, 1, 2}))
    np.testing.assert_allclose(gap, 3 / 4 - 1)
