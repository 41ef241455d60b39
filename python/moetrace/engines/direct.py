"""What the engines read for direct effects: how far each patch moves the residual stream, and where it ends.

A patch's ``delta`` is the change of its own layer's output at the final token, as the layer gave it: whatever
scale or norm stands between the block and the stream is in it. A patch at earlier tokens alone changes
nothing there: its direct effect is 0. What is changed is the run that the patched one leaves from: the noised
one, or the clean one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.job import Job
from moetrace.models.forward import pair_of
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case


def at_final(job: Job, cases: Sequence[Case]) -> np.ndarray:
    """bool (cases, places): whether the final token is among those of a place."""
    return np.array([[len(c.input_ids) - 1 in own for own in job.tokens_of(c)] for c in cases])


class TreeTap:
    """Reads one tree pass: rows of its forks behind their own layers, and noised rows at the final norm."""

    def __init__(self, job: Job, run: _core.Pass, runs: range) -> None:
        self._job, self._draws = job, job.draws
        final = run.final_rows
        self._clean_row, forks = final[0], final[1 + self._draws :]
        self._noised_rows = final[1 : 1 + self._draws]
        layers, from_clean = job.runs.layers[runs.start : runs.stop], job.runs.from_clean
        self._places = job.runs.places[runs.start : runs.stop]
        self._from_clean = np.array(from_clean[runs.start : runs.stop])
        self._runs: dict[int, list[int]] = {}
        for index, layer in enumerate(layers):
            self._runs.setdefault(layer, []).append(index)
        self._fork_rows = {
            layer: [forks[index * self._draws + draw] for index in runs for draw in range(self._draws)]
            for layer, runs in self._runs.items()
        }
        self._origin_rows = {
            layer: [row for index in runs for row in self._origin_of(index)]
            for layer, runs in self._runs.items()
        }
        self._deltas: dict[int, torch.Tensor] = {}
        self._ended: torch.Tensor | None = None

    def _origin_of(self, run: int) -> list[int]:
        """Final rows of the run that a patched one leaves from, in each draw."""
        return [self._clean_row] * self._draws if self._from_clean[run] else self._noised_rows

    def arm(self, scope: _core.HookScope) -> None:
        """Hang the hooks; behind those with which forks join."""
        ending = self._job.ending
        assert ending is not None
        for layer in self._runs:
            scope.behind(self._job.anatomy.layers[layer], partial(self._keep_delta, layer))
        scope.behind(ending.norm, self._keep_ended)

    def _keep_delta(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        value = first_tensor(output)
        own = _rows(value, self._fork_rows[layer]) - _rows(value, self._origin_rows[layer])
        self._deltas[layer] = own.reshape(len(own), -1, self._draws, own.shape[-1])

    def _keep_ended(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        hidden = (*args, *kwargs.values())[0]
        self._ended = hidden.index_select(1, _index([self._clean_row, *self._noised_rows], hidden))

    def read(self, cases: Sequence[Case], differences: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Direct effects, exact and linear: (cases, runs, draws). ``differences``: (cases, final rows)."""
        assert self._ended is not None
        assert self._job.ending is not None
        device = self._ended.device
        order = [index for runs in self._runs.values() for index in runs]
        deltas = torch.cat([self._deltas[layer].to(device) for layer in self._runs], dim=1)
        deltas = deltas[:, torch.argsort(torch.tensor(order, device=device))]
        vocab = self._job.anatomy.vocab_size
        tokens = torch.tensor([pair_of(case, vocab) for case in cases])
        differences = differences.to(device)
        found = np.zeros((2, len(cases), len(order), self._draws))
        for from_clean in (False, True):
            own = np.flatnonzero(self._from_clean == from_clean)
            if not len(own):
                continue
            rows = [0] * self._draws if from_clean else list(range(1, 1 + self._draws))
            moved = deltas[:, torch.tensor(own, device=device)]
            effects = self._job.ending.effects(self._ended[:, rows], moved, tokens, differences[:, rows])
            found[:, :, own] = [values.cpu().numpy() for values in effects]
        found[:, ~at_final(self._job, cases)[:, self._places]] = 0.0
        direct, linear = found
        return direct, linear


def _rows(value: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of each sequence, in float32 or better: what half precision stores is subtracted exactly."""
    found = value.index_select(1, _index(rows, value))
    return found if found.dtype is torch.float64 else found.float()


def _index(rows: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, device=like.device)


class PlainTap:
    """Reads plain forwards of one case: the noised run (or the clean one), then patched runs that leave from
    it, each a sequence of its own.
    """

    def __init__(self, job: Job, case: Case) -> None:
        self._job, self._case = job, case
        self._origin: dict[int, torch.Tensor] = {}  # what each layer gives at the final token
        self._ended: torch.Tensor | None = None
        self._deltas: list[torch.Tensor] = []

    def again(self) -> PlainTap:
        """Another tap of runs that leave from the same run, which has been read."""
        found = PlainTap(self._job, self._case)
        found._origin, found._ended = self._origin, self._ended
        return found

    def origin_hooks(self) -> list[tuple[Any, Any]]:
        """Modules of the run that they leave from and what to hang behind them."""
        assert self._job.ending is not None
        layers = self._job.anatomy.layers
        return [
            *((layers[layer], partial(self._keep_origin, layer)) for layer in self._job.block_layers),
            (self._job.ending.norm, self._keep_ended),
        ]

    def patched_hooks(self, layers: Sequence[int]) -> list[tuple[Any, Any]]:
        """The same of a forward whose sequence i is patched in layer ``layers[i]``; call it once for each."""
        first = len(self._deltas)
        self._deltas += [torch.empty(0)] * len(layers)
        return [
            (self._job.anatomy.layers[layer], partial(self._keep_deltas, layer, first, layers))
            for layer in sorted(set(layers))
        ]

    def _keep_origin(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        self._origin[layer] = first_tensor(output)[0, -1].clone()

    def _keep_ended(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        self._ended = (*args, *kwargs.values())[0][0, -1].clone()

    def _keep_deltas(
        self, layer: int, first: int, layers: Sequence[int], _m: Any, _a: Any, _k: Any, output: Any
    ) -> None:
        value = first_tensor(output)
        for index, where in enumerate(layers):
            if where == layer:
                wide = torch.promote_types(value.dtype, torch.float32)
                self._deltas[first + index] = value[index, -1].to(wide) - self._origin[layer].to(wide)

    def read(self, difference: float) -> tuple[np.ndarray, np.ndarray]:
        """Direct effects, exact and linear: (runs,). ``difference``: of the run that they leave from."""
        if not self._deltas:
            return np.zeros(0), np.zeros(0)
        assert self._ended is not None
        assert self._job.ending is not None
        device = self._ended.device
        deltas = torch.stack([delta.to(device) for delta in self._deltas])[None, :, None]
        tokens = torch.tensor([pair_of(self._case, self._job.anatomy.vocab_size)])
        given = torch.tensor([[difference]], dtype=torch.float64, device=device)
        found = self._job.ending.effects(self._ended[None, None], deltas, tokens, given)
        direct, linear = (values[0, :, 0].cpu().numpy() for values in found)
        return direct, linear
