"""What the engines read for direct effects: how far each patch moves the residual stream, and where it ends.

A patch's ``delta`` is the change of its own layer's output at the final token, as the layer gave it: whatever
scale or norm stands between the block and the stream is in it. A patch at an earlier token changes nothing
there: its direct effect is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.job import Job
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case


def final_cases(job: Job, cases: Sequence[Case]) -> np.ndarray:
    """bool (cases,): whether the patched token is the final one."""
    return np.array([job.patch_position(case) == len(case.input_ids) - 1 for case in cases])


class TreeTap:
    """Reads one tree pass: rows of its forks behind their own layers, and noised rows at the final norm."""

    def __init__(self, job: Job, run: _core.Pass, run_layers: Sequence[int]) -> None:
        self._job, self._draws = job, job.draws
        final = run.final_rows
        self._noised_rows, forks = final[1 : 1 + self._draws], final[1 + self._draws :]
        self._runs: dict[int, list[int]] = {}
        for index, layer in enumerate(run_layers):
            self._runs.setdefault(layer, []).append(index)
        self._fork_rows = {
            layer: [forks[index * self._draws + draw] for index in runs for draw in range(self._draws)]
            for layer, runs in self._runs.items()
        }
        self._deltas: dict[int, torch.Tensor] = {}
        self._noised: torch.Tensor | None = None

    def arm(self, scope: _core.HookScope) -> None:
        """Hang the hooks; behind those with which forks join."""
        ending = self._job.ending
        assert ending is not None
        for layer in self._runs:
            scope.behind(self._job.anatomy.layers[layer], partial(self._keep_delta, layer))
        scope.behind(ending.norm, self._keep_noised)

    def _keep_delta(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        value = first_tensor(output)
        own = _rows(value, self._fork_rows[layer])
        own = own.reshape(len(own), -1, self._draws, own.shape[-1])
        self._deltas[layer] = own - _rows(value, self._noised_rows).unsqueeze(1)

    def _keep_noised(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        hidden = (*args, *kwargs.values())[0]
        self._noised = hidden.index_select(1, _index(self._noised_rows, hidden))

    def read(self, cases: Sequence[Case], differences: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Direct effects, exact and linear: (cases, runs, draws). ``differences``: (cases, final rows)."""
        assert self._noised is not None
        assert self._job.ending is not None
        device = self._noised.device
        order = [index for runs in self._runs.values() for index in runs]
        deltas = torch.cat([self._deltas[layer].to(device) for layer in self._runs], dim=1)
        deltas = deltas[:, torch.argsort(torch.tensor(order, device=device))]
        tokens = torch.tensor([(case.true_id, case.foil_id) for case in cases])
        noised = differences[:, 1 : 1 + self._draws].to(device)
        found = self._job.ending.effects(self._noised, deltas, tokens, noised)
        elsewhere = ~final_cases(self._job, cases)
        direct, linear = (values.cpu().numpy() for values in found)
        direct[elsewhere] = linear[elsewhere] = 0.0
        return direct, linear


def _rows(value: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Rows of each sequence, in float32 or better: what half precision stores is subtracted exactly."""
    found = value.index_select(1, _index(rows, value))
    return found if found.dtype is torch.float64 else found.float()


def _index(rows: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, device=like.device)


class PlainTap:
    """Reads plain forwards of one case: the run that patches are made in, the noised one unless the job says
    otherwise, then its patched runs, each a sequence of its own."""

    def __init__(self, job: Job, case: Case) -> None:
        self._job, self._case = job, case
        self._base: dict[int, torch.Tensor] = {}  # what each layer gives at the final token
        self._ended: torch.Tensor | None = None
        self._deltas: list[torch.Tensor] = []

    def base_hooks(self) -> list[tuple[Any, Any]]:
        """Modules of that run and what to hang behind them."""
        assert self._job.ending is not None
        layers = self._job.anatomy.layers
        return [
            *((layers[layer], partial(self._keep_base, layer)) for layer in self._job.block_layers),
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

    def _keep_base(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        self._base[layer] = first_tensor(output)[0, -1].clone()

    def _keep_ended(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        self._ended = (*args, *kwargs.values())[0][0, -1].clone()

    def _keep_deltas(
        self, layer: int, first: int, layers: Sequence[int], _m: Any, _a: Any, _k: Any, output: Any
    ) -> None:
        value = first_tensor(output)
        for index, where in enumerate(layers):
            if where == layer:
                wide = torch.promote_types(value.dtype, torch.float32)
                self._deltas[first + index] = value[index, -1].to(wide) - self._base[layer].to(wide)

    def read(self, difference: float) -> tuple[np.ndarray, np.ndarray]:
        """Direct effects, exact and linear: (runs,). ``difference``: that run's."""
        if not self._deltas:
            return np.zeros(0), np.zeros(0)
        assert self._ended is not None
        assert self._job.ending is not None
        device = self._ended.device
        deltas = torch.stack([delta.to(device) for delta in self._deltas])[None, :, None]
        tokens = torch.tensor([(self._case.true_id, self._case.foil_id)])
        given = torch.tensor([[difference]], dtype=torch.float64, device=device)
        found = self._job.ending.effects(self._ended[None, None], deltas, tokens, given)
        direct, linear = (values[0, :, 0].cpu().numpy() for values in found)
        return direct, linear
