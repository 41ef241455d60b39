"""Names of experts."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.errors import ArgumentError
from moetrace.results.expert_name import Expert


@pytest.mark.parametrize(
    ("layer", "expert", "name"),
    [(44, 69, "L44E069"), (19, 6, "L19E006"), (0, 0, "L00E000"), (102, 1023, "L102E1023")],
)
def test_name_is_the_papers_and_reads_back(layer: int, expert: int, name: str) -> None:
    assert str(Expert(layer, expert)) == name
    assert Expert.parse(name) == Expert(layer, expert)
    assert Expert.of(name) == Expert.of((layer, expert)) == Expert.of(Expert(layer, expert))


def test_leading_zeros_do_not_matter_and_numpy_integers_do_not_either() -> None:
    assert Expert.parse("L4E7") == Expert.parse(" L004E00007 ") == Expert(np.int64(4), np.int32(7))


def test_experts_sort_by_layer_then_expert_and_serve_as_keys() -> None:
    assert sorted([Expert(2, 0), Expert(1, 9), Expert(1, 3)]) == [Expert(1, 3), Expert(1, 9), Expert(2, 0)]
    assert {Expert(1, 3): "a"}[Expert.parse("L01E003")] == "a"


@pytest.mark.parametrize("name", ["", "44", "E069", "L44", "l44e069", "L44E069x", "L-1E003", "L44E0.5"])
def test_what_is_no_name_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(ArgumentError, match="L44E069"):
        Expert.parse(name)


@pytest.mark.parametrize("value", [None, 44, (44,), (1, 2, 3), 4.5])
def test_what_is_no_expert_is_refused(value: object) -> None:
    with pytest.raises(ArgumentError, match="is no expert"):
        Expert.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("layer", "expert"), [(-1, 0), (0, -1), (1.0, 0), ("1", 0), (True, 0), (0, None)])
def test_what_is_no_count_is_refused(layer: object, expert: object) -> None:
    with pytest.raises(ArgumentError, match="expected an integer of at least 0"):
        Expert(layer, expert)  # type: ignore[arg-type]
