"""From a user's call to finished cases: checks, engine, batches, run folder, progress."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.effects import rescue
from moetrace.engines.engine_choice import EngineChoice, EngineName, choose_engine, confirmed
from moetrace.engines.job import (
    Job,
    Outcome,
    Patch,
    Position,
    Sweep,
    make_job,
)
from moetrace.errors import EngineError, EngineWarning, NoEffectWarning, NonFiniteError, NonFiniteWarning
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import ReadoutKind
from moetrace.models.state import prepared
from moetrace.noise import Noise, check_seeds
from moetrace.progress import Progress, progress_bar
from moetrace.trace.budget import resolve_budget
from moetrace.trace.memory import check_memory
from moetrace.trace.run_folder import RunFolder

if TYPE_CHECKING:
    from moetrace.cases import Case


@dataclass(frozen=True)
class Session:
    """What a trace found: one row of each array for each case, in the order given, and how it was found."""

    cases: CaseSet
    outcome: Outcome
    choice: EngineChoice
    attention: str
    job: Job
    failed: pd.DataFrame

    def only(self, columns: Sequence[int]) -> Session:
        """The same session with some of its patches, in this order."""
        outcome = replace(self.outcome, patched=self.outcome.patched[:, list(columns)])
        return replace(self, outcome=outcome)


def case_table(session: Session, null: int = -1) -> pd.DataFrame:
    """One row for each case: ids, logit differences averaged over draws, rescue of the null patch."""
    outcome = session.outcome
    drift = rescue(outcome.patched[:, null], outcome.noised)
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
    noise: Noise,
    position: Position,
    metric: str,
    engine: EngineName,
    batch_tokens: int | str,
    progress: Progress,
    out: Path | None,
    final_subject: Literal["refuse", "keep"],
    readout: ReadoutKind,
    sweeps: Sequence[Sweep] = (),
    what: str = "trace",
    details: dict[str, Any] | None = None,
    direct: bool = True,
) -> Session:
    """Run ``patches`` on every case, with checked options. Errors: see :func:`moetrace.trace_layers`.

    ``direct``: measure direct effects, too.
    """
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, final_subject, anatomy.positions)
    check_seeds(noise, case_set)
    budget = resolve_budget(batch_tokens, anatomy)
    with prepared(anatomy.model):
        job = make_job(anatomy, patches, noise, position, sweeps, readout)
        _warn_of_nothing(job, case_set, [job.patch_position(case) for case in case_set])
        choice = choose_engine(job, case_set, engine, budget, direct)
        job = choice.engine.job
        check_memory(choice.engine, case_set, budget)
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))  # prepared() may have changed it
        folder = None
        if out is not None:
            how = {"engine": choice.engine.name, "attention": attention}
            folder = RunFolder.open(out, what, job, case_set, details, how)
        outcome, choice = _run(choice, case_set, folder, progress, what)
    return _without_failed(case_set, outcome, choice, attention, job)


def _warn_of_nothing(job: Job, cases: CaseSet, positions: Sequence[int]) -> None:
    """Say where what is asked for can't have an effect; ``positions``: the patched token of each case."""
    places = list(zip(cases, positions, strict=True))
    if job.noise_std == 0:
        warnings.warn(
            "the embedding is zero everywhere, and so is the noise, whose scale is its standard deviation: "
            "clean and noised runs are the same",
            NoEffectWarning,
            stacklevel=4,
        )
    before = [case.case_id for case, at in places if at < case.subject[0]]
    if before:
        warnings.warn(
            f"position {job.position!r} lies before the subject in {len(before)} of {len(cases)} cases: "
            f"clean and noised runs are the same and every rescue is 0: case ids {before[:20]}",
            NoEffectWarning,
            stacklevel=4,
        )
    last = len(job.anatomy.layers) - 1
    early = [case.case_id for case, at in places if at < len(case.input_ids) - 1]
    if early and last in job.block_layers:
        warnings.warn(
            f"layer {last} is the last: what is patched there at position {job.position!r} doesn't reach the "
            f"final token of {len(early)} of {len(cases)} cases, and its rescue is 0: case ids {early[:20]}",
            NoEffectWarning,
            stacklevel=4,
        )


def _run(
    choice: EngineChoice, cases: CaseSet, folder: RunFolder | None, progress: Progress, what: str
) -> tuple[Outcome, EngineChoice]:
    done: dict[int, Outcome] = folder.finished() if folder is not None else {}
    resumed = bool(done)
    with progress_bar(len(cases), what, progress) as bar:
        if resumed:
            bar.update(len(done))

        def finish(batch: Sequence[Case], outcome: Outcome) -> None:
            parts = {case.case_id: outcome.case(index) for index, case in enumerate(batch)}
            if folder is not None:
                folder.append(parts)
            done.update(parts)
            bar.update(len(batch))

        # Cut before what is done is left out: a batch has the same cases, and so the same last bits, whether
        # or not a run was interrupted before it.
        cut = [[cases[index] for index in batch] for batch in choice.engine.batches(cases)]
        batches = [own for batch in cut if (own := [case for case in batch if case.case_id not in done])]
        if batches:
            # Nothing is kept before the engine is confirmed on one of the trace's own cases.
            outcome = choice.engine.run(batches[0])
            shortest = min(range(len(batches[0])), key=lambda index: len(batches[0][index].input_ids))
            found = confirmed(choice, batches[0][shortest], outcome.case(shortest))
            if found.engine.name == choice.engine.name:
                finish(batches[0], outcome)
                batches = batches[1:]
            else:
                _say_it_changed(found, folder, resumed)
                batches = [[case] for batch in batches for case in batch]
            choice = found
        for batch in batches:
            finish(batch, choice.engine.run(batch))
    return Outcome.stack([done[case.case_id] for case in cases]), choice


def _say_it_changed(choice: EngineChoice, folder: RunFolder | None, resumed: bool) -> None:
    """Warn that the reference engine takes over; EngineError where a resumed run would be of two engines."""
    if folder is not None and resumed:
        raise EngineError(
            f"{choice.reason}; the cases that {folder.path} holds were traced by the tree engine and "
            "can't be trusted with this model: give another folder"
        )
    if folder is not None:
        folder.amend(engine=choice.engine.name)
    warnings.warn(f"{choice.reason}; the reference engine traces it", EngineWarning, stacklevel=5)


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
    if not finite.any():
        raise NonFiniteError(
            f"all {len(cases)} cases gave NaN or infinite logits; try another dtype (bfloat16 or float32 "
            "where float16 overflows), and check that the checkpoint loaded whole"
        )
    if len(failed):
        warnings.warn(
            f"{len(failed)} of {len(cases)} cases gave NaN or infinite logits and are left out of every "
            f"figure; they are listed in .failed: case ids {failed.case_id.tolist()[:20]}",
            NonFiniteWarning,
            stacklevel=4,
        )
    kept = cases if finite.all() else CaseSet([c for c, good in zip(cases, finite, strict=True) if good])
    return Session(kept, outcome.select(np.flatnonzero(finite)), choice, attention, job, failed)
