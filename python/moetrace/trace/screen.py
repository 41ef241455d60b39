"""Screening by gradient: every routed expert of every layer from two forwards and one backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace.arguments import as_choice, as_count
from moetrace.cases import CaseSet, as_case_set, case_columns, refuse_several_tokens, validate_cases
from moetrace.engines.differentiable import (
    refuse_flat,
    refuse_steps,
    refuse_without_gradients,
    wide_throughout,
)
from moetrace.engines.engine_choice import EngineChoice
from moetrace.engines.gradients import Estimates, GradientScreen
from moetrace.engines.job import Job, make_job
from moetrace.engines.outcome import Outcome, Values
from moetrace.engines.places import places_of, single_place
from moetrace.errors import ArgumentError
from moetrace.metrics import check_foils
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.state import prepared
from moetrace.ranks import here, on_all_ranks
from moetrace.results.screen import RANKS, ScreenTrace, screen_sites
from moetrace.trace.batches import batches_of, run_batches
from moetrace.trace.budget import auto_budget
from moetrace.trace.experts import expert_layers_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.run_folder import RunFolder, call_facts
from moetrace.trace.screen_exact import verified
from moetrace.trace.screen_parts import EstimateForm
from moetrace.trace.session import Session, _without_failed, kept_results

if TYPE_CHECKING:
    from moetrace.cases import Case

_LAYERS = 8  # of whose intermediates a batch keeps as many bytes as a trace's batch, which keeps one layer's


@on_all_ranks
@partial(shows_options, without=("mode",))
def screen_experts(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    layers: int | Sequence[int] | None = None,
    *,
    top: int = 20,
    verify: bool | Literal["all"] = True,
    rank: Literal["mean", "abs"] = "mean",
    **options: Unpack[TraceOptions],
) -> ScreenTrace:
    """Estimate every routed expert's rescue to first order, and patch the best ones exactly.

    >>> screen = mt.screen_experts(model, cases, top=20)
    >>> screen.top(5)                                    # estimate and exact mean rescue
    >>> mt.screen_experts(model, cases, verify="all").recall(20)
    >>> mt.screen_experts(model, cases, position="all")  # every token by itself

    Attribution patching (Nanda 2023; Syed et al. 2023; Kramár et al. 2024): the estimate of an expert is its
    patch vector delta_e (equation 6) times the gradient of the metric, by default the logit difference
    (equation 1), at its block's output in the noised run. Two forwards and one backward give all experts of
    all layers and tokens.

    ``layers``: None for every layer with experts. ``top``: how many of the best experts are verified by
    exact patches (equation 4). ``verify``: True; False for none; "all" for the exact sweep of every expert,
    with which ``.recall(k)`` and ``.correlation()`` say how good the estimates were. ``rank``: what is best:
    the highest "mean" estimate over cases, or "abs", the highest mean magnitude.
    ``position``: one token of each case, or "all": each token by itself, as sites of their own.
    ``metric``: as of trace_layers, but for "rank", which has no gradient; a function must keep to torch and
    give one. Of a list each has a backward, and its own best experts, of its own; they are patched together.
    "kl" takes one more clean forward. The best ones are those that bring a run nearer to the clean one.
    ``compute_dtype="float32"`` needs memory for all layers in float32, which a backward reads again.
    ``options``: the common arguments of :func:`moetrace.trace_layers` but ``mode``; ``engine`` is that of the
    exact patches, whose run folders lie in that of ``out``.

    It is first order: an expert that works together with others, or past a threshold, can have an estimate
    of 0 (``plant("pair")`` has two). Where trace_experts is affordable it is the better tool. It needs memory
    for the intermediates of all layers of a batch; ``batch_tokens`` bounds its token rows. The model's
    weights get no gradients, and their flags are as they were.

    Errors: as trace_experts; ModelError, by name, for weights that gradients can't flow through: streamed,
    offloaded, quantised; MetricError for a metric without a gradient, or whose gradient is zero in all cases.
    """
    asked = options.get("position")
    everywhere = isinstance(asked, str) and asked == "all"
    given = cast(TraceOptions, {**options, "position": "last"}) if everywhere else options
    common = checked(dict(given), screen_experts)
    top = as_count(top, "top")
    verify = as_choice(verify, "verify", (True, False, "all"))
    rank = as_choice(rank, "rank", RANKS)
    refuse_steps(common["metric"])
    anatomy = find_anatomy(model)
    chosen = expert_layers_of(anatomy, layers)
    refuse_without_gradients(anatomy)
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, common["final_subject"], anatomy.positions)
    check_foils(common["metric"].metrics, case_set)
    refuse_several_tokens(case_set, "screen_experts")
    longest = max(len(case.input_ids) for case in case_set)
    sites = screen_sites(
        {str(layer): expert_count(anatomy, layer) for layer in chosen}, longest if everywhere else None
    )
    details = {"layers": list(chosen), "top": top, "verify": verify, "rank": rank}
    session, found = _screened(anatomy, case_set, chosen, everywhere, details, common)
    results = {
        metric.name: _result(session.of_metric(metric), found, place, sites, details)
        for place, metric in enumerate(session.asked.metrics)
    }
    if verify:
        best = None if verify == "all" else top
        metrics = session.asked.metrics
        results = verified(results, metrics, anatomy.model, session.cases, best, common)
    return kept_results(session.asked, results, common["out"])


def _screened(
    anatomy: Anatomy,
    cases: CaseSet,
    layers: Sequence[int],
    everywhere: bool,
    details: dict[str, Any],
    common: dict[str, Any],
) -> tuple[Session, list[Estimates]]:
    """The session of all estimates, and those of its cases."""
    asked, out = common["metric"], common["out"]
    with prepared(anatomy.model), wide_throughout(anatomy, common["compute_dtype"]):
        places = places_of("all", cases) if everywhere else single_place(common["position"], cases)
        job = make_job(anatomy, (), common["corruption"], places, (), common["readout"], asked.metrics)
        job.corruptor.corruption.check(cases)
        rows, ranks = _budget(common["batch_tokens"], anatomy), here()
        facts = {**call_facts("screen", job, cases, details, asked), "batch_tokens": rows, "out": str(out)}
        ranks.agree("screen", lambda: facts)
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))
        screened = [job.metrics.index(metric) for metric in asked.metrics]
        tokens = _every if everywhere else partial(one_token, job)
        worker = GradientScreen(job, layers, screened, tokens, rows)
        folder = None
        if out is not None:
            form = EstimateForm({x: expert_count(anatomy, x) for x in layers}, len(screened), job.draws)
            how = {"attention": attention, "compute_dtype": common["compute_dtype"] or ""}
            folder = ranks.first_then_all(
                "run folder", lambda: RunFolder.open(out, "screen", job, cases, details, how, asked, form)
            )
        found = run_batches(batches_of(worker, cases), cases, folder, common["progress"], "screen")
    for place, metric in enumerate(asked.metrics):
        at = job.metrics.index(metric)
        same = all((one.clean[at][:, None] == one.noised[at]).all() for one in found)
        refuse_flat(metric, same or any(own[place].any() for one in found for own in one.estimates.values()))
    choice = EngineChoice(cast(Any, _Gradient), "two forwards and one backward")
    session = _without_failed(cases, _outcome(found, screened), choice, attention, job)
    session = replace(session, compute_dtype=common["compute_dtype"], whole=session.outcome, asked=asked)
    kept = {case.case_id for case in session.cases}
    return session, [one for case, one in zip(cases, found, strict=True) if case.case_id in kept]


def _budget(batch_tokens: int | str, anatomy: Anatomy) -> int:
    """Token rows of a batch, all of whose layers' intermediates are kept for the backward pass."""
    if not isinstance(batch_tokens, str):
        return batch_tokens
    return max(64, auto_budget(anatomy) * _LAYERS // max(_LAYERS, len(anatomy.layers)))


def _every(case: Case) -> range:
    return range(len(case.input_ids))


def one_token(job: Job, case: Case) -> tuple[int, ...]:
    """Positions of the job's place in a case: one. ArgumentError where it has none or several tokens."""
    (tokens,) = job.tokens_of(case)
    if len(tokens) != 1:
        raise ArgumentError(
            f"position {job.position!r} has {len(tokens)} tokens in case {case.case_id}; expected one token"
        )
    return tokens


def _outcome(found: Sequence[Estimates], screened: Sequence[int]) -> Outcome:
    """As of a trace whose only patch is every estimate together, so that what isn't finite shows."""
    values = []
    for place in range(len(found[0].clean)):
        noised = np.concatenate([one.noised[place] for one in found])
        sums = noised.copy()
        if place in screened:
            own = screened.index(place)
            sums += np.stack(
                [sum(x[own, 0].sum(axis=(1, 2)) for x in one.estimates.values()) for one in found]
            )
        values.append(Values(np.concatenate([one.clean[place] for one in found]), noised, sums[:, None]))
    return Outcome.plain(values)


class _Gradient:
    name = "gradient"


def _result(
    session: Session, found: Sequence[Estimates], place: int, sites: pd.DataFrame, details: dict[str, Any]
) -> ScreenTrace:
    """One metric's estimates. ``place``: of the metric among those that were asked for."""
    layers = details["layers"]
    everywhere = "position" in sites
    tokens = int(sites.position.max()) + 1 if everywhere else None
    each, active = _by_site(found, place, layers, tokens)
    values = {"clean": session.outcome.clean, "noised": session.outcome.noised.mean(axis=1)}
    counts = {str(layer): int(own.shape[-1]) for layer, own in found[0].clean_active.items()}
    return ScreenTrace(
        pd.DataFrame({**case_columns(session.cases), **values, "null_rescue": np.nan}),
        sites,
        each.mean(axis=2),
        active,
        np.full(active.shape, np.nan),
        session.failed,
        {
            **provenance(session, tuple(layers)),
            "experts": counts,
            "tokens": tokens,
            "rank": details["rank"],
            "top": details["top"],
            "verified": [],
        },
    ).with_draws(None if everywhere else each)


def _by_site(
    found: Sequence[Estimates], place: int, layers: Sequence[int], tokens: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (cases, sites, draws) and clean-active (cases, sites), tokens innermost."""
    count, draws = tokens or 1, found[0].noised.shape[-1]
    estimates, active = [], []
    for layer in layers:
        experts = found[0].clean_active[layer].shape[-1]
        own = np.zeros((len(found), experts, count, draws))
        routed = np.zeros((len(found), experts, count), bool)
        for index, case in enumerate(found):
            there = case.clean_active[layer].shape[1]
            routed[index, :, :there] = case.clean_active[layer][0].T
            own[index, :, :there] = case.estimates[layer][place, 0].T
        estimates.append(np.where(routed[..., None], own, 0.0).reshape(len(found), -1, draws))
        active.append(routed.reshape(len(found), -1))
    return np.concatenate(estimates, axis=1), np.concatenate(active, axis=1)
