"""Which elements of checkpoint tensors go where in a parameter: a conversion followed on shapes alone.

Many conversions only put tensors beside each other (a parameter for all experts from one tensor each) or cut
them up. Followed with a :class:`Placement` in place of each tensor, they say where every run of elements
ends up, so that files can be read straight into that place. Whatever else a conversion does to a tensor
raises :class:`NotPlacedError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch

_MOST_RUNS = 1 << 14  # of one parameter; more, and reading is a matter of single rows


class NotPlacedError(Exception):
    """A conversion computes something, or cuts too finely."""


@dataclass(frozen=True)
class Run:
    """``count`` elements of a tensor from ``start`` on, which lie at ``at`` in the parameter."""

    source: str
    start: int
    at: int
    count: int


class Placement:
    """Stands for a contiguous tensor in a conversion, and remembers where its elements come from."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, runs: list[Run]) -> None:
        if len(runs) > _MOST_RUNS:
            raise NotPlacedError(f"{len(runs)} pieces")
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.runs = runs

    @classmethod
    def of(cls, source: str, shape: tuple[int, ...], dtype: torch.dtype) -> Placement:
        """A tensor of the checkpoint as it is."""
        return cls(shape, dtype, [Run(source, 0, 0, prod(shape))])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        follow = _FOLLOWED.get(func)
        if follow is None:
            raise NotPlacedError(getattr(func, "__name__", "an operation"))
        return follow(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise NotPlacedError(name)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def contiguous(self) -> Placement:
        """Itself."""
        return self


def _axis(dim: int, ndim: int) -> int:
    return dim + ndim if dim < 0 else dim


def _cut(runs: list[Run], block: int, ends: list[int]) -> Iterator[tuple[Run, int, int, int]]:
    """Runs cut at ``ends`` inside every block: piece, number of its block, of its part, place in the part."""
    begins = [0, *ends[:-1]]
    for run in runs:
        done = 0
        while done < run.count:
            number, inside = divmod(run.at + done, block)
            part = next(index for index, end in enumerate(ends) if inside < end)
            count = min(run.count - done, ends[part] - inside)
            yield Run(run.source, run.start + done, 0, count), number, part, inside - begins[part]
            done += count


def _cat(tensors: list[Placement], dim: int = 0) -> Placement:
    first = tensors[0]
    dim = _axis(dim, first.dim())
    if any(type(t) is not Placement or t.dtype != first.dtype for t in tensors):
        raise NotPlacedError("tensors of several dtypes")
    inner = prod(first.shape[dim + 1 :])
    widths = [tensor.shape[dim] * inner for tensor in tensors]
    total = sum(widths)
    begins = [0, *accumulate(widths)]
    runs = []
    for tensor, width, begin in zip(tensors, widths, begins, strict=False):
        if not width:
            continue
        for piece, number, _, inside in _cut(tensor.runs, width, [width]):
            runs.append(Run(piece.source, piece.start, number * total + begin + inside, piece.count))
            if len(runs) > _MOST_RUNS:
                raise NotPlacedError("too many pieces")
    length = sum(tensor.shape[dim] for tensor in tensors)
    return Placement((*first.shape[:dim], length, *first.shape[dim + 1 :]), first.dtype, runs)


def _stack(tensors: list[Placement], dim: int = 0) -> Placement:
    dim = _axis(dim, tensors[0].dim() + 1)
    return _cat([Placement((*t.shape[:dim], 1, *t.shape[dim:]), t.dtype, t.runs) for t in tensors], dim)


def _split(tensor: Placement, sizes: int | list[int], dim: int = 0) -> tuple[Placement, ...]:
    dim = _axis(dim, tensor.dim())
    length = tensor.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - begin) for begin in range(0, length, sizes)]
    inner = prod(tensor.shape[dim + 1 :])
    ends = [end * inner for end in accumulate(sizes)]
    runs: list[list[Run]] = [[] for _ in sizes]
    for piece, number, part, inside in _cut(tensor.runs, length * inner, ends):
        at = number * sizes[part] * inner + inside
        runs[part].append(Run(piece.source, piece.start, at, piece.count))
        if len(runs[part]) > _MOST_RUNS:
            raise NotPlacedError("too many pieces")
    shapes = [(*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]) for size in sizes]
    return tuple(Placement(shape, tensor.dtype, own) for shape, own in zip(shapes, runs, strict=True))


def _chunk(tensor: Placement, chunks: int, dim: int = 0) -> tuple[Placement, ...]:
    return _split(tensor, -(-tensor.shape[dim] // chunks), dim)


_FOLLOWED: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.stack: _stack,
    torch.split: _split,
    torch.chunk: _chunk,
}
