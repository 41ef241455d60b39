"""Knock-out: every expert switched off in the clean run, and what the model loses without it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_choice, as_seed
from moetrace.cases import CaseSet, as_case_set, validate_cases
from moetrace.engines.job import Origin, Patch
from moetrace.engines.knockout import KINDS, Ablation, Kind
from moetrace.errors import NoCasesError
from moetrace.models.anatomy import Anatomy, find_anatomy
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
    details_of,
    job_of,
    place_of,
    wanted_of,
)
from moetrace.trace.knockout_plain import ELSEWHERE, SCALED, by_plain_forwards
from moetrace.trace.knockout_result import facts_of, result_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

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
    ``position``: one, as of trace_layers, whose tokens are switched off together: "last", "subject" (all its
    tokens), an index, a function of a case that gives one token or several, and so on; "all" is every token
    of the prompt at once (in trace_layers each by itself). Lists are refused. With "reroute" at several
    tokens the routers of all of them choose without the expert; where that changes the weights of tokens
    that don't choose it anyway (no renormalising), the trace is of plain forwards. The reference's
    contributions are taken at the same token or tokens. ``seed``: of the donors. ``options``: the common
    arguments of :func:`moetrace.trace_layers`; there is no noise. An effect is ablated minus clean in the
    metric's unit, for most metrics below 0 where the recall needs the expert, and exactly 0 in a case where
    the clean run doesn't route to it. A list of metrics gives a MetricTraces.

    Errors: as trace_experts; ExpertRangeError for experts that don't exist; ArgumentError for a mean over a
    reference set in which an active expert is never active, and for "resample" with a single case;
    LayoutError for a dense model, and where "reroute" finds no router that it understands.
    """
    common = checked(dict(options), trace_knockout) | {"corruption": NO_NOISE, "final_subject": "keep"}
    anatomy = find_anatomy(model)
    wanted = wanted_of(anatomy, experts, layers)
    asked = Asked(as_choice(ablation, "ablation", KINDS), as_seed(seed))
    case_set = as_case_set(cases)
    others = case_set if reference is None else as_case_set(reference)
    if not len(others):
        raise NoCasesError(
            "there are no cases; expected one or more"
            if reference is None
            else "the reference set holds no cases; give some, or reference=None for the traced ones"
        )
    call = Call(case_set, others, wanted, asked, common)
    if any(is_stacked(anatomy.experts(layer)) for layer in wanted.layers):
        return by_plain_forwards(anatomy, call, SCALED)
    return _in_one_pass(anatomy, call)


def _in_one_pass(anatomy: Anatomy, call: Call) -> KnockoutTrace:
    """As forks of the clean run."""
    wanted, common = call.wanted, call.common
    validate_cases(call.cases, anatomy.vocab_size, "keep", anatomy.positions)
    validate_cases(call.reference, anatomy.vocab_size, "keep", anatomy.positions)
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        job = job_of(anatomy, call)
        ablation = ablation_of(job, call, wanted.layers)
    if ablation.elsewhere:
        return by_plain_forwards(anatomy, call, ELSEWHERE)
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
        details=details_of(call),
        direct=False,
        ablation=ablation,
        **{**common, "position": places},
    )
    return finished(session, lambda own: _trace_of(own, call, sites, ablation), common["out"])


def _trace_of(
    session: Session, call: Call, sites: list[tuple[int, int]], ablation: Ablation
) -> KnockoutTrace:
    """The session in its present metric."""
    outcome, routing = session.outcome, session.outcome.routing
    clean = outcome.clean[:, None]
    active = np.stack([routing[layer, 0].clean_active[:, 0, expert] for layer, expert in sites], axis=1)
    if call.wanted.named:
        ablated = outcome.patched[:, :-1, 0]
    else:
        ablated = np.concatenate([routing[layer, 0].patched[:, 0] for layer in call.wanted.layers], axis=1)
    ablated = np.where(active, ablated, clean)
    cases = case_table(session).drop(columns="noised")
    facts = provenance(session, call.wanted.layers) | facts_of(call)
    anatomy, failed = session.job.anatomy, session.failed
    return result_of(anatomy, call, session.metric, cases, sites, ablated, active, failed, facts, ablation)
