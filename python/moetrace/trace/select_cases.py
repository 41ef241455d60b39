"""The paper's scan: in record order, keep what the model knows and what noise disturbs."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
import torch

from moetrace import effects
from moetrace.arguments import as_choice, as_count, as_number, as_seed
from moetrace.cases import Case, CaseSet, as_case_set, validate_cases
from moetrace.corruptions import CorruptionLike, NoiseLike, SwapSubject, as_corruption
from moetrace.engines.engine_choice import ENGINES
from moetrace.engines.job import make_job
from moetrace.engines.outcome import Outcome
from moetrace.engines.runner import make_runner
from moetrace.engines.teacher_forcing import forcing_of
from moetrace.errors import MoetraceWarning, NoCasesError, NonFiniteWarning
from moetrace.metrics import LOGIT_DIFF, check_foils
from moetrace.models.anatomy import find_anatomy
from moetrace.models.float32 import ComputeDtype, computing_in
from moetrace.models.state import prepared
from moetrace.progress import Progress, progress_bar
from moetrace.ranks import here, on_all_ranks
from moetrace.trace.budget import resolve_budget
from moetrace.trace.memory import check_memory
from moetrace.trace.options import as_batch_tokens, as_compute_dtype, as_progress
from moetrace.trace.run_folder import call_facts
from moetrace.weights import source_of

FIRST_BATCH = 32
LARGEST_BATCH = 1024
YIELD = 0.4  # usable cases among those scanned, where a first batch is to be the only one

# Reasons to drop a case, in the order of the filters, and the names of the counts left after them.
FILTERS = {"non_finite": "finite", "clean_margin": "clean_margin", "noise_drop": "noise_drop"}


class FewCasesWarning(MoetraceWarning):
    """Fewer cases than asked for are usable; those there are were returned."""


@on_all_ranks
def select_cases(
    model: Any,
    cases: Sequence[Case],
    n: int = 256,
    margin: float = 1.0,
    drop: float = 0.5,
    seed: int | None = 0,
    noise: NoiseLike = None,
    batch_tokens: int | Literal["auto"] = "auto",
    engine: str = "auto",
    progress: Progress = None,
    compute_dtype: ComputeDtype | None = None,
    corruption: CorruptionLike = None,
    *,
    _score: Callable[..., pd.DataFrame] | None = None,
) -> CaseSet:
    """The first ``n`` usable cases in record order (Table 2, "Record order" and "Filtering").

    >>> usable = select_cases(model, cases, n=256)
    >>> usable.funnel
    {'records': 21919, ..., 'scanned': 390, 'finite': 381, 'clean_margin': 300, 'noise_drop': 256}

    A case is usable if its clean logit difference (equation 1) is at least ``margin`` and noise on its
    subject lowers it by at least ``drop`` (equation 3), both in logits. Cases are scored in growing
    batches, but the result is what a scan one by one would give, and it stops at the n-th usable case:
    later cases are neither returned nor counted.

    Args:
        model: What the cases are scored with.
        cases: A CaseSet of :func:`make_cases`, which knows the record order, or any sequence of cases.
        n: How many usable cases to collect.
        margin: Least clean logit difference.
        drop: Least clean minus noised logit difference.
        seed: Shuffles all records, before any filter, as the paper did; None keeps the given order.
        noise: The subject noise, or its scale; the paper's where None.
        batch_tokens: Tokens of one forward.
        engine: ``"auto"``, ``"tree"`` or ``"reference"``.
        progress: None for a bar in a terminal or notebook, True, False, or a function ``(done, total)`` of
            the usable cases found.
        compute_dtype: None for the model's own, or ``"float32"``, from half-precision weights.
        corruption: In place of noise: see :func:`moetrace.trace_layers`. With ``mt.SwapSubject(cases)`` a
            case without a partner is dropped first, as ``no_swap_partner``.

    Returns:
        The usable cases in the order of the scan. The funnel goes on from the given one with ``scanned``,
        the *records* passed up to the n-th usable case (section 4.2; all, where fewer are usable), those
        without a case here included; ``finite``, those of them that have a case, with finite logits;
        ``clean_margin`` and ``noise_drop``. ``.dropped`` goes on with ``non_finite``, ``clean_margin`` and
        ``noise_drop``.

    Raises:
        NoCasesError: ``cases`` is empty.
        ArgumentError: ``n`` is below 1, or a threshold isn't finite.

    Warns:
        FewCasesWarning: Fewer than ``n`` are usable.
        NonFiniteWarning: Cases that gave NaN or infinite logits were dropped.
    """
    n = as_count(n, "n")
    margin, drop = as_number(margin, "margin"), as_number(drop, "drop")
    seed = None if seed is None else as_seed(seed)
    progress = as_progress(progress)
    source = as_case_set(cases)
    if isinstance(corruption, SwapSubject):
        source = corruption.usable(source)
    if not source:
        raise NoCasesError(
            f"there are no cases to select from ({source!r}); look at .dropped for the reasons"
        )
    options: dict[str, Any] = {
        "noise": noise, "batch_tokens": batch_tokens, "engine": engine,
        "compute_dtype": as_compute_dtype(compute_dtype), "corruption": corruption,
    }  # fmt: skip
    score = _score or score_cases
    verdicts: list[tuple[int, str | None]] = []
    streamed = isinstance(model, torch.nn.Module) and source_of(model) is not None
    found, size = 0, first_size(n, streamed)
    order = source.record_order(seed)
    ranks = here()
    ranks.agree("selection", lambda: {"n": n, "margin": margin, "drop": drop, "seed": seed})
    with progress_bar(n, "usable cases", progress if ranks.first else False) as bar:
        while len(verdicts) < len(order) and found < n:
            batch = source.take(order[len(verdicts) : len(verdicts) + size])
            scores = score(model, batch, **options)
            judged = _up_to(_judge(batch, scores, margin, drop), n - found)
            verdicts += zip(order[len(verdicts) :], judged, strict=False)
            found += judged.count(None)
            bar.update(judged.count(None))
            size = next_size(size, len(verdicts), found, n)
    return _collect(source, verdicts, n, seed)


@on_all_ranks
def score_cases(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    noise: NoiseLike = None,
    batch_tokens: int | str = "auto",
    engine: str = "auto",
    compute_dtype: ComputeDtype | None = None,
    corruption: CorruptionLike = None,
) -> pd.DataFrame:
    """Logit differences (equation 1) of the clean and the noised run (equation 3 is their difference).

    >>> score_cases(model, cases).query("clean >= 1.0 and clean - noised >= 0.5")

    Columns case_id, clean, noised (averaged over the noise's draws), in the order given; a case whose logits
    are NaN or infinite has NaN.
    """
    case_set = as_case_set(cases)
    anatomy = find_anatomy(model)
    validate_cases(case_set, anatomy.vocab_size, "keep", anatomy.positions)
    check_foils((LOGIT_DIFF,), case_set)
    chosen, engine = as_corruption(noise, corruption), as_choice(engine, "engine", ENGINES)
    batch_tokens, compute_dtype = as_batch_tokens(batch_tokens), as_compute_dtype(compute_dtype)
    found: dict[int, Outcome] = {}
    ranks = here()
    with prepared(anatomy.model), computing_in(anatomy, compute_dtype):
        budget = resolve_budget(batch_tokens, anatomy)
        job = make_job(anatomy, (), chosen)
        job.corruptor.corruption.check(case_set)
        asked = {"engine": engine, "batch_tokens": budget, "compute_dtype": compute_dtype}
        ranks.agree("scores", lambda: {**call_facts("scores", job, case_set, None), **asked})
        forcing = forcing_of(job, case_set)
        run_job, run_set = (job, case_set) if forcing is None else (forcing.job, forcing.sequences)
        runner = make_runner(run_job, run_set, engine, budget)
        check_memory(runner.choice.engine, run_set, budget)
        for batch, outcome in runner.run((), lambda _: ranks.look()):
            found |= {case.case_id: outcome.case(index) for index, case in enumerate(batch)}
        found = ranks.joined("scores", found)
    outcome = Outcome.stack([found[case.case_id] for case in run_set])
    scores = outcome if forcing is None else forcing.outcome(outcome)
    ids = [case.case_id for case in case_set]
    table = pd.DataFrame({"case_id": ids, "clean": scores.clean, "noised": scores.noised.mean(axis=1)})
    values = table[["clean", "noised"]]
    table[["clean", "noised"]] = values.where(values.abs().lt(float("inf")).all(axis=1), axis=0)
    return table


def first_size(n: int, streamed: bool) -> int:
    """Cases of the first batch: where every batch reads all layers anew, as many as a selection needs."""
    return min(LARGEST_BATCH, math.ceil(n / YIELD)) if streamed else min(n, FIRST_BATCH)


def next_size(size: int, scanned: int, found: int, n: int) -> int:
    """A batch just large enough, by the yield so far, to find what is still wanted."""
    wanted = math.ceil((n - found) * scanned / max(found, 1))
    return max(1, min(wanted, 4 * size, LARGEST_BATCH))


def _up_to(reasons: list[str | None], wanted: int) -> list[str | None]:
    """The verdicts up to the last usable case that is wanted: what a scan one by one would have seen."""
    places = [place for place, reason in enumerate(reasons) if reason is None]
    return reasons[: places[wanted - 1] + 1] if len(places) >= wanted else reasons


def _judge(batch: CaseSet, scores: pd.DataFrame, margin: float, drop: float) -> list[str | None]:
    """For each case of a batch the filter that it falls at, None if it is usable."""
    rows = scores.set_index("case_id").loc[[case.case_id for case in batch], ["clean", "noised"]]
    taken = effects.drop(rows.clean.to_numpy(), rows.noised.to_numpy())
    return [_reason(clean, own, margin, drop) for clean, own in zip(rows.clean, taken, strict=True)]


def _reason(clean: float, taken: float, margin: float, drop: float) -> str | None:
    if not (math.isfinite(clean) and math.isfinite(taken)):
        return "non_finite"
    if clean < margin:
        return "clean_margin"
    return "noise_drop" if taken < drop else None


def _collect(source: CaseSet, verdicts: list[tuple[int, str | None]], n: int, seed: int | None) -> CaseSet:
    usable = [position for position, reason in verdicts if reason is None]
    fallen = Counter(reason for _, reason in verdicts if reason is not None)
    scanned = source.record_ranks(seed)[verdicts[-1][0]] + 1 if len(usable) == n else source.n_records
    funnel = source.funnel | {"scanned": scanned}
    left = len(verdicts)
    for reason, name in FILTERS.items():
        left -= fallen[reason]
        funnel[name] = left
    result = source.take(usable, funnel=funnel, dropped=source.dropped + fallen)
    if fallen["non_finite"]:
        ids = [source[position].case_id for position, reason in verdicts if reason == "non_finite"]
        warnings.warn(
            f"{len(ids)} of {len(verdicts)} scanned cases gave NaN or infinite logits and were dropped:"
            f" case ids {', '.join(map(str, ids[:10]))}{', …' if len(ids) > 10 else ''}",
            NonFiniteWarning,
            stacklevel=4,
        )
    if len(usable) < n:
        steps = ", ".join(f"{name} {left}" for name, left in funnel.items())
        warnings.warn(
            f"only {len(usable)} of the {n} cases asked for are usable ({steps}); go on with these, give more"
            " records, or lower margin and drop",
            FewCasesWarning,
            stacklevel=4,
        )
    return result
