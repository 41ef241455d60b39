"""Clean and noised logit differences of candidates, in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from moetrace.cases import validate_cases
from moetrace.engines.base import make_job
from moetrace.engines.choose import choose_engine
from moetrace.engines.inputs import as_case_set, resolve_budget
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from moetrace.noise import SubjectNoise, check_seeds

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


def score_cases(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    noise: SubjectNoise | None = None,
    batch_tokens: int | str = "auto",
    engine: str = "auto",
) -> pd.DataFrame:
    """Logit differences (equation 1) of the clean and the noised run (equation 3 is their difference).

    >>> score_cases(model, cases).query("clean >= 1.0 and clean - noised >= 0.5")

    Columns case_id, clean, noised (averaged over the noise's draws), in the order given; a case whose logits
    are NaN or infinite has NaN.
    """
    case_set = as_case_set(cases)
    anatomy = find_anatomy(model)
    validate_cases(case_set, anatomy.vocab_size, final_subject="keep")
    noise = noise or SubjectNoise()
    check_seeds(noise, case_set)
    budget = resolve_budget(batch_tokens, anatomy)
    clean = pd.Series(index=range(len(case_set)), dtype="float64")
    noised = clean.copy()
    with prepared(model):
        job = make_job(anatomy, (), noise)
        runner = choose_engine(job, case_set, engine, budget).engine
        for batch in runner.batches(case_set):
            outcome = runner.run([case_set[index] for index in batch])
            clean.iloc[batch] = outcome.clean
            noised.iloc[batch] = outcome.noised.mean(axis=1)
    table = pd.DataFrame({"case_id": [case.case_id for case in case_set], "clean": clean, "noised": noised})
    values = table[["clean", "noised"]]
    table[["clean", "noised"]] = values.where(values.abs().lt(float("inf")).all(axis=1), axis=0)
    return table
