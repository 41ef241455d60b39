"""From a user's call to finished cases: checks, engine, batches, run folder, progress."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch

from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.corruptions import Corruption
from moetrace.effects import rescue
from moetrace.engines.engine_choice import EngineChoice, EngineName
from moetrace.engines.job import Job, Mode, Patch, Sweep, make_job
from moetrace.engines.outcome import Outcome
from moetrace.engines.places import Place, Positions, single_place
from moetrace.engines.runner import Runner, make_runner
from moetrace.engines.teacher_forcing import forcing_of
from moetrace.errors import EngineError, EngineWarning, NoEffectWarning, NonFiniteError, NonFiniteWarning
from moetrace.metrics import LOGIT_DIFF, PAPER, Asked, Metric, check_foils, check_single
from moetrace.models.anatomy import Anatomy
from moetrace.models.float32 import ComputeDtype, computing_in
from moetrace.models.readout import ReadoutKind
from moetrace.models.state import prepared
from moetrace.progress import Progress
from moetrace.ranks import here
from moetrace.results.base import TraceResult
from moetrace.results.by_metric import MetricTraces
from moetrace.trace.batches import run_batches
from moetrace.trace.budget import resolve_budget
from moetrace.trace.memory import check_memory
from moetrace.trace.parts import OutcomeForm
from moetrace.trace.run_folder import RunFolder, call_facts

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.knockout import Ablation

T = TypeVar("T", bound=TraceResult)


@dataclass(frozen=True)
class Session:
    """What a trace found: one row of each array for each case, in the order given, and how it was found."""

    cases: CaseSet
    outcome: Outcome
    choice: EngineChoice
    attention: str
    job: Job
    failed: pd.DataFrame
    compute_dtype: ComputeDtype | None = None
    ranks: int = 1
    whole: Outcome | None = None  # with every metric of the job
    asked: Asked = PAPER
    place: int = 0  # of the outcome's metric among the job's

    @property
    def metric(self) -> Metric:
        """What the outcome's values are."""
        return self.job.metrics[self.place]

    def of_metric(self, metric: Metric) -> Session:
        """The same session with the values of one of the metrics asked for."""
        assert self.whole is not None
        place = self.job.metrics.index(metric)
        return replace(self, outcome=self.whole.of_metric(place), place=place)

    def only(self, columns: Sequence[int]) -> Session:
        """The same session with some of its patches, in this order."""
        outcome = replace(self.outcome, patched=self.outcome.patched[:, list(columns)])
        return replace(self, outcome=outcome)


def case_table(session: Session, null: int = -1) -> pd.DataFrame:
    """One row for each case: ids, logit differences averaged over draws, effect of the null patch."""
    outcome = session.outcome
    drift = rescue(outcome.patched[:, null], outcome.base(session.job))
    return pd.DataFrame(
        {
            **case_columns(session.cases),
            "clean": outcome.clean,
            "noised": outcome.noised.mean(axis=1),
            "null_rescue": drift[np.arange(len(drift)), np.abs(drift).argmax(axis=1)],
        }
    )


def trace(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    patches: Sequence[Patch],
    *,
    anatomy: Anatomy,
    corruption: Corruption,
    position: Positions | tuple[Place, ...],
    metric: Asked,
    engine: EngineName,
    batch_tokens: int | str,
    progress: Progress,
    out: Path | None,
    final_subject: Literal["refuse", "keep"],
    readout: ReadoutKind,
    mode: Mode = "denoise",
    compute_dtype: ComputeDtype | None = None,
    sweeps: Sequence[Sweep] = (),
    what: str = "trace",
    details: dict[str, Any] | None = None,
    direct: bool = True,
    ablation: Ablation | None = None,
) -> Session:
    """Run ``patches`` on every case, with checked options. Errors: see :func:`moetrace.trace_layers`.

    ``position``: one token of each case, or places as patches number them. ``direct``: measure direct
    effects, too, where the logit difference is asked for. The session's outcome is of the first metric;
    :func:`finished` makes a result of each. ``ablation``: patches of experts knock them out of the clean run.
    """
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, final_subject, anatomy.positions)
    check_foils(metric.metrics, case_set)
    check_single(metric.metrics, case_set)
    with prepared(anatomy.model), computing_in(anatomy, compute_dtype):
        budget = resolve_budget(batch_tokens, anatomy)
        places = position if isinstance(position, tuple) else single_place(position, case_set)
        job = make_job(anatomy, patches, corruption, places, sweeps, readout, metric.metrics, mode, ablation)
        job.corruptor.corruption.check(case_set)
        ranks = here()
        asked = {"engine asked for": engine, "batch_tokens": budget, "out": str(out)}
        ranks.agree(what, lambda: {**call_facts(what, job, case_set, details, metric), **asked})
        _warn_of_nothing(job, case_set)
        forcing = forcing_of(job, case_set)
        run_job, run_set = (job, case_set) if forcing is None else (forcing.job, forcing.sequences)
        direct = direct and LOGIT_DIFF in metric.metrics and forcing is None
        runner = make_runner(run_job, run_set, engine, budget, direct)
        check_memory(runner.choice.engine, run_set, budget)
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))  # prepared() may have changed it
        folder = None
        if out is not None:
            how = {
                "engine": runner.choice.engine.name,
                "attention": attention,
                "compute_dtype": compute_dtype or "",
            }
            path, form = out, OutcomeForm.of(run_job)
            folder = ranks.first_then_all(
                "run folder",
                lambda: RunFolder.open(path, what, run_job, run_set, details, how, metric, form),
            )
        outcome, choice = _run(runner, run_set, folder, progress, what), runner.choice
        if forcing is not None:
            outcome, choice = forcing.outcome(outcome), forcing.choice(choice, outcome)
        job = replace(choice.engine.job, metrics=job.metrics)
    found = _without_failed(case_set, outcome, choice, attention, job)
    _warn_of_no_drop(found)
    found = replace(found, compute_dtype=compute_dtype, whole=found.outcome, asked=metric)
    return found.of_metric(metric.metrics[0])


def finished(session: Session, make: Callable[[Session], T], out: Path | None) -> T:
    """The result of a session, saved into its run folder; of several metrics a MetricTraces of one each."""
    results = {metric.name: make(session.of_metric(metric)) for metric in session.asked.metrics}
    return kept_results(session.asked, results, out)


def kept_results(asked: Asked, results: Mapping[str, T], out: Path | None) -> T:
    """The result of the metric asked for, or a MetricTraces of those of several, saved into a run folder."""
    found: Any = MetricTraces(results) if asked.several else next(iter(results.values()))
    keep(found, out)
    result: T = found
    return result


def keep(result: TraceResult | MetricTraces, out: Path | None) -> None:
    """Save a result into its run folder, if it has one: one rank writes."""
    if out is not None and here().first:
        result.save(out)


def _has_no_scale(job: Job) -> bool:
    """Whether noise is zero because the embedding is."""
    return not job.corruptor.replaces and job.corruptor.embedding.std == 0


def _warn_of_nothing(job: Job, cases: CaseSet) -> None:
    """Say where what is asked for can't have an effect."""
    corrupts = job.ablation is None
    effect = "rescue" if corrupts else "effect"
    if corrupts and _has_no_scale(job):
        warnings.warn(
            "the embedding is zero everywhere, and so is the noise, whose scale is its standard deviation: "
            "clean and noised runs are the same",
            NoEffectWarning,
            stacklevel=5,
        )
    patched = {*(patch.place for patch in job.patches), *(sweep.place for sweep in job.sweeps)}
    places = [p for index, p in enumerate(job.places) if index in patched and not p.of_all]
    last = len(job.anatomy.layers) - 1
    for place in places:
        tokens = [(case, place.find(case)) for case in cases]
        before = [case.case_id for case, own in tokens if own and own[-1] < case.subject[0]]
        if corrupts and before:
            warnings.warn(
                f"position {place.name!r} lies before the subject in {len(before)} of {len(cases)} cases: "
                f"clean and noised runs are the same and every rescue is 0: case ids {before[:20]}",
                NoEffectWarning,
                stacklevel=5,
            )
        early = [case.case_id for case, own in tokens if own and own[-1] < len(case.input_ids) - 1]
        if early and last in job.block_layers:
            warnings.warn(
                f"layer {last} is the last: what is patched there at position {place.name!r} doesn't reach "
                f"the final token of {len(early)} of {len(cases)} cases, and its {effect} is 0: case ids "
                f"{early[:20]}",
                NoEffectWarning,
                stacklevel=5,
            )


def _warn_of_no_drop(session: Session) -> None:
    """Say where the corruption left every case as it was: all rescues are rounding then."""
    outcome, job = session.outcome, session.job
    most = np.abs(outcome.noised - outcome.clean[:, None]).max()
    floor = max(session.choice.null[0], session.choice.difference[0], 1e-6 * np.abs(outcome.clean).max())
    if job.ablation is None and most <= floor and not _has_no_scale(job):
        warnings.warn(
            f"the corruption changes the logit difference of no case by more than {most:.1g}, which is "
            "rounding: clean and noised runs are the same, and there is nothing to rescue",
            NoEffectWarning,
            stacklevel=5,
        )


def _run(
    runner: Runner, cases: CaseSet, folder: RunFolder[Outcome] | None, progress: Progress, what: str
) -> Outcome:
    def watched(done: Collection[int], tell: Callable[[int], None]) -> Iterator[tuple[list[Case], Outcome]]:
        engine = runner.choice.engine.name
        for batch, outcome in runner.run(done, tell):
            if runner.choice.engine.name != engine:
                _say_it_changed(runner.choice, folder, bool(done))
                engine = runner.choice.engine.name
            yield batch, outcome

    return Outcome.stack(run_batches(watched, cases, folder, progress, what))


def _say_it_changed(choice: EngineChoice, folder: RunFolder[Outcome] | None, resumed: bool) -> None:
    """Warn that the reference engine takes over; EngineError where a resumed run would be of two engines."""
    if folder is not None and resumed:
        raise EngineError(
            f"{choice.reason}; the cases that {folder.path} holds were traced by the tree engine and "
            "can't be trusted with this model: give another folder"
        )
    if folder is not None:
        folder.amend(engine=choice.engine.name)
    warnings.warn(f"{choice.reason}; the reference engine traces it", EngineWarning, stacklevel=8)


def _without_failed(
    cases: CaseSet, outcome: Outcome, choice: EngineChoice, attention: str, job: Job
) -> Session:
    """Set aside the cases with a logit that is NaN or infinite, and say which."""
    finite = outcome.finite()
    failed = pd.DataFrame(
        {
            "case_id": [case.case_id for case, good in zip(cases, finite, strict=True) if not good],
            "clean": outcome.clean[~finite],
            "noised": outcome.noised[~finite].mean(axis=1),
            "reason": "non-finite logits",
        }
    )
    say_failed(failed.case_id.tolist(), len(cases))
    kept = cases if finite.all() else CaseSet([c for c, good in zip(cases, finite, strict=True) if good])
    found = outcome.select(np.flatnonzero(finite))
    return Session(kept, found, choice, attention, job, failed, ranks=here().size)


def say_failed(case_ids: Sequence[int], total: int) -> None:
    """Warn of cases with a logit that is NaN or infinite. NonFiniteError where all of them have one."""
    if len(case_ids) == total:
        raise NonFiniteError(
            f"all {total} cases gave NaN or infinite logits; try another dtype (bfloat16 or float32 "
            "where float16 overflows), and check that the checkpoint loaded whole"
        )
    if case_ids:
        warnings.warn(
            f"{len(case_ids)} of {total} cases gave NaN or infinite logits and are left out of every "
            f"figure; they are listed in .failed: case ids {list(case_ids)[:20]}",
            NonFiniteWarning,
            stacklevel=6,
        )
