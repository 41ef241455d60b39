"""Traces of cases whose objects have several tokens: each is read along a sequence that goes on with it.

A case becomes one or two sequences (:mod:`moetrace.cases.forced`), patched where the case is. A fork is then
a chain of rows from the patched token to the last forced one, so all tokens of an object see the patch, as in
a forward of the prompt and the object with the patch in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moetrace.cases import CaseSet, ForcedCase, forced_sequences, free_ids, read_at
from moetrace.engines.engine_choice import EngineChoice
from moetrace.engines.job import Job
from moetrace.engines.outcome import Outcome, Values
from moetrace.metrics import SUMS, Metric

if TYPE_CHECKING:
    from moetrace.cases import Case


class TeacherForcing:
    """A job of cases as one of their sequences, and what its outcome says of the cases.

    >>> forcing = TeacherForcing(job, cases)
    >>> forcing.outcome(run(forcing.job, forcing.sequences))
    """

    def __init__(self, job: Job, cases: Sequence[Case]) -> None:
        self._metrics = job.metrics
        self.job = reading_sums(job)
        ids = free_ids({case.case_id for case in cases})
        sequences: list[ForcedCase] = []
        where: dict[str, list[int]] = {"true": [], "foil": []}
        for case in cases:
            own = forced_sequences(case, job.anatomy.vocab_size, ids)
            for name, at in read_at(own).items():
                where[name].append(len(sequences) + at)
            sequences += own
        self.sequences = CaseSet(sequences)
        self._true, self._foil = np.array(where["true"]), np.array(where["foil"])

    def outcome(self, found: Outcome) -> Outcome:
        """What the sequences gave, in their order, as that of the cases. Direct effects aren't defined."""
        first, *others = [self._of(metric, found.metrics) for metric in self._metrics]
        own = found.select(self._true)
        routing = {}
        for place, layer in own.routing.items():
            unknown = np.full(layer.direct.shape, np.nan)
            routing[place] = replace(layer, patched=first.swept[place], direct=unknown, direct_linear=unknown)
        unknown = np.full(first.patched.shape, np.nan)
        return Outcome(
            first.clean, first.noised, first.patched, unknown, unknown, own.present, routing, tuple(others)
        )

    def _of(self, metric: Metric, found: Sequence[Values]) -> Values:
        """One metric of the cases."""
        if metric.of_sums is None:
            return found[self.job.metrics.index(metric)].select(self._true)
        return _combined(metric.of_sums, found[0].select(self._true), found[1].select(self._foil))

    def choice(self, choice: EngineChoice, found: Outcome) -> EngineChoice:
        """The engine's floors by the metrics of the cases: what such errors of both sums can make of the
        values that were found.
        """
        return replace(
            choice,
            difference=self._floors(choice.difference, found),
            null=self._floors(choice.null, found),
        )

    def _floors(self, measured: tuple[float, ...], found: Outcome) -> tuple[float, ...]:
        floors = (*measured, *[0.0] * (len(self.job.metrics) - len(measured)))
        return tuple(self._floor(metric, floors, found.metrics) for metric in self._metrics)

    def _floor(self, metric: Metric, floors: tuple[float, ...], found: Sequence[Values]) -> float:
        if metric.of_sums is None:
            return floors[self.job.metrics.index(metric)]
        true, foil = found[0].select(self._true), found[1].select(self._foil)
        exact = _combined(metric.of_sums, true, foil)
        of_sums = metric.of_sums
        moved = _combined(lambda t, f: of_sums(t + floors[0], f - floors[1]), true, foil)
        apart = [np.abs(moved.patched - exact.patched), np.abs(moved.noised - exact.noised)]
        return max(float(np.nanmax(own, initial=0.0)) for own in apart)


def reading_sums(job: Job) -> Job:
    """The job as sequences are read: the sums of both objects, then the metrics that aren't made of them."""
    return replace(job, metrics=(*SUMS, *(metric for metric in job.metrics if metric.of_sums is None)))


def _combined(of_sums: Callable[[np.ndarray, np.ndarray], np.ndarray], true: Values, foil: Values) -> Values:
    """A metric of both objects' sums."""
    return Values(
        of_sums(true.clean, foil.clean),
        of_sums(true.noised, foil.noised),
        of_sums(true.patched, foil.patched),
        {place: of_sums(own, foil.swept[place]) for place, own in true.swept.items()},
    )


def forcing_of(job: Job, cases: Sequence[Case]) -> TeacherForcing | None:
    """None where every object of every case is a single token."""
    return TeacherForcing(job, cases) if any(case.several_tokens for case in cases) else None
