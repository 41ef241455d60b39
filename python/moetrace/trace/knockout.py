"""Knock-out: every expert switched off in the clean run, and what the model loses without it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_choice, as_list, as_seed, is_integer
from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.corruptions import SubjectNoise
from moetrace.effects import SHARES
from moetrace.engines.clean_contributions import ByLayer, What, capture, tokens_at
from moetrace.engines.job import Job, Origin, Patch, Sweep, make_job
from moetrace.engines.knockout import KINDS, Ablation, Kind, donors_of
from moetrace.engines.switches import Off, switch_off
from moetrace.errors import ArgumentError, EngineError, NoCasesError
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.models.float32 import computing_in
from moetrace.models.stacked import is_stacked
from moetrace.models.state import prepared
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_arrays import Bools
from moetrace.results.expert_name import Expert, ExpertLike
from moetrace.results.knockout import KnockoutTrace, Runner
from moetrace.results.knockout_curves import CurveRuns, KnockoutCurves
from moetrace.trace.experts import expert_layers_of
from moetrace.trace.matched import check_expert
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import model_facts, provenance, versions
from moetrace.trace.session import Session, case_table, keep, say_failed, trace

if TYPE_CHECKING:
    from moetrace.cases import Case

NO_NOISE = SubjectNoise(0.0)  # the clean run alone is asked for
_WITHOUT = ("noise", "mode", "final_subject")


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
    anatomy = find_anatomy(model)
    wanted = wanted_of(anatomy, experts, layers)
    asked = Asked(as_choice(ablation, "ablation", KINDS), everywhere, as_seed(seed))
    case_set = as_case_set(cases)
    others = case_set if reference is None else as_case_set(reference)
    if not len(others):
        raise NoCasesError(
            "the reference set holds no cases; give some, or reference=None for the traced ones"
        )
    call = Call(case_set, others, wanted, asked, common)
    plain = everywhere or any(is_stacked(anatomy.experts(layer)) for layer in wanted.layers)
    found = _by_plain_forwards(anatomy, call) if plain else _in_one_pass(anatomy, call)
    keep(found, common["out"])
    return found


@dataclass(frozen=True)
class Wanted:
    """Which experts: all of ``layers``, or those of ``named``."""

    layers: tuple[int, ...]
    named: tuple[Expert, ...] = ()

    def sites(self, anatomy: Anatomy) -> list[tuple[int, int]]:
        """Layer and expert of each column."""
        if self.named:
            return [(one.layer, one.expert) for one in self.named]
        return [(layer, e) for layer in self.layers for e in range(expert_count(anatomy, layer))]


@dataclass(frozen=True)
class Asked:
    """How they are switched off."""

    kind: Kind
    everywhere: bool
    seed: int


@dataclass(frozen=True)
class Call:
    """One knock-out, but for its model. ``common``: checked options."""

    cases: CaseSet
    reference: CaseSet
    wanted: Wanted
    asked: Asked
    common: Mapping[str, Any]


def wanted_of(anatomy: Anatomy, experts: Any, layers: Any) -> Wanted:
    """The experts that a user names. Errors: see :func:`trace_knockout`."""
    if experts is None:
        return Wanted(expert_layers_of(anatomy, layers))
    expert_layers_of(anatomy, layers)  # a dense model, or a layer without experts, is refused
    single = isinstance(experts, (Expert, str)) or (
        isinstance(experts, tuple) and len(experts) == 2 and all(map(is_integer, experts))
    )
    listed: list[Any] = (
        [experts] if single else as_list(experts, "experts", "a list of experts, or None for all")
    )
    if not listed:
        raise ArgumentError("experts is empty; expected at least one expert, or None for all")
    if all(map(is_integer, listed)):
        if not is_integer(layers):
            raise ArgumentError(
                f"experts are numbers ({listed[:5]}) and layers isn't one layer; give layers=, or names such "
                "as 'L44E069'"
            )
        listed = [(int(layers), number) for number in listed]
    elif layers is not None:
        raise ArgumentError("both experts by name and layers are given; expected one of them")
    named = tuple(sorted(check_expert(anatomy, one) for one in listed))
    twice = sorted({str(one) for one in named if named.count(one) > 1})
    if twice:
        raise ArgumentError(f"experts repeats {', '.join(twice)}; expected each once")
    return Wanted(tuple(sorted({one.layer for one in named})), named)


def ablation_of(job: Job, call: Call, layers: Sequence[int]) -> Ablation:
    """The ablation with what it needs of the clean runs. The model must be prepared."""
    asked = call.asked
    own: Mapping[int, ByLayer] = {}
    others: Mapping[int, ByLayer] = {}
    if asked.kind in ("mean", "resample"):
        others = capture(job, call.reference, layers, asked.everywhere)
    if asked.everywhere or asked.kind != "zero" or any(is_stacked(job.anatomy.experts(x)) for x in layers):
        known = others if call.cases is call.reference else {}
        what: list[What] = ["rerouted"] if asked.kind == "reroute" and not asked.everywhere else []
        own = known or capture(job, call.cases, layers, asked.everywhere, what)
    found = Ablation(asked.kind, _tokens_of(job, asked), asked.everywhere, asked.seed, own, others)
    found.refuse_undefined(call.cases, set(call.wanted.sites(job.anatomy)))
    return found


def _tokens_of(job: Job, asked: Asked) -> Callable[[Case], Sequence[int]]:
    return lambda case: tokens_at(job, case, asked.everywhere)


def _in_one_pass(anatomy: Anatomy, call: Call) -> KnockoutTrace:
    """At one token: forks of the clean run."""
    wanted, common = call.wanted, call.common
    validate_cases(call.cases, anatomy.vocab_size, "keep", anatomy.positions)
    validate_cases(call.reference, anatomy.vocab_size, "keep", anatomy.positions)
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        job = _job(anatomy, call)
        ablation = ablation_of(job, call, wanted.layers)
    sites = wanted.sites(anatomy)
    patches = [
        Patch.of_experts(one.layer, _core.Chosen.EXPERTS, experts=[one.expert], origin=Origin.NOISE)
        for one in wanted.named
    ]
    top_k = top_k_of(anatomy.config)
    sweeps = [Sweep(layer, top_k, origin=Origin.NOISE) for layer in wanted.layers] if not wanted.named else []
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
        **common,
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
        job = _job(anatomy, call)
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
            runs.append(Off(call.cases[index], _masks(anatomy, [sites[place]])))
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


def _job(anatomy: Anatomy, call: Call) -> Job:
    common = call.common
    return make_job(anatomy, (), NO_NOISE, common["position"], (), common["readout"])


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
        "position": call.common["position"],
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


def _masks(anatomy: Anatomy, sites: Sequence[tuple[int, int]]) -> dict[int, np.ndarray]:
    """By layer bool (experts,)."""
    found: dict[int, np.ndarray] = {}
    for layer, expert in sites:
        if layer not in found:
            found[layer] = np.zeros(expert_count(anatomy, layer), np.bool_)
        found[layer][expert] = True
    return found


def runner_of(anatomy: Anatomy, call: Call) -> Runner:
    """Runs sets of the call's experts switched off together; it doesn't keep the model alive."""
    model = weakref.ref(anatomy.model)

    def run(sets: Bools, case_ids: Sequence[int], kind: Kind | None = None) -> CurveRuns:
        there = model()
        if there is None:
            raise ArgumentError(
                "the model that was traced is gone; use mt.knockout_curves(trace, model, cases, n)"
            )
        by_id = {case.case_id: case for case in call.cases}
        own = call if kind is None else replace(call, asked=replace(call.asked, kind=kind))
        return _run_sets(find_anatomy(there), own, sets, [by_id[case_id] for case_id in case_ids])

    return run


def _run_sets(anatomy: Anatomy, call: Call, sets: Bools, cases: Sequence[Case]) -> CurveRuns:
    sites = call.wanted.sites(anatomy)
    if call.asked.kind == "reroute":
        _refuse_too_few(anatomy, sites, sets)
    with prepared(anatomy.model), computing_in(anatomy, call.common["compute_dtype"]):
        job = _job(anatomy, call)
        others: Mapping[int, ByLayer] = {}
        if call.asked.kind in ("mean", "resample"):
            others = capture(job, call.reference, call.wanted.layers, call.asked.everywhere)
        tokens, asked = _tokens_of(job, call.asked), call.asked
        ablation = Ablation(asked.kind, tokens, asked.everywhere, asked.seed, {}, others)
        job = replace(job, ablation=ablation)
        masks = [_masks(anatomy, [site for site, off in zip(sites, own, strict=True) if off]) for own in sets]
        found = switch_off(job, [Off(case, own) for own in masks for case in cases])
    shape = (len(sets), len(cases))
    first = found.top.reshape(shape) == np.array([case.true_id for case in cases])
    return CurveRuns(found.differences.reshape(shape), first)


def _refuse_too_few(anatomy: Anatomy, sites: Sequence[tuple[int, int]], sets: Bools) -> None:
    """ArgumentError where a router is left with fewer experts than it takes."""
    layers = np.array([layer for layer, _ in sites])
    for layer in np.unique(layers).tolist():
        off = int(sets[:, layers == layer].sum(axis=1).max(initial=0))
        left, top_k = expert_count(anatomy, layer) - off, top_k_of(anatomy.config)
        if left < top_k:
            raise ArgumentError(
                f"with ablation 'reroute' {off} experts of layer {layer} would be off together, and its "
                f"router, which takes {top_k}, could choose among {left}; give a smaller n, or trace with "
                "ablation='zero'"
            )


def knockout_curves(
    trace: KnockoutTrace,
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    n: int = 8,
    *,
    by: str = "effect",
    draws: int = 3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    reference: Sequence[Case] | CaseSet | None = None,
) -> KnockoutCurves:
    """:meth:`KnockoutTrace.greedy` of a trace that doesn't know its model: it was loaded, or joined.

    >>> mt.knockout_curves(mt.load("runs/knockout"), model, cases, n=8).plot()

    ``cases``: at least those of the trace. ``reference``: as in trace_knockout. The other arguments are those
    of :meth:`KnockoutTrace.greedy`. Errors: ArgumentError where the model or a case isn't that of the trace.
    """
    if not isinstance(trace, KnockoutTrace):
        raise ArgumentError(f"trace is a {type(trace).__name__}; expected what trace_knockout gives")
    anatomy = find_anatomy(model)
    told, facts = trace.provenance, model_facts(anatomy.model)
    if facts["weights"] != told["model"]["weights"]:
        raise ArgumentError("the model isn't the one that was traced: its weights are others; give that one")
    case_set = as_case_set(cases)
    known = {case.case_id for case in case_set}
    missing = [own for own in trace.cases.case_id.tolist() if own not in known]
    if missing:
        raise ArgumentError(f"cases lacks {len(missing)} of the trace: ids {missing[:20]}; give all of them")
    others = case_set if reference is None else as_case_set(reference)
    if told["reference"] is not None and told["reference"] != others.fingerprint():
        raise ArgumentError(
            "the reference set isn't that of the trace; give it as reference=, or the same cases"
        )
    position = "last" if told["everywhere"] else told["position"]
    common = {"position": position, "readout": told["readout"], "compute_dtype": told["compute_dtype"]}
    asked = Asked(told["ablation"], told["everywhere"], told["seed"] or 0)
    call = Call(case_set, others, Wanted(trace.layers, tuple(trace.experts)), asked, common)
    return trace.curves(runner_of(anatomy, call), n, by=by, draws=draws, shares=shares, seed=seed)
