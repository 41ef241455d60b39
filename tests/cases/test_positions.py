"""Splits and folds of positions alone: what CaseSet and traces share."""

from __future__ import annotations

import random

import pytest

from moetrace.cases import Case, CaseSet
from moetrace.cases.positions import fold_positions, split_positions
from moetrace.errors import ArgumentError


def case_set(relations: list[str]) -> CaseSet:
    return CaseSet(Case([1, 2, 3], (0, 1), 4, 5, i, name) for i, name in enumerate(relations))


@pytest.mark.parametrize("n", [2, 9, 256])
def test_a_split_is_a_shuffle_cut_in_two(n: int) -> None:
    order = list(range(n))
    random.Random(3).shuffle(order)
    discovery, validation = split_positions(n, seed=3, fraction=0.25)
    assert discovery + validation == order
    assert len(discovery) == round(n / 4)
    halves = case_set(["P"] * n).split(seed=3, fraction=0.25)
    assert [[case.case_id for case in half] for half in halves] == [discovery, validation]


def test_scan_order_isnt_shuffled() -> None:
    assert split_positions(5, seed=3, order="scan") == ([0, 1], [2, 3, 4])
    with pytest.raises(ArgumentError, match="order is 'random'; expected 'shuffle' or 'scan'"):
        split_positions(5, order="random")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="fraction is 1"):
        split_positions(5, fraction=1)


def test_folds_keep_groups_whole_and_are_those_of_the_case_set() -> None:
    relations = [f"P{int(7 * random.Random(i).random() ** 2)}" for i in range(40)]
    folds = fold_positions(relations, k=3, seed=1)
    assert sorted(position for fold in folds for position in fold) == list(range(40))
    assert sum(len({relations[position] for position in fold}) for fold in folds) == len(set(relations))
    held = [{case.case_id for case in held} for _, held in case_set(relations).folds(k=3, seed=1)]
    assert held == folds
    with pytest.raises(ArgumentError, match=r"at most 1, the number of groups by 'relation_id' among 2"):
        fold_positions(["P1", "P1"], k=2)
