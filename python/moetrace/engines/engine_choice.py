"""Which engine serves a model: found out on a case, and confirmed by every trace on one of its own."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.job import Engine, Job, Outcome
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.self_check import (
    MOST_ROUNDING,
    OF_ROUNDING,
    TOLERANCE,
    Comparison,
    compare,
    confirm,
    null_floor,
    refuse_undefined,
    tolerance_of,
    widened,
)
from moetrace.engines.stream import find_ending
from moetrace.engines.tree import TreeEngine, lower
from moetrace.errors import EngineError
from moetrace.models.ending import Ending
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
_OTHER_MIXERS = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|LightningAttention|LinearAttention|ShortConv|ShortConvolution|Rwkv|"
    r"Recurrent|SSM|Hyena|Retention|xLSTM|mLSTM|sLSTM"
)


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a trace and why it was chosen.

    ``difference``: what the tree and plain forwards differ by where both ran, in logits. ``tolerance``: what
    a trace's own case may differ by, relative to its logits. ``null``: the largest rescue of a null patch
    over the traced layers, in logits.
    """

    engine: Engine
    reason: str
    difference: float = 0.0
    tolerance: float = TOLERANCE
    null: float = 0.0


@dataclass(frozen=True)
class _Verdict:
    tree: bool
    reason: str
    rows: int = 0
    join: _core.Join = _core.Join.START
    difference: float = 0.0
    tolerance: float = TOLERANCE


_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Verdict]] = weakref.WeakKeyDictionary()
_nulls: weakref.WeakKeyDictionary[nn.Module, dict[Any, float]] = weakref.WeakKeyDictionary()
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

    "auto" takes the tree engine where token mixing is masked attention, found by structure and confirmed on
    the longest case against plain forwards; the reference engine elsewhere, and where that check fails in
    any way. What was found is known for a model until anything of it changes.

    EngineError where "tree" is asked for and doesn't apply; LoopedLayerError, NotCausalError and
    TokenMixingError where no engine can be right.
    """
    longest = max(cases, key=lambda case: len(case.input_ids))
    state = (fingerprint(job.anatomy.model), settings_of(job.anatomy.model))
    defined = _defined.setdefault(job.anatomy.model, set())
    if (job.block_layers, state) not in defined:
        refuse_undefined(job, longest)
        defined.add((job.block_layers, state))
    verdict = _Verdict(False, "asked for")
    if engine != "reference":
        rows = max(map(TreeEngine(job, batch_tokens=batch_tokens).rows_of, cases))
        verdict = _verdict(job, longest, rows, state)
    if engine == "tree" and not verdict.tree:
        raise EngineError(
            f"the tree engine doesn't serve {type(job.anatomy.model).__name__}: {verdict.reason}; use "
            "engine='auto' or engine='reference'"
        )
    if direct:
        job = replace(job, ending=_ending(job, longest, state))
    tree = TreeEngine(job, verdict.join, batch_tokens)
    chosen: Engine = tree if verdict.tree else ReferenceEngine(job)
    null = _null_of(chosen, longest, state)
    return EngineChoice(chosen, verdict.reason, verdict.difference, verdict.tolerance, null)


def confirmed(choice: EngineChoice, case: Case, outcome: Outcome) -> EngineChoice:
    """The choice with its floor measured on a case of the trace, or the reference engine in its place.

    ``outcome``: what the chosen engine gave for the case alone.
    """
    engine = choice.engine
    if not isinstance(engine, TreeEngine):
        return choice
    difference, explained = confirm(engine.job, case, outcome, engine.join, choice.tolerance)
    if explained:
        return replace(choice, difference=max(choice.difference, difference))
    reason = (
        f"the single pass differed by {difference:.2g} logits from plain forwards on case "
        f"{case.case_id} of this trace, beyond what rounding explains"
    )
    return distrusted(choice, reason, _null_of(ReferenceEngine(engine.job), case, None))


def distrusted(choice: EngineChoice, reason: str, null: float) -> EngineChoice:
    """The reference engine in the place of the tree, about which nothing that was found counts any more."""
    job = choice.engine.job
    _verdicts.pop(job.anatomy.model, None)
    return EngineChoice(ReferenceEngine(job), reason, null=null)


def _null_of(engine: Engine, case: Case, state: Any) -> float:
    """The floor of null patches in all traced layers, once for a state of the model (None: measure anew)."""
    job = engine.job
    if not job.block_layers:
        return 0.0
    known = _nulls.setdefault(job.anatomy.model, {})
    key = (engine.name, job.block_layers, len(case.input_ids).bit_length(), state)
    if state is None or key not in known:
        like = partial(TreeEngine, join=engine.join) if isinstance(engine, TreeEngine) else ReferenceEngine
        known[key] = null_floor(job, lambda nulls: like(nulls).run([case]))
    return known[key]


def _ending(job: Job, case: Case, state: Any) -> Ending:
    """How the model ends behind the lowest traced layer, once for a state of it."""
    known = _endings.setdefault(job.anatomy.model, {})
    key = (min(job.block_layers), state)
    if key not in known:
        known[key] = find_ending(job, case)
    return known[key]


def _verdict(job: Job, case: Case, rows: int, state: Any) -> _Verdict:
    # Windows and chunks act only on prompts that are longer than they are.
    key = (len(case.input_ids).bit_length(), bool(job.expert_layers), state)
    known = _verdicts.setdefault(job.anatomy.model, {})
    # Nor does a pass of few rows tell of one with more, where a model counts its keys (minimax_m3's blocks).
    if key not in known or known[key].rows < rows:
        known[key] = _examine(job, case, 1 << (rows - 1).bit_length())  # rounded up: seldom examined anew
    return known[key]


def other_mixers(layers: Sequence[nn.Module]) -> list[str]:
    """Class names of recurrent and convolutional mixers inside the layers."""
    found = set()
    for layer in layers:
        for module in layer.modules():
            if _OTHER_MIXERS.search(type(module).__name__) or isinstance(module, nn.Conv1d):
                found.add(type(module).__name__)
    return sorted(found)


def _examine(job: Job, case: Case, rows: int) -> _Verdict:
    """Whether the tree engine gives what plain forwards give, on one case, three layers and so many rows."""
    mixers = other_mixers(job.anatomy.layers)
    if mixers:
        return _Verdict(False, f"its token mixing isn't masked attention alone ({', '.join(mixers)})", rows)
    try:
        with widened(job) as wide:
            tolerance = TOLERANCE if wide is not job else tolerance_of(job, case)
            found = _first_that_agrees(wide, case, rows, tolerance)
        agrees = found.within(tolerance)
        if agrees and wide is not job:  # what is left in half precision is its rounding
            found = compare(job, found.join, case, rows)
            rounding = OF_ROUNDING * found.difference / found.size
            tolerance = max(tolerance_of(job, case), min(rounding, MOST_ROUNDING))
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        text = " ".join(str(failure).split())[:200]
        return _Verdict(False, f"its single pass failed ({type(failure).__name__}: {text})", rows)
    if not agrees:
        allowed = tolerance * found.size
        differs = f"differs from plain forwards by {found.difference:.2g} (tolerance {allowed:.2g})"
        return _Verdict(False, f"its single pass {differs}", rows)
    reason = f"token mixing is masked attention ({_JOINS[found.join]})"
    return _Verdict(True, reason, rows, found.join, found.difference, tolerance)


def _first_that_agrees(job: Job, case: Case, rows: int, tolerance: float) -> Comparison:
    """The highest place to join at where the tree agrees; the last one where none does."""
    joins = tuple(_core.Join)
    while True:
        found = compare(job, joins[0], case, rows)
        joins = lower(found.join)
        if found.within(tolerance) or not joins:
            return found
