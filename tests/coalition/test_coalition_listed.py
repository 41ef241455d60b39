"""The smallest coalition that suffices, and how far from additive a game is."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from moetrace.coalition import additivity, smallest_coalition
from moetrace.errors import ArgumentError
from tests.coalition import games, oracle


@given(
    st.integers(1, 5).flatmap(
        lambda k: arrays(np.float64, (3, 2**k), elements=st.sampled_from([-1, 0, 0.5, 1, 2]))
    ),
    st.sampled_from([0.25, 0.5, 0.8, 1.0, 1.5]),
)
def test_smallest_against_a_search(values: np.ndarray, share: float) -> None:
    found = smallest_coalition(values, share)
    for case, row in enumerate(values):
        size, mask, value = oracle.smallest(dict(enumerate(row)), share)
        assert (found.size[case], found.coalition[case]) == (size, mask)
        np.testing.assert_array_equal(found.value[case], value)


def test_ties_go_to_the_higher_value_and_then_to_the_lower_mask() -> None:
    #          {}  {0}  {1}  {01} {2}  {02} {12} {012}
    values = [[0, 0.8, 0.9, 0.9, 0.9, 1.0, 1.0, 1.0]]
    assert smallest_coalition(values, 0.8).coalition.tolist() == [0b010]
    assert smallest_coalition(values, 0.95).coalition.tolist() == [0b101]
    assert smallest_coalition(values, 0.95).size.tolist() == [2]


def test_nothing_to_share_and_a_share_nobody_reaches() -> None:
    values = [[0, 1.0, 1, -1], [0, 1, 1, 0], [0, 0.2, 0.2, 1]]
    found = smallest_coalition(values, 0.5)
    assert found.size.tolist() == [-1, -1, 2]
    assert found.coalition.tolist() == [0, 0, 3]
    assert np.isnan(found.value).tolist() == [True, True, False]
    assert smallest_coalition(values, 1.0).size.tolist() == [-1, -1, 2]
    assert smallest_coalition(values, 1.01).size.tolist() == [-1, -1, -1]


def test_gains_are_counted_from_the_empty_coalition() -> None:
    assert smallest_coalition([[1.0, 1.4, 1.6, 2.0]], 0.5).coalition.tolist() == [2]
    found = additivity([[1.0, 1.5, 1.25, 2.0]])
    assert (found.singles.tolist(), found.grand.tolist(), found.difference.tolist()) == (
        [0.75],
        [1.0],
        [0.25],
    )


def test_listed_coalitions() -> None:
    """Players 1 and 4 of a larger set; the columns stand in no order and the empty coalition is not there."""
    masks = [0b10010, 0b00010, 0b10000]
    values = [[1.0, 0.5, 0.75], [2.0, 2.5, -1.0]]
    found = smallest_coalition(values, 0.6, masks)
    assert found.coalition.tolist() == [0b10000, 0b00010]
    assert found.value.tolist() == [0.75, 2.5]
    assert additivity(values, masks).difference.tolist() == [-0.25, 0.5]


def test_additivity_of_known_games() -> None:
    weights = [0.5, -1.0, 0.25]
    found = additivity(games.additive(weights))
    np.testing.assert_allclose([found.singles[0], found.grand[0]], sum(weights))
    np.testing.assert_allclose(found.difference, 0, atol=1e-15)
    assert additivity(games.unanimity(3, {0, 1, 2})).difference.tolist() == [1]
    assert additivity(games.table(3, lambda s: float(bool(s)))).difference.tolist() == [-2]


def test_additivity_against_numpy() -> None:
    values = games.random_games(6, cases=5)
    found = additivity(values)
    gains = values - values[:, :1]
    np.testing.assert_allclose(found.singles, gains[:, 1 << np.arange(6)].sum(1), atol=1e-13)
    np.testing.assert_allclose(found.grand, gains[:, -1], atol=1e-13)
    np.testing.assert_allclose(found.difference, found.grand - found.singles, atol=1e-13)


def test_what_is_refused() -> None:
    values = np.zeros((1, 4))
    for share in (0, -0.5, np.nan, np.inf):
        with pytest.raises(ArgumentError, match="expected a finite number above 0"):
            smallest_coalition(values, share)
    with pytest.raises(ArgumentError, match="share is 'half'"):
        smallest_coalition(values, "half")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"3 columns; expected 2\^k"):
        additivity(values[:, :3])
    with pytest.raises(ArgumentError, match=r"coalition \{0, 1\} has no value"):
        smallest_coalition(values[:, :2], 0.5, [1, 2])
    with pytest.raises(ArgumentError, match=r"coalition \{1\} has no value"):
        additivity(values[:, :2], [1, 3])
    with pytest.raises(ArgumentError, match="no players"):
        additivity(values[:, :1], [0])
    with pytest.raises(ArgumentError, match="coalitions have shape"):
        additivity(values, [[0, 1, 2, 3]])
    with pytest.raises(ArgumentError, match="case 0 has the value nan"):
        additivity([[0.0, np.nan]])
