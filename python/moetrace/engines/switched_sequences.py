"""Runs with experts switched off of cases whose objects have several tokens: one or two sequences each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from moetrace.cases.forced import ForcedCase, forced_sequences, free_ids, read_at
from moetrace.engines.job import Job
from moetrace.engines.teacher_forcing import reading_sums

if TYPE_CHECKING:
    from moetrace.engines.switches import Off


@dataclass(frozen=True, eq=False)
class Sequences:
    """``runs``: one of every sequence; ``true``, ``foil``: of each run asked for that on which the object is
    read. ``job``: reads the sums of both objects, then the metrics that aren't made of them."""

    job: Job
    runs: list[Off]
    true: np.ndarray
    foil: np.ndarray

    @staticmethod
    def of(job: Job, runs: Sequence[Off]) -> Sequences:
        """The sequences of all runs, in their order."""
        cases = {run.case.case_id: run.case for run in runs}
        ids = free_ids(set(cases))
        known = {own: forced_sequences(case, job.anatomy.vocab_size, ids) for own, case in cases.items()}
        every: list[Off] = []
        places: dict[str, list[int]] = {"true": [], "foil": []}
        for run in runs:
            own = known[run.case.case_id]
            for name, at in read_at(own).items():
                places[name].append(len(every) + at)
            every += [replace(run, case=sequence) for sequence in own]
        return Sequences(reading_sums(job), every, np.array(places["true"]), np.array(places["foil"]))

    def values(self, job: Job, measured: np.ndarray) -> np.ndarray:
        """The metrics of ``job`` (metrics, runs asked for) from those of the sequences."""
        true, foil = measured[0, self.true], measured[1, self.foil]
        found = [
            measured[self.job.metrics.index(metric), self.true]
            if metric.of_sums is None
            else metric.of_sums(true, foil)
            for metric in job.metrics
        ]
        return np.stack(found)


def forced_tokens(run: Off) -> int:
    """How many tokens of an object follow the prompt in a run."""
    return run.case.forced if isinstance(run.case, ForcedCase) else 0
