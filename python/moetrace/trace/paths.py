"""Path patching between chosen pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_list, shown
from moetrace.cases import CaseSet, as_case_set, case_columns, validate_cases
from moetrace.engines.engine_choice import choose_engine
from moetrace.engines.job import Patch, make_job
from moetrace.engines.outcome import Outcome, Values
from moetrace.engines.paths import Path, PathEngine, PathOutcome
from moetrace.engines.places import single_place
from moetrace.errors import ArgumentError, ModelError
from moetrace.metrics import LOGIT_DIFF, check_foils
from moetrace.models.anatomy import Anatomy, find_anatomy
from moetrace.models.state import prepared
from moetrace.ranks import on_all_ranks, progress_bar
from moetrace.results.path_ends import PathEnd
from moetrace.results.paths import PathTrace
from moetrace.trace.matched import check_expert
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.screen import one_token
from moetrace.trace.session import Session, _without_failed
from moetrace.weights import source_of

if TYPE_CHECKING:
    from moetrace.cases import Case

Pair = tuple[Any, Any]


@on_all_ranks
@partial(shows_options, without=("mode", "metric", "out", "compute_dtype", "engine", "batch_tokens"))
def trace_paths(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    pairs: Iterable[Pair],
    **options: Unpack[TraceOptions],
) -> PathTrace:
    """What a sender does through one later block, router or expert, everything in between frozen.

    >>> mt.trace_paths(model, cases, [("L12E003", 20), ("L12E003", "L20.router"), (12, "L20E017")])

    ``pairs``: (sender, receiver). A sender is an expert (its patch vector, equation 6) or a layer's block
    (its clean output): a layer's number or "L12". A receiver is a block, "L20.router" or an expert of a later
    layer. Path patching (Wang et al. 2022; Goldowsky-Dill et al. 2023): the sender's change travels along the
    residual stream to the receiver's input alone, at the patched token. Every attention, block and router
    in between gives what it gives in the noised run. The receiver's changed output then flows on freely.

    - a block: everything in it sees the changed input, its router too;
    - a router: it alone sees it; the experts it then chooses get the noised run's input;
    - an expert: it alone sees it, with its routing weight of the noised run. It does nothing, and the path is
      exactly 0, where the noised run doesn't route to it; so is that of a sender that isn't clean-active.

    ``options``: the common arguments of :func:`moetrace.trace_layers` but ``mode``, ``metric``, ``engine``,
    ``out``, ``batch_tokens`` and ``compute_dtype``. Plain hooked forwards, for each case and draw two and two
    more for all its pairs.

    Errors: ArgumentError for pairs that are none, twice there, or whose sender isn't before its receiver;
    LayerRangeError and ExpertRangeError for sites that don't exist; LayoutError where layers don't add to one
    residual stream, found by measuring in every case; ModelError for a streamed model.
    """
    common = checked(dict(options), trace_paths)
    anatomy = find_anatomy(model)
    if source_of(anatomy.model) is not None:
        raise ModelError(
            f"{type(anatomy.model).__name__} is streamed, and paths run blocks a second time; load it whole "
            "(load_model without stream=True)"
        )
    ends = check_pairs(anatomy, pairs)
    paths = [_path(sender, receiver) for sender, receiver in ends]
    case_set = as_case_set(cases)
    validate_cases(case_set, anatomy.vocab_size, common["final_subject"], anatomy.positions)
    check_foils((LOGIT_DIFF,), case_set)
    with prepared(anatomy.model):
        patches = [*(path.sender for path in paths), Patch.null(min(path.sender.layer for path in paths))]
        places = single_place(common["position"], case_set)
        job = make_job(anatomy, patches, common["corruption"], places, (), common["readout"])
        job.corruptor.corruption.check(case_set)
        choice = choose_engine(job, case_set, "reference")
        engine = PathEngine(job, paths)
        found = []
        with progress_bar(len(case_set), "paths", common["progress"]) as bar:
            for case in case_set:
                found.append(engine.run_paths(case, *one_token(job, case)))
                bar.update(1)
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))
    session = _without_failed(case_set, _outcome(found), choice, attention, job)
    return _result(session, found, case_set, ends)


def check_pairs(anatomy: Anatomy, pairs: Iterable[Pair]) -> list[tuple[PathEnd, PathEnd]]:
    """The pairs as sites that exist, each sender before its receiver."""
    expected = "a list of pairs (sender, receiver)"
    found: list[tuple[PathEnd, PathEnd]] = []
    for place, pair in enumerate(as_list(pairs, "pairs", expected)):
        both = as_list(pair, f"pairs[{place}]", "a pair (sender, receiver)")
        if len(both) != 2:
            raise ArgumentError(f"pairs[{place}] is {shown(pair)}; expected a pair (sender, receiver)")
        sender, receiver = (_checked_end(anatomy, end) for end in both)
        if sender.kind == "router":
            raise ArgumentError(
                f"pairs[{place}]: the sender is {sender}; expected a block or an expert, whose output is "
                "patched. A router can only be a receiver"
            )
        if sender.layer >= receiver.layer:
            raise ArgumentError(
                f"pairs[{place}]: the sender {sender} isn't before the receiver {receiver}; expected a "
                "receiver in a later layer"
            )
        found.append((sender, receiver))
    if not found:
        raise ArgumentError(f"pairs is empty; expected {expected}")
    twice = sorted({f"({s}, {r})" for s, r in found if found.count((s, r)) > 1})
    if twice:
        raise ArgumentError(f"pairs has {twice[0]} twice; expected each pair once")
    return found


def _checked_end(anatomy: Anatomy, value: Any) -> PathEnd:
    """LayerRangeError or ExpertRangeError where the model has none such."""
    end = PathEnd.of(value)
    if end.kind == "expert":
        check_expert(anatomy, (end.layer, end.expert))
    elif end.kind == "router":
        anatomy.experts(end.layer)
    else:
        anatomy.site(end.layer)
    return end


def _path(sender: PathEnd, receiver: PathEnd) -> Path:
    patch = Patch.block(sender.layer)
    if sender.kind == "expert":
        patch = Patch.of_experts(sender.layer, _core.Chosen.EXPERTS, experts=[sender.expert])
    return Path(patch, receiver.layer, receiver.kind, receiver.expert)


def _outcome(found: Sequence[PathOutcome]) -> Outcome:
    """Paths, whole senders and the null patch as the patches of an outcome."""
    noised = np.stack([case.noised for case in found])
    parts = [np.concatenate([case.path, case.rescue], axis=0) + case.noised for case in found]
    nulls = np.stack([case.null for case in found])[:, None]
    patched = np.concatenate([np.stack(parts), nulls], axis=1)
    return Outcome.plain([Values(np.array([case.clean for case in found]), noised, patched)])


def _result(
    session: Session, found: Sequence[PathOutcome], cases: CaseSet, ends: Sequence[tuple[PathEnd, PathEnd]]
) -> PathTrace:
    kept = {case.case_id for case in session.cases}
    own = [outcome for case, outcome in zip(cases, found, strict=True) if case.case_id in kept]
    effects = np.stack([outcome.path.mean(axis=1) for outcome in own])
    drift = np.stack([outcome.null - outcome.noised for outcome in own])
    noised = session.outcome.noised.mean(axis=1)
    table = {
        **case_columns(session.cases),
        "clean": session.outcome.clean,
        "noised": noised,
        "null_rescue": drift[np.arange(len(drift)), np.abs(drift).argmax(axis=1)],
    }
    layers = sorted({end.layer for pair in ends for end in pair})
    return PathTrace(
        pd.DataFrame(table),
        pd.DataFrame([(str(s), str(r)) for s, r in ends], columns=["sender", "receiver"]),
        noised[:, None] + effects,
        effects,
        np.stack([outcome.rescue.mean(axis=1) for outcome in own]),
        session.failed,
        {**provenance(session, tuple(layers)), "engine": "paths"},
    )
