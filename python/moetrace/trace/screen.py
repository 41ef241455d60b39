"""Screening by gradient: every routed expert of every layer from two forwards and one backward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_choice, as_count
from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.effects import rescue
from moetrace.engines.engine_choice import EngineChoice
from moetrace.engines.gradients import (
    Estimates,
    GradientScreen,
    batches_of_length,
    refuse_without_gradients,
    with_gradients,
)
from moetrace.engines.job import Job, Patch, Sweep, make_job
from moetrace.engines.outcome import Outcome, Values
from moetrace.engines.places import single_place
from moetrace.errors import ArgumentError, NoEffectWarning
from moetrace.metrics import LOGIT_DIFF, check_foils
from moetrace.models.anatomy import Anatomy, expert_count, find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.models.state import prepared
from moetrace.ranks import on_all_ranks, progress_bar
from moetrace.results.screen import RANKS, ScreenTrace, screen_sites
from moetrace.trace.budget import auto_budget
from moetrace.trace.experts import expert_layers_of, expert_trace_of
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, _without_failed, trace

if TYPE_CHECKING:
    from moetrace.cases import Case

_LAYERS = 8  # of whose intermediates a batch keeps as many bytes as a trace's batch, which keeps one layer's


@on_all_ranks
@partial(shows_options, without=("mode", "metric", "out", "compute_dtype"))
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
    patch vector delta_e (equation 6) times the gradient of the logit difference (equation 1) at its block's
    output in the noised run. Two forwards and one backward give all experts of all layers and tokens.

    ``layers``: None for every layer with experts. ``top``: how many of the best experts are verified by
    exact patches (equation 4). ``verify``: True; False for none; "all" for the exact sweep of every expert,
    with which ``.recall(k)`` and ``.correlation()`` say how good the estimates were. ``rank``: what is best:
    the highest "mean" estimate over cases, or "abs", the highest mean magnitude.
    ``position``: as of trace_layers, or "all": each token by itself, as sites of their own.
    ``options``: the common arguments of :func:`moetrace.trace_layers` but ``mode``, ``metric``, ``out``
    and ``compute_dtype``; ``engine`` is that of the exact patches.

    It is first order: an expert that works together with others, or past a threshold, can have an estimate
    of 0 (``plant("pair")`` has two). Where trace_experts is affordable it is the better tool. It needs memory
    for the intermediates of all layers of a batch; ``batch_tokens`` bounds its token rows. The model's
    weights get no gradients, and their flags are as they were.

    Errors: as trace_experts; ModelError, by name, for weights that gradients can't flow through: streamed,
    offloaded, quantised.
    """
    asked = options.get("position")
    everywhere = isinstance(asked, str) and asked == "all"
    given = cast(TraceOptions, {**options, "position": "last"}) if everywhere else options
    common = checked(dict(given), screen_experts)
    top = as_count(top, "top")
    verify = as_choice(verify, "verify", (True, False, "all"))
    rank = as_choice(rank, "rank", RANKS)
    anatomy = find_anatomy(model)
    chosen = expert_layers_of(anatomy, layers)
    refuse_without_gradients(anatomy)
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, common["final_subject"], anatomy.positions)
    check_foils((LOGIT_DIFF,), case_set)
    patched = single_place(common["position"], case_set)
    with prepared(anatomy.model):
        job = make_job(anatomy, (), common["corruption"], patched, (), common["readout"])
        job.corruptor.corruption.check(case_set)
        rows = _budget(common["batch_tokens"], anatomy)
        with progress_bar(len(case_set), "screen", common["progress"]) as bar:
            found = _estimates(job, chosen, case_set, everywhere, rows, bar.update)
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))
    tokens = max(len(case.input_ids) for case in case_set) if everywhere else None
    counts = {str(layer): expert_count(anatomy, layer) for layer in chosen}
    estimate, active = _by_site(found, chosen, tokens)
    session = _session(job, case_set, found, estimate, attention)
    kept = [case.case_id for case in session.cases]
    of_all = [case.case_id for case in case_set]
    places = [of_all.index(case_id) for case_id in kept]
    result = ScreenTrace(
        _case_table(session),
        screen_sites(counts, tokens),
        estimate[places],
        active[places],
        np.full((len(kept), estimate.shape[1]), np.nan),
        session.failed,
        {
            **provenance(session, chosen),
            "position": "all" if everywhere else job.position,
            "experts": counts,
            "tokens": tokens,
            "rank": rank,
            "top": top,
            "verified": [],
        },
    )
    if not verify:
        return result
    return _verified(result, model, session.cases, None if verify == "all" else top, common)


def _budget(batch_tokens: int | str, anatomy: Anatomy) -> int:
    """Token rows of a batch, all of whose layers' intermediates are kept for the backward pass."""
    if not isinstance(batch_tokens, str):
        return batch_tokens
    return max(64, auto_budget(anatomy) * _LAYERS // max(_LAYERS, len(anatomy.layers)))


def _estimates(
    job: Job, layers: Sequence[int], cases: CaseSet, everywhere: bool, rows: int, tell: Any
) -> list[Estimates]:
    """Of each case, in their order."""
    found: dict[int, Estimates] = {}
    with with_gradients(job.anatomy.model):
        screen = GradientScreen(job, layers)
        for batch in batches_of_length(cases, rows, job.draws):
            own = [cases[index] for index in batch]
            length = len(own[0].input_ids)
            asked = [range(length) if everywhere else one_token(job, case) for case in own]
            estimates = screen.run(own, np.array([list(tokens) for tokens in asked]))
            found |= {index: estimates.case(place) for place, index in enumerate(batch)}
            tell(len(batch))
    return [found[index] for index in range(len(cases))]


def one_token(job: Job, case: Case) -> tuple[int, ...]:
    """Positions of the job's place in a case: one. ArgumentError where it has none or several tokens."""
    (tokens,) = job.tokens_of(case)
    if len(tokens) != 1:
        raise ArgumentError(
            f"position {job.position!r} has {len(tokens)} tokens in case {case.case_id}; expected one token"
        )
    return tokens


def _by_site(
    found: Sequence[Estimates], layers: Sequence[int], tokens: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates, means over draws, and clean-active: (cases, sites), tokens innermost."""
    count = tokens or 1
    estimates, active = [], []
    for layer in layers:
        experts = found[0].clean_active[layer].shape[-1]
        own, routed = np.zeros((len(found), experts, count)), np.zeros((len(found), experts, count), bool)
        for index, case in enumerate(found):
            there = case.clean_active[layer].shape[1]
            routed[index, :, :there] = case.clean_active[layer][0].T
            own[index, :, :there] = case.estimates[layer][0].mean(axis=0).T
        estimates.append(np.where(routed, own, 0.0).reshape(len(found), -1))
        active.append(routed.reshape(len(found), -1))
    return np.concatenate(estimates, axis=1), np.concatenate(active, axis=1)


def _session(
    job: Job, cases: CaseSet, found: Sequence[Estimates], estimate: np.ndarray, attention: str
) -> Session:
    """As of a trace, without the cases whose logits or gradients aren't finite."""
    noised = np.concatenate([case.noised for case in found])
    sums = noised[:, None] + estimate.sum(axis=1)[:, None, None]
    outcome = Outcome.plain([Values(np.concatenate([case.clean for case in found]), noised, sums)])
    choice = EngineChoice(cast(Any, _Gradient), "two forwards and one backward")
    return _without_failed(cases, outcome, choice, attention, job)


class _Gradient:
    name = "gradient"


def _case_table(session: Session) -> pd.DataFrame:
    values = {"clean": session.outcome.clean, "noised": session.outcome.noised.mean(axis=1)}
    return pd.DataFrame({**case_columns(session.cases), **values, "null_rescue": np.nan})


def _verified(
    result: ScreenTrace, model: torch.nn.Module, cases: CaseSet, top: int | None, common: dict[str, Any]
) -> ScreenTrace:
    """The same with exact rescues of the best ``top`` sites, or of all."""
    sites = result.sites
    columns = np.arange(len(sites)) if top is None else np.sort(result.order()[:top])
    values = result.rescue.copy()
    values[:, columns] = 0.0  # exactly, where a case has no such token or isn't clean-active there
    table = result.cases
    floors: list[Session] = []
    failed = [result.failed]
    positions = sites.position.to_numpy() if "position" in sites else np.full(len(sites), -1)
    for position in np.unique(positions[columns]):
        own = columns[positions[columns] == position]
        position = int(position)
        reached = [place for place, case in enumerate(cases) if _reaches(case, position)]
        if not reached:
            continue
        part = CaseSet([cases[place] for place in reached])
        asked = {**common, "position": position} if position >= 0 else common
        session, exact = _exact(model, part, sites.iloc[own], asked, whole=top is None)
        floors.append(session)
        failed.append(session.failed)
        finite = {case.case_id for case in session.cases}
        rows = np.array([place for place in reached if cases[place].case_id in finite])
        block = np.where(result.clean_active[np.ix_(rows, own)], exact, 0.0)
        values[np.ix_(rows, own)] = block
        drift = rescue(session.outcome.patched[:, -1], session.outcome.noised)
        before = table.null_rescue.to_numpy()[rows]
        largest = np.abs(drift).max(axis=1)
        table.loc[rows, "null_rescue"] = np.fmax(np.abs(before), largest)
    facts = result.provenance | {"verified": "all" if top is None else columns.tolist()}
    for session in floors:
        facts["self_check"] = max(facts["self_check"], session.choice.difference[0])
        facts["null_floor"] = max(facts["null_floor"], session.choice.null[0])
        facts["verified_by"] = session.choice.engine.name
    gone = pd.concat([part for part in failed if len(part)]) if any(map(len, failed)) else result.failed
    stay = (~table.case_id.isin(gone.case_id)).to_numpy()
    facts["case_ids"] = table.case_id[stay].tolist()
    facts["failed_case_ids"] = gone.case_id.drop_duplicates().tolist()
    return ScreenTrace(
        table[stay].reset_index(drop=True),
        sites,
        result.effects[stay],
        result.clean_active[stay],
        values[stay],
        gone.drop_duplicates("case_id").reset_index(drop=True),
        facts,
    )


def _reaches(case: Case, position: int) -> bool:
    """Whether a patch there can have an effect: the token exists and isn't before the subject. -1 is any."""
    return position < 0 or case.subject[0] <= position < len(case.input_ids)


def _exact(
    model: torch.nn.Module, cases: CaseSet, sites: pd.DataFrame, common: dict[str, Any], whole: bool
) -> tuple[Session, np.ndarray]:
    """Exact rescues (cases, sites), and the session that found them; its last patch is the null patch."""
    anatomy = find_anatomy(model)
    layers = tuple(int(layer) for layer in np.unique(sites.layer))
    patches = [Patch.null(min(layers))]
    sweeps: list[Sweep] = []
    if whole:
        sweeps = [Sweep(layer, top_k_of(anatomy.config), False) for layer in layers]
    else:
        pairs = zip(sites.layer.tolist(), sites.expert.tolist(), strict=True)
        named = [Patch.of_experts(at, _core.Chosen.EXPERTS, experts=[expert]) for at, expert in pairs]
        patches = [*named, *patches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # of early tokens in the last layer
        session = trace(
            model, cases, patches, sweeps=sweeps, anatomy=anatomy, what="screen", direct=False, **common
        )
    if whole:
        return session, expert_trace_of(session, layers, union=False).effects
    effects = rescue(session.outcome.patched, session.outcome.noised).mean(axis=2)
    return session, effects[:, :-1]
