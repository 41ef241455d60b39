"""From a user's call to finished cases: checks, engine, batches, run folder, progress."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from moetrace.cases import CaseSet, as_case_set, validate_cases
from moetrace.effects import rescue
from moetrace.engines.engine_choice import EngineChoice, choose_engine
from moetrace.engines.job import (
    Job,
    Outcome,
    Patch,
    Position,
    Sweep,
    make_job,
)
from moetrace.errors import NonFiniteError, NonFiniteWarning
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import ReadoutKind
from moetrace.models.state import prepared
from moetrace.noise import Noise, check_seeds
from moetrace.progress import Progress, progress_bar
from moetrace.trace.budget import resolve_budget
from moetrace.trace.run_folder import RunFolder

if TYPE_CHECKING:
    from moetrace.cases import Case


@dataclass(frozen=True)
class Session:
    """What a trace found: one row of each array for each case, in the order given, and how it was found."""

    cases: CaseSet
    outcome: Outcome
    choice: EngineChoice
    job: Job
    failed: pd.DataFrame


def case_table(session: Session, null: int = -1) -> pd.DataFrame:
    """One row for each case: ids, logit differences averaged over draws, rescue of the null patch."""
    outcome = session.outcome
    drift = rescue(outcome.patched[:, null], outcome.noised)
    return pd.DataFrame(
        {
            "case_id": [case.case_id for case in session.cases],
            "relation_id": [case.relation_id for case in session.cases],
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
    engine: str,
    batch_tokens: int | str,
    progress: Progress,
    out: Path | None,
    final_subject: Literal["refuse", "keep"],
    readout: ReadoutKind,
    sweeps: Sequence[Sweep] = (),
    what: str = "trace",
    details: dict[str, Any] | None = None,
) -> Session:
    """Run ``patches`` on every case, with checked options. Errors: see :func:`moetrace.trace_layers`."""
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, final_subject=final_subject)
    check_seeds(noise, case_set)
    budget = resolve_budget(batch_tokens, anatomy)
    with prepared(model):
        job = make_job(anatomy, patches, noise, position, sweeps, readout)
        for case in case_set:
            job.patch_position(case)
        choice = choose_engine(job, case_set, engine, budget)
        folder = RunFolder.open(out, what, job, case_set, details) if out is not None else None
        outcome = _run(choice, case_set, folder, progress, what)
    return _without_failed(case_set, outcome, choice, job)


def _run(
    choice: EngineChoice, cases: CaseSet, folder: RunFolder | None, progress: Progress, what: str
) -> Outcome:
    done: dict[int, Outcome] = folder.finished() if folder is not None else {}
    todo = [index for index, case in enumerate(cases) if case.case_id not in done]
    remaining = [cases[index] for index in todo]
    with progress_bar(len(cases), what, progress) as bar:
        if done:
            bar.update(len(done))
        for batch in choice.engine.batches(remaining):
            chosen = [remaining[index] for index in batch]
            outcome = choice.engine.run(chosen)
            parts = {case.case_id: outcome.case(index) for index, case in enumerate(chosen)}
            if folder is not None:
                folder.append(parts)
            done.update(parts)
            bar.update(len(chosen))
    return Outcome.stack([done[case.case_id] for case in cases])


def _without_failed(cases: CaseSet, outcome: Outcome, choice: EngineChoice, job: Job) -> Session:
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
    return Session(kept, outcome.select(np.flatnonzero(finite)), choice, job, failed)
