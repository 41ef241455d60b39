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
from moetrace.engines.frozen import Stream, frozen_hook, mixers
from moetrace.engines.job import Job, Patch
from moetrace.engines.outcome import Outcome, Values
from moetrace.engines.patched_runs import Watched, Written, patched_runs
from moetrace.engines.receivers import Receiver
from moetrace.engines.reference import ReferenceEngine, sequences_together
from moetrace.models.forward import CleanRow

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


class PathEngine(ReferenceEngine):
    """Plain hooked forwards of one case at a time. The job's patches: the paths' senders and a null patch."""

    name = "paths"

    def __init__(self, job: Job, paths: Sequence[Path]) -> None:
        super().__init__(job)
        self._paths = tuple(paths)

    def _run_case(self, case: Case) -> Outcome:
        """All paths of a case; columns of ``patched``: the paths, their whole senders, the null patch.

        LayoutError where the residual stream isn't found between two ends of a path.
        """
        (position,) = self.job.tokens_of(case)[0]
        kept = CleanRow()
        clean = self._watched(case, None, kept)
        noised, patched = [], []
        for draw in self.job.corruptor.values(case):
            origin = self._watched(case, draw, kept)
            runs = patched_runs(self.job, case, clean, origin)
            active = [
                own.sender.kind is not _core.PatchKind.EXPERTS
                or own.sender.experts[0] in clean.experts[own.sender.layer][position].experts
                for own in self._paths
            ]
            noised.append(origin.values)
            patched.append(self._values(case, draw, origin, runs, active, position, kept))
        every, base = np.stack(patched, axis=-1), np.stack(noised, axis=-1)
        return Outcome.plain(
            [
                Values(clean.values[at : at + 1], base[at][None], every[at][None])
                for at in range(len(self.job.metrics))
            ]
        )

    def _values(
        self,
        case: Case,
        values: torch.Tensor,
        origin: Watched,
        senders: Sequence[Written],
        active: Sequence[bool],
        position: int,
        clean: CleanRow,
    ) -> np.ndarray:
        """Metrics (metrics, runs) of all paths, all senders and the null run, which is the last of
        ``senders``; the noised run's where nothing changes."""
        received: dict[int, torch.Tensor] = {}
        moved = [index for index, is_active in enumerate(active) if is_active]
        size = max(1, sequences_together(len(case.input_ids)) - 1)
        for begin in range(0, len(moved), size):
            part = {index: senders[index].values[position] for index in moved[begin : begin + size]}
            received |= self._received(case, values, part, position)
        runs = [
            Written(self._paths[index].layer, {position: value}, 0, senders[-1].origin)
            for index, value in received.items()
        ]
        runs += [*(senders[index] for index in moved), senders[-1]]
        count = len(self.job.metrics)
        given = self._patched(case, origin, values, None, runs, clean)[:count]
        found = np.tile(origin.values[:, None, None], (1, 2, len(active)))
        found[:, 0, list(received)] = given[:, : len(received)]
        found[:, 1, moved] = given[:, len(received) : -1]
        return np.concatenate([found.reshape(count, -1), given[:, -1:]], axis=1)

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
            own = {
                1 + i: {position: values[places[i]]}
                for i, path in enumerate(paths)
                if path.sender.layer == layer
            }
            behind.append((self.job.anatomy.site(layer).block, self._writer(layer, own, shape, fired)))
        behind += self._frozen(paths, shape)
        before: Hooks = []
        for layer, receiver in receivers.items():
            entered = {1 + i for i, path in enumerate(paths) if path.layer == layer}
            more_before, more_behind = receiver.hooks(partial(stream.check, layer, entered))
            before += more_before
            behind += more_behind
        behind += stream.hooks()
        self._forward(case, noise, len(paths) + 1, behind, again, CleanRow(), before=before)
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
