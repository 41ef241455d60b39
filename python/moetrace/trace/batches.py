"""Batches of a call: dealt out over ranks, kept in its run folder, gone on with where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from moetrace.cases import CaseSet
from moetrace.engines.job import Cutter, Job, left_of
from moetrace.progress import Progress
from moetrace.ranks import here, progress_bar
from moetrace.trace.run_folder import RunFolder

if TYPE_CHECKING:
    from moetrace.cases import Case

P = TypeVar("P")
Q_co = TypeVar("Q_co", covariant=True)


class Found(Protocol[Q_co]):
    """What a batch gave."""

    def case(self, index: int) -> Q_co:
        """One case of it."""


Batches = Callable[[Collection[int], Callable[[int], None]], Iterator[tuple[Sequence["Case"], Found[P]]]]


class Worker(Cutter, Protocol[Q_co]):
    """Runs batches, each by itself."""

    @property
    def job(self) -> Job:
        """What it runs."""

    def run(self, cases: Sequence[Case]) -> Found[Q_co]:
        """One batch."""


def batches_of(worker: Worker[P], cases: Sequence[Case]) -> Batches[P]:
    """One batch after another, of several ranks each its own."""

    def run(done: Collection[int], tell: Callable[[int], None]) -> Iterator[tuple[Sequence[Case], Found[P]]]:
        for batch in here().own(left_of(worker, cases, done), worker.job.anatomy.model):
            yield batch, worker.run(batch)
            tell(len(batch))

    return run


def run_batches(
    batches: Batches[P], cases: CaseSet, folder: RunFolder[P] | None, progress: Progress, what: str
) -> list[P]:
    """What was found of each case, in their order.

    ``batches``: given the ids of finished cases and whom to tell of further ones, batches and what they gave.
    """
    ranks = here()
    done: dict[int, P] = {}
    if folder is not None:
        done = ranks.of_first("finished cases", folder.finished)
    fresh: dict[int, P] = {}  # of this rank
    with progress_bar(len(cases), what, progress) as bar:
        if done and ranks.first:
            bar.update(len(done))
        for batch, found in batches(frozenset(done), bar.update):
            parts = {case.case_id: found.case(index) for index, case in enumerate(batch)}
            if folder is not None and (ranks.first or not ranks.mirrored):
                folder.append(parts)
            fresh.update(parts)
        done |= ranks.joined("results", fresh)
    return [done[case.case_id] for case in cases]
