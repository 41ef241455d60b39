"""Knock-out: every expert switched off in the clean run, and what the model loses without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_choice, as_seed, shown
from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.engines.job import Job, Origin, Patch
from moetrace.engines.knockout import KINDS, Ablation, Kind, donors_of
from moetrace.engines.switches import Off, switch_off
from moetrace.errors import ArgumentError, EngineError, NoCasesError
from moetrace.metrics import LOGIT_DIFF
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.float32 import computing_in
from moetrace.models.stacked import is_stacked
from moetrace.models.state import prepared
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_name import ExpertLike
from moetrace.results.knockout import KnockoutTrace
from moetrace.trace.experts import expert_sweeps
from moetrace.trace.knockout_call import (
    NO_NOISE,
    Asked,
    Call,
    ablation_of,
    job_of,
    masks_of,
    place_of,
    wanted_of,
)
from moetrace.trace.knockout_curves import runner_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import model_facts, provenance, versions
from moetrace.trace.session import Session, case_table, keep, say_failed, trace

if TYPE_CHECKING:
    from moetrace.cases import Case

_WITHOUT = ("noise", "corruption", "mode", "final_subject")


@on_all_ranks
@partial(shows_options, without=_WITHOUT)
def trace_knockout(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    experts: ExpertLike | Sequence[ExpertLike] | None = None,
    *,
    layers: int | Sequence[int] | None = None,
    ablation: Kind = "zero",
    reference: Sequence[Case] | CaseSet | None = None,
    seed: int = 0,
    **options: Unpack[TraceOptions],
) -> KnockoutTrace:
    """Switch each routed expert off in the clean run: is it necessary, where a rescue says it is sufficient?

    >>> knock = mt.trace_knockout(model, cases)                    # every expert of every layer, one pass
    >>> knock.important(3), knock.greedy(8).plot()
    >>> mt.trace_knockout(model, cases, ["L44E069"], ablation="mean", position="all")

    ``experts``: some, as Expert, "L44E069" or (44, 69), or numbers where ``layers`` is one layer; None for
    all experts of ``layers``, by default of every layer that has any.
    ``ablation``: what becomes of an expert's contribution c_e (equation 5) at the block's output.

    - "zero": it is taken away; the other experts' weights stay as they are.
    - "mean": its mean over the reference set, over the tokens that are routed to the expert.
    - "resample": that of another case of the reference set, drawn from ``seed`` among those that route to
      the expert (where none does, among all others: it then contributes nothing). ``rows`` name the donor.
    - "reroute": the family's own router chooses with the expert's logit at minus infinity, so that another
      expert takes its place and weights are renormalised as the family does it.

    ``reference``: the cases of the means and donors, by default the traced ones.
    ``position``: "last" and the others of trace_layers switch off at one token; "all" at every token of the
    prompt together, in plain forwards. The reference's contributions are taken at the same token or tokens.
    ``seed``: of the donors. ``options``: the common arguments of :func:`moetrace.trace_layers`; there is no
    noise. An effect is ablated minus clean, below 0 where the recall needs the expert, and exactly 0 in a
    case where the clean run doesn't route to it.

    Errors: as trace_experts; ExpertRangeError for experts that don't exist; ArgumentError for a mean over a
    reference set in which an active expert is never active, and for "resample" with a single case;
    LayoutError for a dense model, and where "reroute" finds no router that it understands.
    """
    given = dict(options)
    everywhere = isinstance(given.get("position"), str) and given["position"] == "all"
    if everywhere:
        given["position"] = "last"
    common = checked(given, trace_knockout) | {"corruption": NO_NOISE, "final_subject": "keep"}
    if common["metric"].metrics != (LOGIT_DIFF,):
        raise ArgumentError(
            f"metric is {shown(given.get('metric'))}; knock-outs are measured by 'logit_diff' alone"
        )
    anatomy = find_anatomy(model)
    wanted = wanted_of(anatomy, experts, layers)
    asked = Asked(as_choice(ablation, "ablation", KINDS), everywhere, as_seed(seed))
    case_set = as_case_set(cases)
    others = case_set if reference is None else as_case_set(reference)
    if not len(others):
        raise NoCasesError(
            "there are no cases; expected one or more"
            if reference is None
            else "the reference set holds no cases; give some, or reference=None for the traced ones"
        )
    call = Call(case_set, others, wanted, asked, common)
    plain = everywhere or any(is_stacked(anatomy.experts(layer)) for layer in wanted.layers)
    found = _by_plain_forwards(anatomy, call) if plain else _in_one_pass(anatomy, call)
    keep(found, common["out"])
    return found


def _in_one_pass(anatomy: Anatomy, call: Call) -> KnockoutTrace:
    """At one token: forks of the clean run."""
    wanted, common = call.wanted, call.common
    validate_cases(call.cases, anatomy.vocab_size, "keep", anatomy.positions)
    validate_cases(call.reference, anatomy.vocab_size, "keep", anatomy.positions)
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        job = job_of(anatomy, call)
        ablation = ablation_of(job, call, wanted.layers)
    sites = wanted.sites(anatomy)
    patches = [
        Patch.of_experts(one.layer, _core.Chosen.EXPERTS, experts=[one.expert], origin=Origin.NOISE)
        for one in wanted.named
    ]
    places = (place_of(call),)
    sweeps = [] if wanted.named else expert_sweeps(anatomy, wanted.layers, places, False, Origin.NOISE)
    session = trace(
        anatomy.model,
        call.cases,
        [*patches, Patch.null(min(wanted.layers), origin=Origin.NOISE)],
        sweeps=sweeps,
        anatomy=anatomy,
        what="knockout",
        details=_details(call),
        direct=False,
        ablation=ablation,
        **{**common, "position": places},
    )
    return _trace_of(session, call, sites, ablation)


def _trace_of(
    session: Session, call: Call, sites: list[tuple[int, int]], ablation: Ablation
) -> KnockoutTrace:
    outcome, routing = session.outcome, session.outcome.routing
    clean = outcome.clean[:, None]
    active = np.stack([routing[layer, 0].clean_active[:, 0, expert] for layer, expert in sites], axis=1)
    if call.wanted.named:
        ablated = outcome.patched[:, :-1, 0]
    else:
        ablated = np.concatenate([routing[layer, 0].patched[:, 0] for layer in call.wanted.layers], axis=1)
    ablated = np.where(active, ablated, clean)
    cases = case_table(session).drop(columns="noised")
    facts = provenance(session, call.wanted.layers) | _facts(call)
    return _result(session.job.anatomy, call, cases, sites, ablated, active, session.failed, facts, ablation)


def _by_plain_forwards(anatomy: Anatomy, call: Call) -> KnockoutTrace:
    """At every token together, or literally in a model whose experts are given scaled tokens."""
    wanted, common = call.wanted, call.common
    if common["engine"] == "tree":
        raise EngineError(f"engine is 'tree'; {_why_plain(call)}: engine='auto' or 'reference'")
    for own in (call.cases, call.reference):
        validate_cases(own, anatomy.vocab_size, "keep", anatomy.positions)
    sites = wanted.sites(anatomy)
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        job = job_of(anatomy, call)
        ablation = ablation_of(job, call, wanted.layers)
        job = replace(job, ablation=ablation)
        active = np.zeros((len(call.cases), len(sites)), np.bool_)
        column = {site: place for place, site in enumerate(sites)}
        for index, case in enumerate(call.cases):
            for layer, own_layer in ablation.own[case.case_id].items():
                for expert in own_layer.routed:
                    if (layer, expert) in column:
                        active[index, column[layer, expert]] = True
        runs = [Off(case, {}) for case in call.cases]
        nothing = {min(wanted.layers): np.zeros(expert_count(anatomy, min(wanted.layers)), np.bool_)}
        runs += [Off(case, nothing) for case in call.cases]
        places = np.argwhere(active)
        for index, place in places.tolist():
            runs.append(Off(call.cases[index], masks_of(anatomy, [sites[place]])))
        found = switch_off(job, runs).differences
    n = len(call.cases)
    clean, null = found[:n], found[n : 2 * n]
    ablated = np.repeat(clean[:, None], len(sites), axis=1)
    ablated[tuple(places.T)] = found[2 * n :]
    good = np.isfinite(ablated).all(axis=1)
    table = pd.DataFrame({**case_columns(call.cases), "clean": clean, "null_rescue": null - clean})
    failed = pd.DataFrame(
        {"case_id": table.case_id[~good], "clean": clean[~good], "reason": "non-finite logits"}
    ).reset_index(drop=True)
    say_failed(failed.case_id.tolist(), n)
    facts = _plain_facts(job, call, table.case_id[good].tolist(), failed.case_id.tolist())
    kept = table[good].reset_index(drop=True)
    return _result(anatomy, call, kept, sites, ablated[good], active[good], failed, facts, ablation)


def _result(
    anatomy: Anatomy,
    call: Call,
    cases: pd.DataFrame,
    sites: list[tuple[int, int]],
    ablated: np.ndarray,
    active: np.ndarray,
    failed: pd.DataFrame,
    facts: dict[str, Any],
    ablation: Ablation,
) -> KnockoutTrace:
    donors = None
    if call.asked.kind == "resample":
        donors = np.where(active, donors_of(ablation, cases.case_id.tolist(), sites), -1)
    effects = ablated - cases.clean.to_numpy()[:, None]
    places = pd.DataFrame(sites, columns=["layer", "expert"])
    runner = runner_of(anatomy, call)
    return KnockoutTrace(cases, places, ablated, effects, failed, facts, active, donors, runner)


def _details(call: Call) -> dict[str, Any]:
    """What tells one knock-out from another, beside its experts."""
    asked = call.asked
    needs = asked.kind in ("mean", "resample")
    return {
        "ablation": asked.kind,
        "everywhere": asked.everywhere,
        "reference": call.reference.fingerprint() if needs else None,
        "seed": asked.seed if asked.kind == "resample" else None,
    }


def _facts(call: Call) -> dict[str, Any]:
    facts = {**_details(call), "mode": "knockout", "noise": None}
    return facts | ({"position": "all"} if call.asked.everywhere else {})


def _plain_facts(job: Job, call: Call, case_ids: list[int], failed: list[int]) -> dict[str, Any]:
    """The provenance of plain forwards."""
    return {
        "model": model_facts(job.anatomy.model),
        "versions": versions(),
        "engine": "reference",
        "engine_reason": _why_plain(call),
        "self_check": 0.0,
        "null_floor": 0.0,
        "compute_dtype": call.common["compute_dtype"],
        "readout": job.readout.asked,
        "readout_by": job.readout.kind,
        "position": job.position,
        "metric": "logit_diff",
        "layers": list(call.wanted.layers),
        "case_ids": case_ids,
        "failed_case_ids": failed,
        **_facts(call),
    }


def _why_plain(call: Call) -> str:
    if call.asked.everywhere:
        return "experts are switched off at every token, in plain forwards"
    return (
        "its experts are given tokens that the router has scaled, so they are switched off in plain forwards"
    )
