"""Bitmasks, the limit on their number, and lists of experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moetrace.coalition import LIMIT, check_count, checked_sets, members, membership, subsets
from moetrace.errors import ArgumentError


@pytest.mark.parametrize("k", [1, 2, 8, 12])
def test_subsets_are_every_coalition_once(k: int) -> None:
    masks = subsets(k)
    assert masks.dtype == np.uint64
    assert masks.tolist() == list(range(1, 2**k))


@pytest.mark.parametrize("k", [0, 21, -1, 1.5, True])
def test_players_out_of_range(k: Any) -> None:
    with pytest.raises(ArgumentError, match="expected an integer from 1 to 20"):
        subsets(k)
    assert len(subsets(20)) == 2**20 - 1


def test_membership_sums_patch_vectors() -> None:
    deltas = np.random.default_rng(0).normal(size=(4, 6))
    patches = membership(subsets(4), 4) @ deltas
    for mask, patch in zip(range(1, 16), patches, strict=True):
        np.testing.assert_allclose(patch, sum(deltas[j] for j in range(4) if mask >> j & 1))
    assert membership([2**62 + 1], 63)[0].nonzero()[0].tolist() == [0, 62]
    assert membership([], 3).shape == (0, 3)
    with pytest.raises(ArgumentError, match="beyond the 2 that k gives"):
        membership([4], 2)


def test_members_are_experts() -> None:
    assert members(0b101, [7, 19, 44]) == (7, 44)
    assert members(0, [7]) == ()
    with pytest.raises(ArgumentError, match="coalition is 8; expected an integer from 0 to 7"):
        members(8, [7, 19, 44])


def test_the_limit() -> None:
    assert LIMIT == 2**12
    assert check_count(8) == 255
    assert check_count(12) == 4095
    assert check_count(13, limit=10_000) == 8191
    with pytest.raises(
        ArgumentError, match=r"13 experts have 8191 coalitions.*at most 4096: sample permutations"
    ):
        check_count(13)
    with pytest.raises(ArgumentError, match=r"3 experts have 7 coalitions.*at most 5"):
        check_count(3, limit=5)


def test_lists_of_experts() -> None:
    assert checked_sets([[44, 7], (19,)], num_experts=128) == ((7, 44), (19,))
    assert checked_sets(np.array([[2, 0], [1, 3]]), num_experts=4) == ((0, 2), (1, 3))
    found = checked_sets(({5, 1}, iter([0])), num_experts=6)
    assert found == ((1, 5), (0,))
    assert all(type(expert) is int for experts in found for expert in experts)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([], "found no coalitions; expected at least one"),
        ([[0], []], "coalition 1 is empty"),
        ([[0, 8]], "coalition 0 holds 8; the layer has experts 0 to 7"),
        ([[-1]], "coalition 0 holds -1; the layer has experts 0 to 7"),
        ([[0, 3, 0]], "coalition 0 holds expert 0 more than once"),
        ([[0, 3], [1], [3, 0]], r"coalitions 0 and 2 hold the same experts, \[0, 3\]"),
        ([[0, 1.0]], r"coalition 0 holds 1\.0"),
        ([[True]], "coalition 0 holds True"),
        ([["0"]], "coalition 0 holds '0'"),
        ([0, 1], "coalition 0 is 0 .*; expected a list"),
        (["01"], "coalition 0 is '01' .*; expected a list"),
        ("clean", "sets is 'clean' .*; expected a list"),
        (3, "sets is 3 .*; expected a list"),
    ],
)
def test_lists_that_are_refused(sets: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        checked_sets(sets, num_experts=8)


@pytest.mark.parametrize("num_experts", [0, -3, 2.5])
def test_a_layer_needs_experts(num_experts: Any) -> None:
    with pytest.raises(ArgumentError, match="num_experts"):
        checked_sets([[0]], num_experts=num_experts)
