"""What is held against plain forwards: one case of a model, before and while the tree engine is trusted.

In float32 two ways of computing one thing agree to about 1e-5 logits, and what exceeds 1e-3 is another
thing. Half precision hides such a difference behind its rounding: there the model is compared in float32,
layer by layer, and the same comparison in its own precision then measures what rounding does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.arguments import shown
from moetrace.engines.job import Job, Origin, Patch, Sweep, embedding_device
from moetrace.engines.lockstep import gather
from moetrace.engines.outcome import LayerRouting, Outcome, Values
from moetrace.engines.places import LAST
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.errors import LoopedLayerError, NotCausalError, TokenMixingError
from moetrace.models.float32 import can_be_wide, in_float32, is_coarse, is_half
from moetrace.models.forward import read_differences
from moetrace.models.readout import Readout, make_readout

if TYPE_CHECKING:
    from moetrace.cases import Case

TOLERANCE = 1e-3  # of the largest logit difference, or of 1 logit: more than float32 rounding gives
OF_ROUNDING = 4.0  # what rounding does in one case may be a few times as much in another
MOST_ROUNDING = 0.05  # of the size: what is beyond is asked of float32 again, case by case
MOST_APART = 0.1  # the same where float32 costs a sweep of its own over weights that aren't in memory
UNITS = 2.0  # units of half-precision rounding by which any two ways of computing may differ


@dataclass(frozen=True)
class Comparison:
    """A tree beside plain forwards: their largest ``difference``, and the ``size`` of what is compared.

    Both in logits; the size is the largest absolute logit difference (equation 1), at least 1. ``others``:
    the same of each further metric of the job, in its unit.
    """

    difference: float
    size: float
    join: _core.Join
    others: tuple[Apart, ...] = ()

    @property
    def differences(self) -> tuple[float, ...]:
        """Of each metric of the job."""
        return self.difference, *(own.difference for own in self.others)

    def within(self, tolerance: float) -> bool:
        """Whether the two agree, relative to their size, in every metric that small changes change little."""
        return not self._beyond(tolerance)

    def told(self, tolerance: float) -> str:
        """By how much they differ, for a message."""
        (beyond, *_) = [*self._beyond(tolerance), Apart("logits", self.difference, self.size)]
        return f"{beyond.difference:.2g} {'logits' if beyond.metric == 'logits' else f'in {beyond.metric}'}"

    def _beyond(self, tolerance: float) -> list[Apart]:
        all_of_them = [Apart("logits", self.difference, self.size), *self.others]
        return [own for own in all_of_them if own.smooth and not own.difference <= tolerance * own.size]


@dataclass(frozen=True)
class Apart:
    """By how much two outcomes differ in a metric, and its size."""

    metric: str
    difference: float
    size: float
    smooth: bool = True


@dataclass(frozen=True)
class Seen:
    """Logit differences of one case in plain forwards: what tells whether patching its token is defined.

    ``alone``: of the prompt by itself. Beside other sequences: ``earlier`` at the token before the last,
    ``changed`` there with another last token, ``together`` at the last token. The first two are one number
    for a prompt of one token.
    """

    alone: float
    earlier: float
    changed: float
    together: float

    @property
    def rounding(self) -> float:
        """What a batch of other composition changes, relative to the size."""
        return abs(self.together - self.alone) / max(1.0, abs(self.alone))


def look_at(job: Job, case: Case) -> Seen:
    """Two plain forwards. LoopedLayerError where a traced block runs several times in one."""
    alone, beside = gather([partial(_alone, job, case), partial(_beside, job, case)])
    return Seen(*alone, *beside)


def refuse_undefined(job: Job, case: Case, seen: Seen) -> None:
    """Refuse a model in which patching one token of one layer isn't defined, as seen on one case.

    NotCausalError where an earlier token's result depends on a later token; TokenMixingError where a
    sequence's depends on its batch.
    """
    alone, earlier, changed, together = astuple(seen)
    if not np.isfinite([alone, earlier, changed, together]).all():
        return
    name = type(job.anatomy.model).__name__
    tolerance = TOLERANCE if can_widen(job) or not is_coarse(job.anatomy.model) else 0.25
    if abs(changed - earlier) > tolerance * max(1.0, abs(earlier)):
        raise NotCausalError(
            f"{name}: the token before the last of case {case.case_id} gives {earlier:.3g}, and with another "
            f"last token {changed:.3g}, so tokens see those that come later; expected a causal "
            "language model (AutoModelForCausalLM), since the protocol reads what follows the prompt"
        )
    if abs(together - alone) > tolerance * max(1.0, abs(alone)):
        raise TokenMixingError(
            f"{name}: the logit difference of case {case.case_id} changes from {alone:.3g} to {together:.3g} "
            "when another sequence stands in the same batch, so a token's result depends on tokens that are "
            "not its own; patching one token is not defined there, and the model can't be traced"
        )


def can_widen(job: Job) -> bool:
    """Whether the model is in half precision, and in memory so that float32 can take its place."""
    return is_half(job.anatomy.model) and can_be_wide(job.anatomy)


@contextmanager
def widened(job: Job) -> Iterator[Job]:
    """The job in float32 where its model is in half precision and all in memory; else as it is."""
    if not can_widen(job):
        yield job
        return
    with in_float32(job.anatomy):
        yield replace(job, readout=_fresh(job))


def tolerance_of(job: Job, seen: Seen) -> float:
    """By how much two ways of computing may differ in the model's own precision, relative to their size."""
    model = job.anatomy.model
    if not is_coarse(model):
        return TOLERANCE
    if not is_half(model):
        return max(TOLERANCE, OF_ROUNDING * seen.rounding) if np.isfinite(seen.rounding) else TOLERANCE
    units = UNITS * max(torch.finfo(w.dtype).eps for w in model.parameters() if w.is_floating_point())
    return max(units, OF_ROUNDING * seen.rounding) if np.isfinite(seen.rounding) else units


def compare(job: Job, join: _core.Join, case: Case, rows: int) -> Comparison:
    """A tree of so many rows, forks joining there or lower, with block and expert patches of three layers."""
    probe = probe_of(job)
    tree = TreeEngine(filled(probe, case, rows), join)
    expected, found = gather([partial(ReferenceEngine(probe).run, [case]), partial(tree.run, [case])])
    compared = replace(found, patched=found.patched[:, : len(probe.patches)])
    return Comparison(_apart(expected, compared), _size(expected), tree.join)


def probe_of(job: Job) -> Job:
    """The job that is compared: block and expert patches of three layers at the last token."""
    # What takes the place of knocked-out experts is known at the job's own place alone.
    places = (LAST,) if job.ablation is None else job.places[:1]
    return replace(
        job,
        patches=_probe_patches(job),
        sweeps=(),
        places=places,
        readout=_fresh(job),
        ending=None,
        metrics=job.metrics[:1],
    )


@dataclass(frozen=True)
class Witness:
    """Plain forwards of one case of a trace: clean, noised, and two of its patched runs, side by side.

    ``firsts``: sweeps of which the first clean-routed expert is patched, behind the patches.
    """

    job: Job
    case: Case
    columns: tuple[int, ...]
    firsts: tuple[Sweep, ...]

    @staticmethod
    def of(job: Job, case: Case) -> Witness:
        """Of the job's own runs in the case, the first and the middle one; of the case, its first draw."""
        has = [bool(tokens) for tokens in job.tokens_of(case)]
        null = _core.PatchKind.NULL
        patched = [i for i, patch in enumerate(job.patches) if patch.kind is not null and has[patch.place]]
        runs = [*patched, *(~i for i, sweep in enumerate(job.sweeps) if has[sweep.place])]
        chosen = [runs[0], runs[len(runs) // 2]] if len(runs) > 1 else runs
        patches = tuple(job.patches[run] for run in chosen if run >= 0)
        sweeps = tuple(job.sweeps[~run] for run in chosen if run < 0)
        probe = replace(
            job, patches=patches, sweeps=sweeps, corruptor=job.corruptor.first_draw(), ending=None
        )
        columns = tuple(run for run in chosen if run >= 0)
        return Witness(probe, case, columns, sweeps)

    def plain(self) -> Outcome:
        """One plain forward of all of them."""
        return ReferenceEngine(self.job).together(self.case, self.firsts)

    def found(self, outcome: Outcome) -> Outcome:
        """The same runs of what a trace found for the case alone."""
        return Outcome.plain([self._runs_of(values, outcome.routing) for values in outcome.metrics])

    def _runs_of(self, given: Values, routing: Mapping[tuple[int, int], LayerRouting]) -> Values:
        """Of one metric."""
        values = [given.patched[:, column, :1] for column in self.columns]
        for sweep in self.firsts:
            where = sweep.layer, sweep.place
            own = routing[where]
            active = np.flatnonzero(own.patched_active[0, 0] & own.clean_active[0, 0])
            nothing = given.clean[:, None] if sweep.origin is Origin.NOISE else given.noised[:, :1]
            values.append(given.swept[where][:, :1, active[0]] if len(active) else nothing)
        patched = np.stack(values, axis=1) if values else np.zeros((1, 0, 1))
        return Values(given.clean, given.noised[:, :1], patched)

    def compare(self, expected: Outcome, outcome: Outcome, join: _core.Join) -> Comparison:
        """The trace's outcome for the case beside :meth:`plain`."""
        found = self.found(outcome)
        further = zip(self.job.metrics[1:], expected.others, found.others, strict=True)
        others = [Apart(m.name, _apart(mine, own), _size(mine), m.smooth) for m, mine, own in further]
        return Comparison(_apart(expected, found), _size(expected), join, tuple(others))


def confirm(
    job: Job, case: Case, outcome: Outcome, join: _core.Join, tolerance: float
) -> tuple[tuple[float, ...], str | None]:
    """What a trace found for one case beside plain forwards: clean, noised and two patched runs.

    ``outcome``: of the case alone, its first draw is compared. ``tolerance``: relative, as rounding was
    measured. A half-precision model that is further off is compared once more, in float32: rounding can
    flip a router's near tie in one case and not in another. Returns the largest difference in each metric,
    and what rounding doesn't explain, in words; None where there is nothing.
    """
    witness = Witness.of(job, case)
    native = witness.compare(witness.plain(), outcome, join)
    if native.within(tolerance) or not can_widen(job):
        return native.differences, None if native.within(tolerance) else native.told(tolerance)
    again = compare_wide(witness, join)
    if again.within(TOLERANCE):  # it was rounding, and goes into the floor
        return native.differences, None
    return again.differences, again.told(TOLERANCE)


def compare_wide(witness: Witness, join: _core.Join) -> Comparison:
    """The runs of a witness in float32: plain forwards beside a tree of the job's own runs."""
    with in_float32(witness.job.anatomy):
        wide = replace(witness, job=replace(witness.job, readout=_fresh(witness.job)))
        tree = TreeEngine(wide.job, join)
        expected, found = gather([wide.plain, partial(tree.run, [wide.case])])
    columns = tuple(range(len(witness.columns)))
    return replace(wide, columns=columns).compare(expected, found, tree.join)


def null_floor(job: Job, case: Case, run: Callable[[Job], Outcome]) -> tuple[float, ...]:
    """The largest absolute rescue of a null patch over all traced layers, by metric (0 where not finite).

    Made at the first place that the case has.
    """
    place = next((place for place, tokens in enumerate(job.tokens_of(case)) if tokens), 0)
    nulls = tuple(Patch.null(layer, place) for layer in job.block_layers)
    found = run(replace(job, patches=nulls, sweeps=(), corruptor=job.corruptor.first_draw(), ending=None))
    drifts = [np.abs(values.patched[0] - values.noised[0]) for values in found.metrics]
    return tuple(float(own.max(initial=0.0)) if np.isfinite(own).all() else 0.0 for own in drifts)


def _fresh(job: Job) -> Readout:
    """The job's read-out as a new one: it is checked at the precision that it is used in."""
    return make_readout(job.anatomy, job.readout.asked)


def _apart(expected: Outcome | Values, found: Outcome | Values) -> float:
    """Largest difference of two outcomes where the plain one is finite."""
    worst = 0.0
    for mine, theirs in (
        (expected.clean, found.clean),
        (expected.noised, found.noised),
        (expected.patched, found.patched),
    ):
        apart = np.abs(mine - theirs)[np.isfinite(mine)]
        if apart.size:
            worst = max(worst, float(apart.max()) if np.isfinite(apart).all() else np.inf)
    return worst


def _size(outcome: Outcome | Values) -> float:
    values = np.concatenate([outcome.clean.ravel(), outcome.noised.ravel(), outcome.patched.ravel()])
    return max(1.0, float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))


def _alone(job: Job, case: Case) -> tuple[float]:
    """The clean logit difference of one sequence. LoopedLayerError where a traced block ran twice."""
    visits: dict[int, int] = {}

    def begin() -> None:
        visits.update(dict.fromkeys(job.block_layers, 0))

    def count(layer: int, *_: Any) -> None:
        visits[layer] += 1

    with _core.HookScope() as scope:
        begin()
        for layer in visits:
            scope.behind(job.anatomy.site(layer).block, partial(count, layer))
        found = _differences(job, case, [case.input_ids], [len(case.input_ids) - 1], begin)
    looped = [layer for layer, times in visits.items() if times > 1]
    if looped:
        once = [layer for layer in job.anatomy.default_layers() if layer not in looped]
        raise LoopedLayerError(
            f"{type(job.anatomy.model).__name__} runs the blocks of layers {shown(looped)} up to "
            f"{max(visits.values())} times in one forward, so that a patch of such a layer has no single "
            f"meaning; expected layers that run once: trace layers={shown(once)}, or others outside the loop"
        )
    return (float(found[0, 0]),)


def _beside(job: Job, case: Case) -> tuple[float, float, float]:
    """Beside other sequences: the token before the last, the same with another last token, and the last.

    The first two are one number for a prompt of one token.
    """
    ids, last = list(case.input_ids), len(case.input_ids) - 1
    other = [*ids[:-1], (ids[-1] + 1) % job.anatomy.vocab_size]
    found = _differences(job, case, [ids, ids[::-1], other], [last - 1, last] if last else [last])
    earlier, changed = (found[0, 0], found[2, 0]) if last else (found[0, -1], found[0, -1])
    return float(earlier), float(changed), float(found[0, -1])


def _differences(
    job: Job,
    case: Case,
    sequences: Sequence[Sequence[int]],
    rows: Sequence[int],
    begin: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Logit differences of a case's objects: (sequences, rows). ``begin``: called before a second forward."""
    ids = torch.tensor(sequences, device=embedding_device(job.anatomy))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    return read_differences(job.anatomy, _fresh(job), inputs, rows, [case] * len(sequences), begin)


def _probe_patches(job: Job) -> tuple[Patch, ...]:
    """Block patches at three layers, and where experts are traced the sum of all clean-routed ones there."""
    experts = job.expert_layers
    layers = experts or job.anatomy.default_layers()
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    origin = Origin.NOISE if job.from_clean else Origin.DENOISE
    patches: list[Patch] = [Patch.block(layer, origin=origin) for layer in chosen]
    if experts:
        patches += [Patch.of_experts(layer, _core.Chosen.CLEAN, origin=origin) for layer in chosen]
    return tuple(patches)


def filled(probe: Job, case: Case, rows: int) -> Job:
    """The probe with as many null forks as make its tree no smaller than the trace's own."""
    lowest = min(patch.layer for patch in probe.patches)
    there = TreeEngine(probe).rows_of(case)
    one = Patch.null(lowest)
    # Of an earlier token a fork is a chain, and draws have one each.
    each = TreeEngine(replace(probe, patches=(*probe.patches, one))).rows_of(case) - there
    fill = [one] * max(0, -(-(rows - there) // max(1, each)))
    return replace(probe, patches=(*probe.patches, *fill))
