"""Token rows of a trace, forward by forward, laid out by the code that the engines run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moetrace._native import _core
from moetrace.cases.forced import ForcedCase
from moetrace.engines.reference import sequences_together
from moetrace.engines.tree import TreeEngine
from moetrace.planning.sizes import ModelSize

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.job import Job
    from moetrace.planning.stages import Stage

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Forward:
    """A call of the model: ``sequences``, each of so many ``rows`` while each layer runs.

    ``all_rows``: of each sequence at the end. ``runs``: of each that are read out, at ``read`` rows. Every
    row meets every row of its sequence.
    """

    sequences: int
    rows: Rows
    all_rows: int
    runs: int
    read: int


@dataclass(frozen=True)
class Batch:
    """Cases that go through the model together, and the forwards that this takes."""

    cases: list[Case]
    forwards: list[Forward]


def batches_of(stage: Stage, engine: str, join: _core.Join, budget: int) -> list[Batch]:
    """The batches of a stage."""
    if engine == "reference":
        return [Batch([case], _plain(stage.job, case)) for scan in stage.scans for case in scan]
    tree = TreeEngine(stage.job, join, budget)
    chosen = [[scan[index] for index in batch] for scan in stage.scans for batch in tree.batches(scan)]
    return [Batch(cases, _tree(tree, cases)) for cases in chosen]


def _tree(engine: TreeEngine, cases: list[Case]) -> list[Forward]:
    """One forward, or several where a case by itself exceeds the budget."""
    job, found = engine.job, []
    shapes, draws, layers = [job.shape_of(case) for case in cases], job.draws, len(job.anatomy.layers)
    for begin, end in engine.cuts(cases[0], engine.batch_tokens if len(cases) == 1 else None):
        *inside, total = _core.layer_rows(shapes, job.runs, begin, end, draws, layers, engine.join)
        runs = 1 + draws + draws * (end - begin)
        found.append(Forward(len(cases), np.array(inside), total, runs, runs * _read(cases)))
    return found


def _plain(job: Job, case: Case) -> list[Forward]:
    """One case in the reference engine: clean, and for each draw noised and patched sequences; a knock-out
    has no noised one."""
    tokens, runs = len(case.input_ids), len(job.runs)
    rows, most = np.full(len(job.anatomy.layers), tokens), sequences_together(tokens)
    noised = [] if job.ablation is not None else [1]
    copies = [1] + [*noised, *(min(most, runs - begin) for begin in range(0, runs, most))] * job.draws
    return [Forward(count, rows, tokens, 1, _read([case])) for count in copies]


def _read(cases: Sequence[Case]) -> int:
    """Rows of each run that are read out: several where an object's tokens follow the prompt."""
    return 1 + max(case.forced if isinstance(case, ForcedCase) else 0 for case in cases)


def layer_rows(batches: Sequence[Batch], layers: int) -> Rows:
    """Token rows while each layer runs."""
    found = np.zeros(layers, np.int64)
    for own in (own for batch in batches for own in batch.forwards):
        found += own.sequences * own.rows
    return found


def layer_flops(batches: Sequence[Batch], size: ModelSize) -> npt.NDArray[np.float64]:
    """Operations of each layer's matrix products."""
    found = np.zeros(len(size.layers))
    for own in (own for batch in batches for own in batch.forwards):
        for index, layer in enumerate(size.layers):
            rows = int(own.rows[index])
            found[index] += layer.flops(own.sequences * rows, rows)
    return found


def head_flops(job: Job, batches: Sequence[Batch], size: ModelSize) -> float:
    """Operations of the head: the model's own, for one row of each sequence or for every row that is read
    out; and where a metric needs the whole vocabulary, the exact read-out of every such row."""
    own_head = job.readout.own_head
    whole = any(metric.whole for metric in job.metrics) and not own_head
    forwards = [own for batch in batches for own in batch.forwards]
    rows = sum(own.sequences * ((own.read if own_head else 1) + own.read * whole) for own in forwards)
    return 2.0 * rows * size.head_entries
