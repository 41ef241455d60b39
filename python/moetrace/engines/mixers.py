"""Which modules of a model mix tokens otherwise than by masked attention: found by what they do.

In one pass over a tree of all runs each module directly in a layer, but for its block, is called on the
tree's rows and on every run as a sequence of its own. One that gives something else on the tree is a mixer
that must be unfolded; whether it may go on from a state is tried in the same place, against the sequences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.job import Job, embedding_device
from moetrace.engines.self_check import filled, probe_of
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import Anatomy
from moetrace.models.mixers import Call, Mixer, Turn, Unfolding, Way, run_on_sequences
from moetrace.models.sequences import Sequences, Window
from moetrace.models.state import first_tensor
from moetrace.models.states import cache_argument, empty_cache, fresh

if TYPE_CHECKING:
    from moetrace.cases import Case


# What has such a module inside is tried unfolded at once. It only spares an attempt that would fail.
_LIKELY = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|LightningAttention|LinearAttention|ShortConv|Rwkv|Recurrent|SSM|Hyena|"
    r"Retention|xLSTM|mLSTM|sLSTM"
)


def likely_mixers(anatomy: Anatomy) -> tuple[Mixer, ...]:
    """Modules that are mixers by their looks: what is known of a model without a forward."""
    return tuple(
        Mixer(layer, name)
        for layer, name, module in _candidates(anatomy)
        if any(isinstance(own, nn.Conv1d) or _LIKELY.search(type(own).__name__) for own in module.modules())
    )


def classes_of(mixers: Sequence[Mixer], anatomy: Anatomy) -> list[str]:
    """Names of their classes, each once."""
    return sorted({type(mixer.module(anatomy)).__name__ for mixer in mixers})


def look_for_mixers(job: Job, case: Case, rows: int, tolerance: float) -> tuple[Mixer, ...]:
    """The mixers of a job's model, in its layers' order, as a tree of so many rows shows them.

    ``tolerance``: by how much a module's output may differ, relative to its size.
    """
    finder = _Finder(filled(probe_of(job), case, rows), 0.1 * tolerance)
    finder.run([case])
    return tuple(finder.found[place] for place in sorted(finder.found))


class _Finder(TreeEngine):
    def __init__(self, job: Job, tolerance: float) -> None:
        super().__init__(replace(job, mixers=()), _core.Join.START)
        self.found: dict[tuple[int, str], Mixer] = {}
        self._tolerance = tolerance
        self._cache = empty_cache(job.anatomy, embedding_device(job.anatomy))

    def arm_mixers(self, run: _core.Pass, scope: _core.HookScope) -> None:
        """Hang a comparison behind every module that may be one."""
        self.found.clear()
        unfolding = Unfolding(run)
        for layer, name, module in _candidates(self.job.anatomy):
            scope.behind(module, partial(self._compare, unfolding, Mixer(layer, name)))

    def _compare(
        self, unfolding: Unfolding, mixer: Mixer, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        sequences = unfolding.sequences(args, kwargs)
        if sequences is None or not sequences.fits(first_tensor(output)):
            return None
        call = Call(module, args, kwargs)
        right = run_on_sequences(call, sequences, mixer)
        rows = sequences.real_rows()
        if self._agree(_rows(output, rows), _rows(right, rows)):
            return None
        self.found[mixer.layer, mixer.name] = self._with_state(mixer, call, sequences)
        return right

    def _with_state(self, mixer: Mixer, call: Call, sequences: Sequences) -> Mixer:
        """The mixer as it can be run at the least cost."""
        middle = sequences.longest // 2
        if self._cache is None or cache_argument(call.module) is None or middle < 1:
            return mixer
        whole = self._bases(call, sequences, [(0, sequences.longest)], None)
        for way, places in (
            (Way.CONTINUED, [0, middle, sequences.longest]),
            (Way.STEPPED, [0, *range(middle, sequences.longest + 1)]),
        ):
            try:
                spans = list(pairwise(places))
                found = self._bases(call, sequences, spans, fresh(self._cache))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # its forward has another idea of a state
                continue
            if len(found) == len(whole) and all(map(self._agree, found, whole)):
                return replace(mixer, way=way, cache=self._cache)
        return mixer

    def _bases(
        self, call: Call, sequences: Sequences, spans: Sequence[tuple[int, int]], cache: Any
    ) -> list[torch.Tensor]:
        """What the mixer gives the base runs, span by span: every tensor with a line for each token."""
        chosen, parts = np.arange(sequences.bases), []
        for begin, end in spans:
            window = Window(chosen, begin, end)
            args, kwargs = call.on(sequences, Turn(window, cache, False))
            given = call.module.forward(*args, **kwargs)
            values = given if isinstance(given, (tuple, list)) else (given,)
            parts.append([v for v in values if sequences.by_token(v, window)])
        return [torch.cat(items, dim=1) for items in zip(*parts, strict=True)]

    def _agree(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.shape != b.shape:
            return False
        if not a.is_floating_point():
            return torch.equal(a, b)
        size = float(b.abs().max())
        units = 4 * torch.finfo(b.dtype).eps
        return float((a - b).abs().max()) <= max(self._tolerance, units) * max(size, 1e-6)


def _candidates(anatomy: Anatomy) -> list[tuple[int, str, nn.Module]]:
    """Modules directly in a layer, but what holds its block or experts."""
    found = []
    for layer, (own, site) in enumerate(zip(anatomy.layers, anatomy.sites, strict=True)):
        apart = set() if site is None else {site.block, site.experts, site.router}
        for name, module in own.named_children():
            if not apart & set(module.modules()):
                found.append((layer, name, module))
    return found


def _rows(output: Any, rows: torch.Tensor) -> torch.Tensor:
    value = first_tensor(output)
    return value.flatten(0, 1).index_select(0, rows.to(value.device))
