"""Placements say of every element where it comes from; the oracle is the operation on numbered elements."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from moetrace.weights.placement import NotPlacedError, Placement

SHAPES = {"a": (3, 4, 2), "b": (3, 4, 2), "c": (3, 5, 2)}


def numbered() -> dict[str, torch.Tensor]:
    """Every element of every source with a number of its own."""
    found, first = {}, 0
    for name, shape in SHAPES.items():
        found[name] = torch.arange(first, first + prod(shape)).reshape(shape)
        first += prod(shape)
    return found


def carried_out(placement: Placement) -> torch.Tensor:
    sources = numbered()
    flat = torch.full((prod(placement.shape),), -1)
    for run in placement.runs:
        flat[run.at : run.at + run.count] = sources[run.source].flatten()[run.start : run.start + run.count]
    return flat.reshape(placement.shape)


OPERATIONS: dict[str, Any] = {
    "stack": lambda a, b, c: torch.stack([a, b], dim=0),
    "stack inside": lambda a, b, c: torch.stack([a, b], dim=1),
    "stack at the end": lambda a, b, c: torch.stack([a, b], dim=-1),
    "cat": lambda a, b, c: torch.cat([a, b]),
    "cat inside": lambda a, b, c: torch.cat([a, c, b], dim=1),
    "cat at the end": lambda a, b, c: torch.cat([a, b], dim=-1),
    "chunk": lambda a, b, c: torch.chunk(c, 2, dim=1)[1],
    "chunk short": lambda a, b, c: torch.chunk(c, 3, dim=1)[2],
    "split": lambda a, b, c: torch.split(c, [1, 3, 1], dim=1)[1],
    "split by size": lambda a, b, c: torch.split(c, 2, dim=1)[2],
    "fused experts": lambda a, b, c: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=2),
    "apart and together": lambda a, b, c: torch.cat(
        [torch.chunk(torch.stack([a, b]), 2, dim=2)[1], torch.stack([b, a])], dim=2
    ),
    "contiguous": lambda a, b, c: torch.chunk(a, 2, dim=2)[0].contiguous(),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_element_comes_from_its_place(name):
    operation = OPERATIONS[name]
    expected = operation(**numbered())
    stand_ins = {source: Placement.of(source, shape, torch.int64) for source, shape in SHAPES.items()}
    found = operation(**stand_ins)
    assert found.shape == expected.shape
    assert found.ndim == found.dim() == expected.dim()
    assert torch.equal(carried_out(found), expected)


@pytest.mark.parametrize(
    "operation",
    [
        lambda t: torch.transpose(t, 0, 1),
        lambda t: torch.cat([t, torch.zeros(3, 4, 2, dtype=torch.int64)]),
        lambda t: torch.cat([t, Placement.of("b", (3, 4, 2), torch.float32)]),
        lambda t: t.reshape(4, 6),
        lambda t: t.to(torch.float32),
        torch.exp,
    ],
)
def test_what_is_more_than_placing_is_refused(operation):
    with pytest.raises(NotPlacedError):
        operation(Placement.of("a", (3, 4, 2), torch.int64))


def test_so_many_pieces_are_no_placement():
    wide = [Placement.of(name, (20_000, 2), torch.int64) for name in "ab"]
    with pytest.raises(NotPlacedError, match="pieces"):
        torch.cat(wide, dim=1)
    with pytest.raises(NotPlacedError, match="pieces"):
        torch.split(wide[0], 1, dim=1)
