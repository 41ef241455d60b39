"""Which engine serves a model: found out on a case, and confirmed by every trace on one of its own."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.job import Engine, Job
from moetrace.engines.lockstep import gather
from moetrace.engines.mixers import classes_of, likely_mixers, look_for_mixers
from moetrace.engines.outcome import Outcome
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.self_check import (
    MOST_APART,
    MOST_ROUNDING,
    OF_ROUNDING,
    TOLERANCE,
    Comparison,
    Seen,
    compare,
    confirm,
    look_at,
    null_floor,
    refuse_undefined,
    tolerance_of,
    widened,
)
from moetrace.engines.stream import find_ending, likely_ending
from moetrace.engines.tree import TreeEngine, lower
from moetrace.errors import EngineError
from moetrace.models.ending import Ending
from moetrace.models.float32 import is_half, is_wide
from moetrace.models.mixers import Mixer, Way
from moetrace.models.state import fingerprint, settings_of

if TYPE_CHECKING:
    from moetrace.cases import Case

EngineName = Literal["auto", "tree", "reference"]
ENGINES: tuple[EngineName, ...] = ("auto", "tree", "reference")
_JOINS = {
    _core.Join.AFTER_LAYER: "forks join after their layer",
    _core.Join.BEFORE_LAYER: "forks join before their layer",
    _core.Join.START: "forks join before the first layer",
}


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a trace and why it was chosen.

    ``difference``: what the tree and plain forwards differ by where both ran, by metric of the job (those
    that are missing weren't compared). ``tolerance``: what a trace's own case may differ by, relative to its
    values. ``null``: the largest rescue of a null patch over the traced layers, by metric.
    """

    engine: Engine
    reason: str
    difference: tuple[float, ...] = (0.0,)
    tolerance: float = TOLERANCE
    null: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Verdict:
    """Whether the tree engine serves a model, why, and what was measured."""

    tree: bool
    reason: str
    rows: int = 0
    join: _core.Join = _core.Join.START
    difference: float = 0.0
    tolerance: float = TOLERANCE
    mixers: tuple[Mixer, ...] = ()


_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[Any, Verdict]] = weakref.WeakKeyDictionary()
_nulls: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[float, ...]]] = weakref.WeakKeyDictionary()
_endings: weakref.WeakKeyDictionary[nn.Module, dict[Any, Ending]] = weakref.WeakKeyDictionary()
_defined: weakref.WeakKeyDictionary[nn.Module, set[Any]] = weakref.WeakKeyDictionary()


def choose_engine(
    job: Job,
    cases: Sequence[Case],
    engine: EngineName = "auto",
    batch_tokens: int | None = None,
    direct: bool = False,
) -> EngineChoice:
    """The engine for ``job``, with a budget of token rows a batch. The model must be prepared.

    ``direct``: whether it is to measure direct effects, too, where the model allows it.

    "auto" takes the tree engine where it gives what plain forwards give, tried on the longest case: at first
    with all token mixing as masked attention, then with those modules unfolded that turn out to be something
    else. The reference engine elsewhere, and where that check fails in any way. What was found is known for
    a model until anything of it changes.

    EngineError where "tree" is asked for and doesn't apply; LoopedLayerError, NotCausalError and
    TokenMixingError where no engine can be right.
    """
    known = Knowledge(job, cases, batch_tokens, direct)
    if not known.defined:
        with widened(job):
            known.look()
    verdict = Verdict(False, "asked for")
    if engine != "reference":
        verdict = known.verdict or known.remember(_examine(job, known.longest, known.rows))
    if engine == "tree" and not verdict.tree:
        raise not_served(job, verdict.reason)
    return known.choice(verdict, known.find_ending() if direct else None)


def not_served(job: Job, reason: str) -> EngineError:
    """That the tree engine was asked for and doesn't apply."""
    return EngineError(
        f"the tree engine doesn't serve {type(job.anatomy.model).__name__}: {reason}; use engine='auto' or "
        "engine='reference'"
    )


class Knowledge:
    """What is known of a job's model in its present state, and what of it a trace of these cases needs."""

    def __init__(self, job: Job, cases: Sequence[Case], batch_tokens: int | None, direct: bool) -> None:
        self._job, self._budget, self._direct = job, batch_tokens, direct
        self.longest = max(cases, key=lambda case: len(case.input_ids))
        self._state = state_of(job)
        # Rounded up, so that a model is seldom examined anew.
        self.rows = (
            1 << (max(map(TreeEngine(job, batch_tokens=batch_tokens).rows_of, cases)) - 1).bit_length()
        )

    @property
    def defined(self) -> bool:
        """Whether patching one token of the job's layers is known to be defined."""
        return (self._job.block_layers, self._state) in _defined.get(self._job.anatomy.model, ())

    def look(self) -> Seen:
        """Two plain forwards of the longest case. An error where no engine can be right."""
        seen = look_at(self._job, self.longest)
        refuse_undefined(self._job, self.longest, seen)
        _defined.setdefault(self._job.anatomy.model, set()).add((self._job.block_layers, self._state))
        return seen

    @property
    def _place(self) -> Any:
        # Windows and chunks act only on prompts that are longer than they are.
        return len(self.longest.input_ids).bit_length(), bool(self._job.expert_layers), self._state

    @property
    def verdict(self) -> Verdict | None:
        """On the tree engine, for passes of so many rows.

        A pass of few rows doesn't tell of one with more, where a model counts its keys (minimax_m3's blocks).
        """
        found = _verdicts.get(self._job.anatomy.model, {}).get(self._place)
        return found if found is not None and found.rows >= self.rows else None

    def remember(self, verdict: Verdict) -> Verdict:
        """Keep a verdict for later traces."""
        _verdicts.setdefault(self._job.anatomy.model, {})[self._place] = verdict
        return verdict

    @property
    def _end_place(self) -> Any:
        return min(self._job.block_layers), self._state

    @property
    def ending(self) -> Ending | None:
        """How the model ends behind the lowest traced layer, where that is known."""
        return _endings.get(self._job.anatomy.model, {}).get(self._end_place)

    def find_ending(self) -> Ending:
        """The same, found out where it isn't known: one forward."""
        found = self.ending or find_ending(self._job, self.longest)
        _endings.setdefault(self._job.anatomy.model, {})[self._end_place] = found
        return found

    def choice(self, verdict: Verdict, ending: Ending | None) -> EngineChoice:
        """The engine by a verdict, with its floor measured."""
        engine = self.engine(verdict, ending)
        null = _null_of(engine, self.longest, self._state)
        return EngineChoice(engine, verdict.reason, (verdict.difference,), verdict.tolerance, null)

    def engine(self, verdict: Verdict, ending: Ending | None) -> Engine:
        """The engine by a verdict."""
        job = replace(self._job, mixers=verdict.mixers)
        job = job if ending is None else replace(job, ending=ending)
        return TreeEngine(job, verdict.join, self._budget) if verdict.tree else ReferenceEngine(job)

    def presumed(self, engine: EngineName) -> Verdict:
        """What most likely serves a model, without a forward: a verdict that is known, or the single pass."""
        if engine == "reference":
            return Verdict(False, "asked for")
        if self.verdict is not None:
            return self.verdict
        highest, mixers = next(iter(_core.Join)), likely_mixers(self._job.anatomy)
        reason = reason_for(highest, classes_of(mixers, self._job.anatomy))
        return Verdict(True, reason, self.rows, highest, mixers=mixers)

    def likely_ending(self) -> Ending | None:
        """How the model ends, as known or by its looks; None where direct effects aren't asked for."""
        return (self.ending or likely_ending(self._job)) if self._direct else None

    def learn(self, engine: Engine) -> Learnt:
        """Beside a trace by ``engine``: whatever isn't known yet."""
        verdict = self.verdict
        tasks: list[Callable[[], Any]] = [partial(_null_of, engine, self.longest, self._state)]
        tasks.append(self.find_ending if self._direct else lambda: None)
        tasks.append(self.look if verdict is None or not self.defined else lambda: None)
        null, ending, seen = gather(tasks)
        tolerance = verdict.tolerance if verdict is not None else tolerance_of(self._job, seen)
        if is_half(self._job.anatomy.model):
            tolerance = max(tolerance, MOST_APART)
        return Learnt(tolerance, ending, null)


@dataclass(frozen=True)
class Learnt:
    """What was found beside a trace: by how much two ways of computing may differ, relative to their size;
    where the model ends; the floor of null patches, by metric."""

    tolerance: float
    ending: Ending | None
    null: tuple[float, ...]


def state_of(job: Job) -> Any:
    """What every verdict about a job's model is true for."""
    model = job.anatomy.model
    return fingerprint(model), settings_of(model), is_wide(model)


def confirmed(choice: EngineChoice, case: Case, outcome: Outcome) -> EngineChoice:
    """The choice with its floor measured on a case of the trace, or the reference engine in its place.

    ``outcome``: what the chosen engine gave for the case alone.
    """
    engine = choice.engine
    if not isinstance(engine, TreeEngine):
        return choice
    difference, unexplained = confirm(engine.job, case, outcome, engine.join, choice.tolerance)
    if unexplained is None:
        return replace(choice, difference=largest([choice.difference, difference]))
    reason = (
        f"the single pass differed by {unexplained} from plain forwards on case "
        f"{case.case_id} of this trace, beyond what rounding explains"
    )
    return distrusted(choice, reason, _null_of(ReferenceEngine(engine.job), case, None))


def largest(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """By metric the largest of several floors; NaN counts for nothing.

    >>> largest([(1e-6,), (2e-6, 1e-7)])
    (2e-06, 1e-07)
    """
    return tuple(max(own) for own in zip_longest(*values, fillvalue=0.0))


def distrusted(choice: EngineChoice, reason: str, null: tuple[float, ...]) -> EngineChoice:
    """The reference engine in the place of the tree, about which nothing that was found counts any more."""
    job = choice.engine.job
    _verdicts.pop(job.anatomy.model, None)
    return EngineChoice(ReferenceEngine(job), reason, null=null)


def _null_of(engine: Engine, case: Case, state: Any) -> tuple[float, ...]:
    """The floor of null patches in all traced layers, once for a state of the model (None: measure anew)."""
    job = engine.job
    if not job.block_layers:
        return (0.0,)
    known = _nulls.setdefault(job.anatomy.model, {})
    key = (engine.name, job.block_layers, len(case.input_ids).bit_length(), job.metrics, state)
    if state is None or key not in known:
        like = partial(TreeEngine, join=engine.join) if isinstance(engine, TreeEngine) else ReferenceEngine
        known[key] = null_floor(job, case, lambda nulls: like(nulls).run([case]))
    return known[key]


def _examine(job: Job, case: Case, rows: int) -> Verdict:
    """Whether the tree engine gives what plain forwards give, on one case, three layers and so many rows."""
    model, verdict = job.anatomy.model, Verdict(False, "", rows)
    try:
        with widened(job) as wide:
            plain = wide is job
            tolerance = tolerance_of(job, look_at(job, case)) if plain and is_half(model) else TOLERANCE
            for mixers in _attempts(wide, case, rows, tolerance):
                unfolded = replace(job, mixers=mixers)
                verdict = _attempt(replace(wide, mixers=mixers), case, rows, tolerance)
                if verdict.tree:
                    break
        if verdict.tree and not plain:  # what is left in half precision is its rounding
            found = compare(unfolded, verdict.join, case, rows)
            rounding = OF_ROUNDING * found.difference / found.size
            tolerance = max(tolerance_of(job, look_at(job, case)), min(rounding, MOST_ROUNDING))
            verdict = replace(verdict, join=found.join, difference=found.difference, tolerance=tolerance)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        return Verdict(False, _failed(failure), rows)
    return verdict


def _attempts(job: Job, case: Case, rows: int, tolerance: float) -> Iterator[tuple[Mixer, ...]]:
    """What to unfold, in the order in which it is to be tried: as little as is likely to do."""
    if plain := not likely_mixers(job.anatomy):
        yield ()
    mixers = look_for_mixers(job, case, rows, tolerance)
    if mixers or not plain:
        yield mixers
    whole = tuple(replace(mixer, way=Way.WHOLE, cache=None) for mixer in mixers)
    if any(mixer.way is not Way.WHOLE for mixer in mixers):
        yield whole


def _attempt(job: Job, case: Case, rows: int, tolerance: float) -> Verdict:
    try:
        found = _first_that_agrees(job, case, rows, tolerance)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        return Verdict(False, _failed(failure), rows)
    if not found.within(tolerance):
        allowed = tolerance * found.size
        differs = f"differs from plain forwards by {found.difference:.2g} (tolerance {allowed:.2g})"
        return Verdict(False, f"its single pass {differs}", rows)
    reason = reason_for(found.join, classes_of(job.mixers, job.anatomy))
    return Verdict(True, reason, rows, found.join, found.difference, tolerance, job.mixers)


def _failed(failure: Exception) -> str:
    text = " ".join(str(failure).split())[:200]
    return f"its single pass failed ({type(failure).__name__}: {text})"


def reason_for(join: _core.Join, mixers: Sequence[str] = ()) -> str:
    """Why the tree engine is taken, with forks that join there and such mixers unfolded."""
    if mixers:
        return f"token mixing is masked attention but for {', '.join(mixers)}, unfolded ({_JOINS[join]})"
    return f"token mixing is masked attention ({_JOINS[join]})"


def _first_that_agrees(job: Job, case: Case, rows: int, tolerance: float) -> Comparison:
    """The highest place to join at where the tree agrees; the last one where none does."""
    joins = tuple(_core.Join)
    while True:
        found = compare(job, joins[0], case, rows)
        joins = lower(found.join)
        if found.within(tolerance) or not joins:
            return found
