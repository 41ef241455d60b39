"""How the cases of a job are run: batch by batch where weights are in memory, else in sweeps over layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from moetrace.engines.agreed import agreed_choice, first_verdict
from moetrace.engines.engine_choice import EngineChoice, EngineName, choose_engine, confirmed
from moetrace.engines.job import Job, left_of, shortest_of
from moetrace.engines.outcome import Outcome
from moetrace.engines.sweeps import Sweeps
from moetrace.ranks import here
from moetrace.weights import source_of

if TYPE_CHECKING:
    from moetrace.cases import Case

Batch = list["Case"]


class Runner(Protocol):
    """Runs the cases of a job, of several ranks each its own. ``choice``: the engine, which the first outcome
    may change."""

    choice: EngineChoice

    def run(self, done: Collection[int], tell: Callable[[int], None]) -> Iterator[tuple[Batch, Outcome]]:
        """Outcomes of all cases but those whose ids are ``done``.

        Nothing comes before the engine is confirmed on one of the cases. ``tell``: called with the number of
        further cases that are through.
        """


def make_runner(
    job: Job, cases: Sequence[Case], engine: EngineName, batch_tokens: int | None, direct: bool = False
) -> Runner:
    """The runner for a job's model. The model must be prepared. Errors: see :func:`choose_engine`."""
    source = source_of(job.anatomy.model)
    if source is None:
        return InMemory(job, cases, engine, batch_tokens, direct)
    return Sweeps(job, cases, engine, batch_tokens, direct, source)


class InMemory:
    """One batch after another."""

    def __init__(
        self, job: Job, cases: Sequence[Case], engine: EngineName, batch_tokens: int | None, direct: bool
    ) -> None:
        self._cases = cases
        self.choice = agreed_choice(here(), choose_engine(job, cases, engine, batch_tokens, direct))

    def run(self, done: Collection[int], tell: Callable[[int], None]) -> Iterator[tuple[Batch, Outcome]]:
        """See :class:`Runner`."""
        ranks, model = here(), self.choice.engine.job.anatomy.model
        batches = left_of(self.choice.engine, self._cases, done)
        mine = ranks.own(batches, model)
        if batches:
            first = mine[0] if mine else []
            outcome = self.choice.engine.run(first) if first else None

            def confirm() -> EngineChoice:
                assert outcome is not None  # the first batch is the first rank's
                shortest = shortest_of(first)
                return confirmed(self.choice, first[shortest], outcome.case(shortest))

            before, self.choice = self.choice, first_verdict(ranks, self.choice, confirm)
            if self.choice.engine.name != before.engine.name:
                mine = ranks.own(left_of(self.choice.engine, self._cases, done), model)
            elif outcome is not None:
                yield first, outcome
                tell(len(first))
                mine = mine[1:]
        for batch in mine:
            yield batch, self.choice.engine.run(batch)
            tell(len(batch))
