"""Tracing a model whose layers' weights come from elsewhere: everything in one sweep over its layers.

The checks of the engine ride in the sweep of the trace itself, beside its batches. So the trace is made by
the engine that most likely serves the model, and what the checks found decides afterwards whether it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.engine_choice import (
    EngineChoice,
    EngineName,
    Knowledge,
    Learnt,
    Verdict,
    largest,
    not_served,
    reason_for,
)
from moetrace.engines.job import Engine, Job, left_of, shortest_of
from moetrace.engines.lockstep import Lockstep
from moetrace.engines.mixers import classes_of
from moetrace.engines.outcome import LayerRouting, Outcome
from moetrace.engines.self_check import TOLERANCE, Witness, compare_wide
from moetrace.engines.tree import TreeEngine, lower
from moetrace.models.float32 import is_half
from moetrace.ranks import Alone, here

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.weights import LayerSource

HELD = 1 << 30  # bytes that batches side by side may hold between two layers


@dataclass
class _Told:
    """Cases that are through, counted up while layers pass; what is done a second time isn't told."""

    tell: Callable[[int], None]
    through: int = 0
    told: int = 0

    def reach(self, cases: int) -> None:
        if cases > self.told:
            self.tell(cases - self.told)
            self.told = cases


class Sweeps:
    """Batches side by side, as many as their hidden states' memory allows, and with the first its checks."""

    def __init__(
        self,
        job: Job,
        cases: Sequence[Case],
        engine: EngineName,
        batch_tokens: int | None,
        direct: bool,
        source: LayerSource,
    ) -> None:
        self._job, self._cases, self._asked, self._source = job, cases, engine, source
        self._known = Knowledge(job, cases, batch_tokens, direct)
        self._apart: tuple[float, ...] = ()  # what the tree and plain forwards differ by, by metric
        self._verdict = self._known.presumed(engine)
        if engine == "tree" and not self._verdict.tree:
            raise not_served(job, self._verdict.reason)
        self.choice = self._chosen(self._known.engine(self._verdict, self._known.likely_ending()))

    def run(self, done: Collection[int], tell: Callable[[int], None]) -> Iterator[tuple[list[Case], Outcome]]:
        """See :class:`moetrace.engines.runner.Runner`."""
        told, ranks = _Told(tell), here()
        if not left_of(self.choice.engine, self._cases, done):
            return
        while (outcomes := self._first(waves := self._waves(done), told, ranks)) is None:
            pass  # once more, by another engine, or read out elsewhere
        for number, wave in enumerate(waves):
            runs = [partial(self.choice.engine.run, batch) for batch in wave]
            found = self._sweep(runs, wave, told) if number else outcomes
            told.through += sum(map(len, wave))
            yield from zip(wave, map(self._without_faults, found), strict=True)

    def _waves(self, done: Collection[int]) -> list[list[list[Case]]]:
        """The batches that this rank is to run, in lots that stand side by side."""
        waves: list[list[list[Case]]] = []
        held = math.inf
        batches = left_of(self.choice.engine, self._cases, done)
        for batch in here().own(batches, self._job.anatomy.model):
            own = sum(map(self._held, batch))
            if held + own > HELD:
                waves.append([])
                held = 0
            waves[-1].append(batch)
            held += own
        return waves

    def _held(self, case: Case) -> int:
        """Bytes that a case holds between two layers: hidden states, masks, patch vectors."""
        engine = self.choice.engine
        job, rows = engine.job, engine.rows_of(case)
        width, size = job.anatomy.hidden_size, job.anatomy.element_size
        hidden = 2 * rows * width * size
        if isinstance(engine, TreeEngine):
            return hidden + rows * rows * size + len(job.runs) * job.draws * width * 4
        return hidden + 8 * width * (rows // len(case.input_ids))  # contributions are kept in float64

    def _sweep(self, tasks: Sequence[Callable[[], Any]], wave: list[list[Case]], told: _Told) -> list[Any]:
        """Run tasks in lockstep, and tell of a wave's cases as layers are passed."""
        anatomy, cases = self._job.anatomy, sum(map(len, wave))

        def passed(layer: int) -> None:
            told.reach(told.through + cases * (layer + 1) // len(anatomy.layers))

        return Lockstep(anatomy, self._source, passed).run(tasks)

    def _first(self, waves: list[list[list[Case]]], told: _Told, ranks: Alone) -> list[Outcome] | None:
        """The first wave beside the checks. None where its outcomes can't be used, here or elsewhere."""
        engine, wave = self.choice.engine, waves[0] if waves else []
        learnt, outcomes, reason = self._beside_checks(engine, wave, told)
        likely, ending = engine.job.ending, learnt.ending
        same = ending is None or bool(ending.fault) or (likely is not None and likely.norm is ending.norm)
        own = (reason, _place(engine), same, self._apart or (self._verdict.difference,), learnt.null)
        found = ranks.share("the check of the engine", own)
        # Of several ranks the most careful counts.
        reason = next((each[0] for each in found if each[0] is not None), None)
        if reason is None and (lowest := max(each[1] for each in found)) > _place(engine):
            reason = "forks join lower on another rank"
            self._verdict = replace(self._verdict, join=tuple(_core.Join)[lowest])
        elif reason is not None:
            self._lower(engine, reason)
        chosen = self._chosen(self._known.engine(self._verdict, learnt.ending))
        difference, null = largest([each[3] for each in found]), largest([each[4] for each in found])
        self.choice = replace(chosen, difference=difference, null=null)
        return outcomes if reason is None and all(each[2] for each in found) else None

    def _beside_checks(
        self, engine: Engine, wave: list[list[Case]], told: _Told
    ) -> tuple[Learnt, list[Outcome], str | None]:
        """One sweep: what was learnt of the model, a wave's outcomes, and why they can't be trusted."""
        tasks: list[Callable[[], Any]] = [partial(self._known.learn, engine)]
        if not wave:
            return self._sweep(tasks, wave, told)[0], [], None
        shortest = shortest_of(wave[0])
        witness = Witness.of(engine.job, wave[0][shortest])
        tree = isinstance(engine, TreeEngine)
        tasks.append(witness.plain if tree else lambda: None)
        tasks += [partial(_attempt, engine, batch) for batch in wave]
        learnt, plain, *found = self._sweep(tasks, wave, told)
        failure = next((outcome for outcome in found if isinstance(outcome, Exception)), None)
        if failure is not None:
            if not tree:
                raise failure
            text = " ".join(str(failure).split())[:200]
            return learnt, [], f"its single pass failed ({type(failure).__name__}: {text})"
        if not isinstance(engine, TreeEngine):
            return learnt, found, None
        return learnt, found, self._judge(engine, witness, plain, found[0].case(shortest), learnt)

    def _judge(
        self, engine: TreeEngine, witness: Witness, plain: Outcome, outcome: Outcome, learnt: Learnt
    ) -> str | None:
        """Hold a case of the trace against plain forwards. Why it can't be trusted; None where it can."""
        found = witness.compare(plain, outcome, engine.join)
        if not found.within(learnt.tolerance):
            wide = found
            if is_half(self._job.anatomy.model):  # rounding may flip a router's near tie in this very case
                (wide,) = self._sweep(
                    [partial(compare_wide, witness, engine.join)], [], _Told(lambda _: None)
                )
            if not wide.within(TOLERANCE):
                return (
                    f"its single pass differed by {found.told(learnt.tolerance)} from plain forwards on case "
                    f"{witness.case.case_id} of this trace, beyond what rounding explains"
                )
        job = engine.job
        reason = reason_for(engine.join, classes_of(job.mixers, job.anatomy))
        self._apart = found.differences
        known = Verdict(
            True, reason, self._known.rows, engine.join, found.difference, learnt.tolerance, job.mixers
        )
        self._verdict = self._known.remember(known)
        return None

    def _lower(self, engine: Engine, reason: str) -> None:
        """Have forks join at the next lower place; where there is none, the tree doesn't serve the model."""
        joins = lower(engine.join) if isinstance(engine, TreeEngine) else ()
        if joins:
            self._verdict = replace(self._verdict, join=joins[0])
            return
        self._verdict = self._known.remember(Verdict(False, reason, self._known.rows))
        if self._asked == "tree":
            raise not_served(self._job, reason)

    def _chosen(self, engine: Engine) -> EngineChoice:
        own = self._verdict
        return EngineChoice(engine, own.reason, (own.difference,), own.tolerance)

    def _without_faults(self, outcome: Outcome) -> Outcome:
        """No direct effects where the model's ending doesn't allow them."""
        ending = self.choice.engine.job.ending
        if ending is None or not (ending.fault or ending.linear_fault):
            return outcome
        names = ["direct_linear", *(["direct"] if ending.fault else [])]

        def unknown(own: Outcome | LayerRouting) -> dict[str, Any]:
            return {name: np.full_like(getattr(own, name), np.nan) for name in names}

        routing = {layer: replace(own, **unknown(own)) for layer, own in outcome.routing.items()}
        return replace(outcome, **unknown(outcome), routing=routing)


def _place(engine: Engine) -> int:
    """Where the engine's forks join, as a number: the lower in the model, the higher."""
    return tuple(_core.Join).index(engine.join) if isinstance(engine, TreeEngine) else -1


def _attempt(engine: Engine, batch: list[Case]) -> Outcome | Exception:
    """A batch's outcome, or what went wrong: another engine may serve the model."""
    try:
        return engine.run(batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        return failure
