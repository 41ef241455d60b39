"""The rows of one batch of the tree engine, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.base import Job
from moetrace.engines.experts import recipe
from moetrace.engines.growth import Growth
from moetrace.engines.patches import ExpertPatch, NullPatch
from moetrace.engines.routers import RouterTap
from moetrace.models.masks import TreeMask

if TYPE_CHECKING:
    from moetrace.cases import Case


def shape_of(job: Job, case: Case) -> _core.CaseShape:
    """What the tree has to know of a case."""
    return _core.CaseShape(len(case.input_ids), *case.subject, job.patch_position(case))


class BatchRows:
    """A plan of one batch and the tensors that a forward pass needs from it."""

    def __init__(self, job: Job, cases: Sequence[Case], growth: Growth) -> None:
        self.job, self.cases, self.growth = job, cases, growth
        self.grows = growth is not Growth.STATIC
        self.shapes = [shape_of(job, case) for case in cases]
        self.draws = job.noise.draws
        forks = [_core.Fork(patch.layer, draw) for patch in job.patches for draw in range(self.draws)]
        self.plan = _core.make_plan(self.shapes, forks, self.draws, len(job.anatomy.layers))
        self.position = self.plan.position
        self.source = self.plan.source
        self.start_rows = self.plan.base_rows if self.grows else self.plan.rows
        self.taps: dict[int, RouterTap] = {}

    def rows_at(self, layer: int) -> int:
        """Rows of each case that are alive while a layer runs."""
        if self.growth is not Growth.BEHIND:
            return self.rows_behind(layer)
        return self.rows_behind(layer - 1) if layer else self.start_rows

    def rows_behind(self, layer: int) -> int:
        """Rows of each case that leave a layer."""
        return int(self.plan.rows_at_layer[layer]) if self.grows else int(self.plan.rows)

    def input_ids(self) -> torch.Tensor:
        """int64 (cases, rows at the start)."""
        ids = [np.asarray(case.input_ids)[line] for case, line in zip(self.cases, self.position, strict=True)]
        return torch.from_numpy(np.stack(ids)[:, : self.start_rows].copy())

    def position_ids(self) -> torch.Tensor:
        """int64 (cases, rows at the start): a row's depth in the tree."""
        return torch.from_numpy(self.position[:, : self.start_rows].copy())

    def sources(self, begin: int, end: int) -> torch.Tensor:
        """int64 (cases, end - begin): the base rows that these rows are copies of."""
        return torch.from_numpy(self.source[:, begin:end].copy())

    def mask(self) -> TreeMask:
        """The attention masks of all rows."""
        visible = torch.from_numpy(_core.visibility(self.plan)).bool()
        lengths = (self.plan.base_rows, self.plan.rows) if self.grows else (self.plan.rows,)
        return TreeMask(torch.from_numpy(self.position), visible, lengths)

    def noise_site(self) -> _core.AddRows:
        """The hook that adds subject noise to the embedding's output (equation 2)."""
        destination: list[torch.Tensor] = []
        vectors: list[torch.Tensor] = []
        branch = self.plan.branch[:, : self.start_rows]
        for index, case in enumerate(self.cases):
            start, stop = case.subject
            noise = self.job.noise_vectors(case)
            place = self.position[index, : self.start_rows]
            rows = np.nonzero((branch[index] >= 0) & (place >= start) & (place < stop))[0]
            destination.append(torch.from_numpy(rows + index * self.start_rows))
            vectors.append(noise[branch[index][rows], place[rows] - start])
        return _core.AddRows(
            "embedding noise", len(self.cases) * self.start_rows, torch.cat(destination), torch.cat(vectors)
        )

    def forks_of(self, patch: int) -> range:
        """Forks of one patch, one for each draw."""
        return range(patch * self.draws, (patch + 1) * self.draws)

    def patched_rows(self, fork: int) -> np.ndarray:
        """(cases,): the row of a fork that stands at the patched position."""
        last = self.plan.fork_last(fork)
        return np.array([last - (s.length - 1 - s.patch_position) for s in self.shapes])

    def _block_forks(self, layer: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each fork of a layer's block patches: where its patched row stands, and the row it gets."""
        every = np.arange(len(self.cases))
        for index, patch in enumerate(self.job.patches):
            if patch.layer == layer and not isinstance(patch, ExpertPatch):
                values = self.source if isinstance(patch, NullPatch) else self.plan.clean_twin
                for at in map(self.patched_rows, self.forks_of(index)):
                    yield at, values[every, at]

    def _expert_patches(self, layer: int) -> list[tuple[int, ExpertPatch]]:
        """A layer's expert patches and their places among all patches."""
        every = enumerate(self.job.patches)
        return [(i, patch) for i, patch in every if patch.layer == layer and isinstance(patch, ExpertPatch)]

    def _expert_rows(self, layer: int) -> np.ndarray:
        """Where the patched rows of expert patches stand: (cases, draws, patches), but for the case."""
        chosen = self._expert_patches(layer)
        rows = [[self.patched_rows(fork) for fork in self.forks_of(index)] for index, _ in chosen]
        return np.array(rows, dtype=np.int64).reshape(len(chosen), self.draws, len(self.cases)).transpose()

    def _flat(self, at: np.ndarray, rows: int, shift: int = 0) -> np.ndarray:
        """Numbers in a value of ``rows`` rows a case, for rows of each case (first axis)."""
        case = np.arange(len(self.cases)).reshape(-1, *(1,) * (at.ndim - 1))
        found: np.ndarray = case * rows + at - shift
        return found

    def block_site(self, layer: int) -> _core.OverwriteRows:
        """The hook that writes the values of a layer's block patches into their forks."""
        rows = self.rows_at(layer)
        forks = list(self._block_forks(layer))
        return _core.OverwriteRows(
            f"block of layer {layer}",
            len(self.cases) * rows,
            torch.from_numpy(np.concatenate([self._flat(at, rows) for at, _ in forks])),
            torch.from_numpy(np.concatenate([self._flat(value, rows) for _, value in forks])),
        )

    def birth_site(self, layer: int) -> tuple[_core.BirthRows, torch.Tensor]:
        """The hook behind a layer at which its forks are born, and the rows that block patches get.

        Written rows: block patches by fork, then expert patches by case, draw and patch.
        """
        alive, behind = self.rows_at(layer), self.rows_behind(layer)
        every = np.arange(len(self.cases))
        forks = list(self._block_forks(layer))
        rows = [at for at, _ in forks]
        experts = self._expert_rows(layer)
        written = [self._flat(at, behind - alive, alive) for at in (*rows, experts)]
        stream = [self._flat(self.source[every, at], alive) for at in rows]
        stream.append(self._flat(self.source[every[:, None, None], experts], alive))
        own = [self._flat(value, alive) for _, value in forks]
        site = _core.BirthRows(
            f"forks born behind layer {layer}",
            self.sources(alive, behind),
            torch.from_numpy(np.concatenate([part.reshape(-1) for part in written])),
            torch.from_numpy(np.concatenate([part.reshape(-1) for part in stream])),
        )
        return site, torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *own]))

    def patched_twins(self, layer: int, fork: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the whole value, by item: the clean and the noised row at the patched position.

        ``fork``: the first of a patch's forks, one for each draw. Items are (case, draw), draws innermost.
        """
        rows, every = self.rows_at(layer), np.arange(len(self.cases))
        at = np.array([self.patched_rows(fork + draw) for draw in range(self.draws)])  # (draws, cases)
        clean = every * rows + self.plan.clean_twin[every, at]
        noised = every * rows + self.source[every, at]
        return torch.from_numpy(clean.T.reshape(-1).copy()), torch.from_numpy(noised.T.reshape(-1).copy())

    def router_logits(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Router logits of the clean and noised row of each item: (items, experts)."""
        first = self._expert_patches(layer)[0][0]
        clean, noised = self.patched_twins(layer, self.forks_of(first)[0])
        tap = self.taps.get(layer)
        if tap is None:
            nothing = torch.zeros(len(clean), 0, dtype=torch.float64)
            return nothing, nothing
        total = len(self.cases) * self.rows_at(layer)
        return tap.rows(clean, total), tap.rows(noised, total)

    def expert_site(self, layer: int) -> _core.ExpertSite:
        """The hook that adds the patch vectors of a layer's expert patches in their forks.

        Items are (case, draw), draws innermost.
        """
        rows = self.rows_at(layer)
        chosen = self._expert_patches(layer)
        clean, noised = self.patched_twins(layer, self.forks_of(chosen[0][0])[0])
        destination = None
        if self.growth is not Growth.BEHIND:
            at = self._flat(self._expert_rows(layer), rows)
            destination = torch.from_numpy(at.reshape(-1, len(chosen)).copy())
        return _core.ExpertSite(
            f"experts of layer {layer}",
            len(self.cases) * rows,
            clean,
            noised,
            destination,
            [recipe(patch) for _, patch in chosen],
        )

    def final_rows(self) -> list[int]:
        """Rows that are read out: clean, noised for each draw, then every fork."""
        plan = self.plan
        forks = range(len(self.job.patches) * self.draws)
        noised = [plan.noised_last(draw) for draw in range(self.draws)]
        return [plan.clean_last, *noised, *(plan.fork_last(fork) for fork in forks)]
