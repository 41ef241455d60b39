"""Rows of a token tree as sequences: what a mixer is given, unfolded, and what it gives, folded back.

A mixer that isn't masked attention (a recurrence, a convolution, attention that counts its keys) reads its
tokens in the order in which they stand. In a tree they don't stand in any run's order, so such a module is
given every run as a sequence of its own (``cpp/moetrace/tree/paths.h``). Sequences are filled up behind
their end: a causal mixer never sees that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moetrace._native import _core


@dataclass(frozen=True)
class Window:
    """Some of the sequences, ``chosen`` by number, and their tokens at positions begin to end."""

    chosen: np.ndarray
    begin: int
    end: int

    @property
    def tokens(self) -> int:
        """Tokens of each sequence."""
        return self.end - self.begin


class Sequences:
    """The runs of a batch while so many rows of each case are there."""

    def __init__(self, paths: _core.Paths) -> None:
        self.cases, self.rows = paths.place.shape
        self.longest, self.bases = paths.longest, paths.bases
        self.length, self.cut, self.origin = paths.length, paths.cut, paths.origin
        self._row, self._place = paths.row, paths.place.ravel()
        self._known: dict[Any, torch.Tensor] = {}

    @property
    def count(self) -> int:
        """Of all sequences."""
        return len(self.length)

    def whole(self) -> Window:
        """All tokens of all sequences."""
        return Window(np.arange(self.count), 0, self.longest)

    def unfold(self, value: Any, window: Window) -> Any:
        """An argument of a call on tree rows as that of a call on a window of the sequences.

        What has a line for each row gets one for each token: hidden states, position ids, rotary angles; a
        mask gets the rows' own cells. What counts rows without a case is taken for the window's positions.
        """
        if isinstance(value, torch.Tensor):
            return self._unfolded(value, window)
        if isinstance(value, dict):
            return {key: self.unfold(item, window) for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self.unfold(item, window) for item in value)
        return value

    def fold(self, parts: list[tuple[Window, Any]]) -> Any:
        """What calls on windows gave, as one on tree rows. Every token is in one of the windows at least."""
        first = parts[0][1]
        if type(first) in (tuple, list):
            items = [[(window, output[at]) for window, output in parts] for at in range(len(first))]
            return type(first)(self.fold(item) for item in items)
        if not all(self.by_token(output, window) for window, output in parts):
            return parts[-1][1]
        flat = torch.cat([output.flatten(0, 1) for _, output in parts])
        index = self._index(("fold", *(self._key(window) for window, _ in parts)), flat.device, parts)
        return flat.index_select(0, index).reshape(self.cases, self.rows, *flat.shape[1:])

    def real_rows(self) -> torch.Tensor:
        """Rows of a run, as case * rows + row: all but padding."""
        return torch.from_numpy(np.unique(self._row))

    def fits(self, value: Any) -> bool:
        """Whether a value has a line for each row of every case."""
        shape = (self.cases, self.rows)
        return isinstance(value, torch.Tensor) and value.dim() > 2 and value.shape[:2] == shape

    def by_token(self, output: Any, window: Window) -> bool:
        """Whether a value has a line for each token of a window."""
        shape = (len(window.chosen), window.tokens)
        return isinstance(output, torch.Tensor) and output.dim() > 1 and output.shape[:2] == shape

    def _unfolded(self, value: torch.Tensor, window: Window) -> torch.Tensor:
        shape, rows = tuple(value.shape), self.rows
        if len(shape) == 4 and shape[2:] == (rows, rows) and shape[0] in (1, self.cases):
            return self._mask(value, window)
        for axis in (0, 1):
            if len(shape) > axis + 1 and shape[axis] in (1, self.cases) and shape[axis + 1] == rows:
                return self._lines(value, window, axis)
        if shape == (rows,):
            return value[window.begin : window.end]
        if shape == (rows, rows):
            return value[window.begin : window.end, : window.end]
        return value

    def _lines(self, value: torch.Tensor, window: Window, axis: int) -> torch.Tensor:
        index = self._index(("rows", self._key(window)), value.device, window)
        if value.shape[axis] == 1:  # the same for every case
            index = index % self.rows
        found = value.flatten(axis, axis + 1).index_select(axis, index.flatten())
        return found.reshape(*value.shape[:axis], *index.shape, *value.shape[axis + 2 :])

    def _mask(self, value: torch.Tensor, window: Window) -> torch.Tensor:
        """Cells of (sequences, heads, tokens, positions up to the window's end)."""
        key = self._key(window)
        rows = self._index(("rows", key), value.device, window)
        keys = self._index(("keys", key), value.device, window)
        filled = self._index(("filled", key), value.device, window)
        cases = (rows[:, :1] // self.rows) if len(value) > 1 else torch.zeros_like(rows[:, :1])
        cells = value[cases[..., None], :, (rows % self.rows)[:, :, None], (keys % self.rows)[:, None, :]]
        hidden = False if value.dtype is torch.bool else torch.finfo(value.dtype).min
        return cells.movedim(3, 1).masked_fill(filled.bool().unsqueeze(1), hidden)

    def _key(self, window: Window) -> tuple[bytes, int, int]:
        return window.chosen.tobytes(), window.begin, window.end

    def _index(self, key: Any, device: torch.device, given: Any) -> torch.Tensor:
        """An array of numbers of rows or tokens, once for each device."""
        place = (key, device)
        if place not in self._known:
            made: np.ndarray = getattr(self, f"_{key[0]}_index")(given)
            self._known[place] = torch.from_numpy(np.ascontiguousarray(made)).to(device)
        return self._known[place]

    def _rows_index(self, window: Window) -> np.ndarray:
        found: np.ndarray = self._row[window.chosen, window.begin : window.end]
        return found

    def _keys_index(self, window: Window) -> np.ndarray:
        found: np.ndarray = self._row[window.chosen, : window.end]
        return found

    def _filled_index(self, window: Window) -> np.ndarray:
        """(sequences, tokens, positions): what stands behind a sequence's end, but for the token itself."""
        positions = np.arange(window.end)
        behind = positions >= self.length[window.chosen, None]
        itself = positions == np.arange(window.begin, window.end)[:, None]
        found: np.ndarray = (behind[:, None] & ~itself).astype(np.uint8)
        return found

    def _fold_index(self, parts: list[tuple[Window, Any]]) -> np.ndarray:
        """(cases * rows,): where in the windows' tokens, one after another, each row stands."""
        token = np.full((self.count, self.longest), -1)
        offset = 0
        for window, _ in parts:
            size = (len(window.chosen), window.tokens)
            token[window.chosen, window.begin : window.end] = offset + np.arange(size[0] * size[1]).reshape(
                size
            )
            offset += size[0] * size[1]
        found: np.ndarray = token.ravel()[self._place]
        assert (found >= 0).all()
        return found
