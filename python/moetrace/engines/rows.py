"""The rows of one batch of the tree engine, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.base import Job
from moetrace.engines.experts import recipe
from moetrace.engines.patches import ExpertPatch, NullPatch
from moetrace.engines.routers import RouterTap
from moetrace.models.masks import TreeMask

if TYPE_CHECKING:
    from moetrace.cases import Case


def shape_of(job: Job, case: Case) -> _core.CaseShape:
    """What the tree has to know of a case."""
    return _core.CaseShape(len(case.input_ids), *case.subject, job.patch_position(case))


class BatchRows:
    """A plan of one batch and the tensors that a forward pass needs from it.

    ``grow``: the pass starts with the base rows and forks join at their layer; otherwise every row is in the
    input from the start.
    """

    def __init__(self, job: Job, cases: Sequence[Case], grow: bool) -> None:
        self.job, self.cases, self.grow = job, cases, grow
        self.shapes = [shape_of(job, case) for case in cases]
        self.draws = job.noise.draws
        forks = [_core.Fork(patch.layer, draw) for patch in job.patches for draw in range(self.draws)]
        self.plan = _core.make_plan(self.shapes, forks, self.draws, len(job.anatomy.layers))
        self.position = self.plan.position
        self.source = self.plan.source
        self.start_rows = self.plan.base_rows if grow else self.plan.rows
        self.taps: dict[int, RouterTap] = {}

    def rows_at(self, layer: int) -> int:
        """Rows of each case that are alive while a layer runs."""
        return int(self.plan.rows_at_layer[layer]) if self.grow else int(self.plan.rows)

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
        lengths = (self.plan.base_rows, self.plan.rows) if self.grow else (self.plan.rows,)
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

    def block_site(self, layer: int) -> _core.OverwriteRows:
        """The hook that writes the values of a layer's block patches into their forks."""
        rows = self.rows_at(layer)
        every = np.arange(len(self.cases))
        destination, source = [], []
        for index, patch in enumerate(self.job.patches):
            if patch.layer != layer or isinstance(patch, ExpertPatch):
                continue
            values = self.source if isinstance(patch, NullPatch) else self.plan.clean_twin
            for fork in self.forks_of(index):
                at = self.patched_rows(fork)
                destination.append(every * rows + at)
                source.append(every * rows + values[every, at])
        return _core.OverwriteRows(
            f"block of layer {layer}",
            len(self.cases) * rows,
            torch.from_numpy(np.concatenate(destination)),
            torch.from_numpy(np.concatenate(source)),
        )

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
        first = next(
            index
            for index, patch in enumerate(self.job.patches)
            if patch.layer == layer and isinstance(patch, ExpertPatch)
        )
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
        every = np.arange(len(self.cases))
        chosen = [
            (index, patch)
            for index, patch in enumerate(self.job.patches)
            if patch.layer == layer and isinstance(patch, ExpertPatch)
        ]
        # (recipes, draws, cases): where each fork's row stands
        at = np.array([[self.patched_rows(fork) for fork in self.forks_of(index)] for index, _ in chosen])
        clean, noised = self.patched_twins(layer, self.forks_of(chosen[0][0])[0])
        destination = (every * rows + at).transpose(2, 1, 0).reshape(-1, len(chosen))
        return _core.ExpertSite(
            f"experts of layer {layer}",
            len(self.cases) * rows,
            clean,
            noised,
            torch.from_numpy(destination.copy()),
            [recipe(patch) for _, patch in chosen],
        )

    def final_rows(self) -> list[int]:
        """Rows that are read out: clean, noised for each draw, then every fork."""
        plan = self.plan
        forks = range(len(self.job.patches) * self.draws)
        noised = [plan.noised_last(draw) for draw in range(self.draws)]
        return [plan.clean_last, *noised, *(plan.fork_last(fork) for fork in forks)]
