"""Path patching: what a sender changes in one later block, router or expert, everything else frozen.

Wang et al. 2022, Goldowsky-Dill et al. 2023. In a copy of the noised run the sender's patch is made. Up to
the receiver every module that mixes or transforms the stream gives what it gives in the noised run, so that
the receiver's input is changed by the sender alone, straight through the residual stream. What the receiver's
block then gives is written into a plain noised run, from where it flows on freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.ablation import patch_vector
from moetrace.engines.fixed_routing import FixedRouting
from moetrace.engines.frozen import Stream, frozen_hook, mixers
from moetrace.engines.job import Job, Patch
from moetrace.engines.receivers import Receiver
from moetrace.engines.reference import ReferenceEngine, sequences_together

if TYPE_CHECKING:
    from moetrace.cases import Case

Hooks = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Path:
    """From a patch of a block or of one expert to a receiver in a later layer; ``expert``: if it is one."""

    sender: Patch
    layer: int
    kind: Literal["block", "router", "expert"]
    expert: int = -1


@dataclass(frozen=True)
class PathOutcome:
    """One case: logit differences ``clean``, and ``noised`` and ``null`` (draws,); in logits ``path`` and
    ``rescue`` (paths, draws), of the receiver's changed output and of the whole sender."""

    clean: float
    noised: np.ndarray
    null: np.ndarray
    path: np.ndarray
    rescue: np.ndarray


class PathEngine(ReferenceEngine):
    """Plain hooked forwards of one case at a time. The job's patches: the paths' senders and a null patch."""

    name = "paths"

    def __init__(self, job: Job, paths: Sequence[Path]) -> None:
        super().__init__(job)
        self._paths = tuple(paths)

    def run_paths(self, case: Case) -> PathOutcome:
        """All paths of a case. LayoutError where the residual stream isn't found between two of its ends."""
        clean_rows, clean_experts, clean = self._watched(case, None)
        noised, nulls, path, total = [], [], [], []
        for draw in self.job.corruptor.values(case):
            rows, experts, difference = self._watched(case, draw)
            values: list[torch.Tensor | None] = []  # what each sender's block gives; None: nothing is patched
            for own in self._paths:
                layer = own.sender.layer
                value = clean_rows[layer]
                if own.sender.kind is _core.PatchKind.EXPERTS:
                    vector = patch_vector(own.sender, clean_experts[layer], experts[layer])
                    value = rows[layer] + vector
                    active = own.sender.experts[0] in clean_experts[layer].experts
                    values.append(value if active else None)
                else:
                    values.append(value)
            found = self._effects(case, draw, values, rows, difference)
            noised.append(difference)
            nulls.append(found[-1])
            effects = found[:-1].reshape(2, -1) - difference
            path.append(effects[0])
            total.append(effects[1])
        path_, total_ = np.stack(path, axis=-1), np.stack(total, axis=-1)
        return PathOutcome(clean, np.array(noised), np.array(nulls), path_, total_)

    def _effects(
        self,
        case: Case,
        noise: torch.Tensor,
        values: Sequence[torch.Tensor | None],
        rows: dict[int, torch.Tensor],
        noised: float,
    ) -> np.ndarray:
        """Logit differences of all paths, all senders and the null run; ``noised`` where nothing changes."""
        position = self.job.patch_position(case)
        received: dict[int, torch.Tensor] = {}
        active = [index for index, value in enumerate(values) if value is not None]
        size = max(1, sequences_together(len(case.input_ids)) - 1)
        for begin in range(0, len(active), size):
            part = active[begin : begin + size]
            received |= self._received(case, noise, {i: values[i] for i in part}, position)
        null = self.job.patches[-1].layer
        runs = [(self._paths[index].layer, value) for index, value in received.items()]
        runs += [(self._paths[i].sender.layer, value) for i, value in enumerate(values) if value is not None]
        runs.append((null, rows[null]))
        free = FixedRouting(self.job, len(case.input_ids), position)
        given = self._patched(case, noise, runs, position, None, free)
        found = np.full((2, len(values)), noised)
        found[0, list(received)] = given[: len(received)]
        found[1, active] = given[len(received) : -1]
        return np.append(found.ravel(), given[-1])

    def _received(
        self, case: Case, noise: torch.Tensor, values: dict[int, Any], position: int
    ) -> dict[int, torch.Tensor]:
        """What each receiver's block gives at the position; none where the receiver doesn't act there."""
        tokens, places = len(case.input_ids), list(values)
        paths = [self._paths[index] for index in places]
        stream = Stream(self.job.anatomy, tokens, position, [path.sender.layer for path in paths])
        receivers = {
            layer: Receiver(
                self.job.anatomy,
                layer,
                tokens,
                position,
                {1 + i: (path.kind, path.expert) for i, path in enumerate(paths) if path.layer == layer},
            )
            for layer in sorted({path.layer for path in paths})
        }
        fired: dict[int, bool] = {}

        def again() -> None:
            fired.clear()
            stream.forget()
            for receiver in receivers.values():
                receiver.forget()

        shape = (1 + len(paths), tokens)
        behind: Hooks = []
        for layer in sorted({path.sender.layer for path in paths}):
            own = {1 + i: values[places[i]] for i, path in enumerate(paths) if path.sender.layer == layer}
            behind.append(
                (self.job.anatomy.site(layer).block, self._writer(layer, own, shape, position, fired))
            )
        behind += self._frozen(paths, shape)
        before: Hooks = []
        for layer, receiver in receivers.items():
            entered = {1 + i for i, path in enumerate(paths) if path.layer == layer}
            more_before, more_behind = receiver.hooks(partial(stream.check, layer, entered))
            before += more_before
            behind += more_behind
        behind += stream.hooks()
        self._forward(case, noise, len(paths) + 1, behind, again, before=before)
        self._all_fired(sorted({path.sender.layer for path in paths}), fired)
        found: dict[int, torch.Tensor] = {}
        for i, path in enumerate(paths):
            value = receivers[path.layer].given(1 + i)
            if value is not None:
                found[places[i]] = value
        return found

    def _frozen(self, paths: Sequence[Path], shape: tuple[int, int]) -> Hooks:
        """Hooks that hold every module between sender and receiver to the noised run, sequence 0."""
        found: Hooks = []
        first, last = min(path.sender.layer for path in paths), max(path.layer for path in paths)
        for layer in range(first + 1, last + 1):
            between = [1 + i for i, path in enumerate(paths) if path.sender.layer < layer < path.layer]
            ending = [1 + i for i, path in enumerate(paths) if path.layer == layer]
            for module, of_block in mixers(self.job.anatomy, layer):
                held = between if of_block else [*between, *ending]
                if held:
                    found.append((module, frozen_hook(held, shape)))
        return found
