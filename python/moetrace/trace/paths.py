"""Path patching between chosen pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_list, shown
from moetrace.cases import CaseSet, as_case_set, refuse_several_tokens, validate_cases
from moetrace.effects import rescue
from moetrace.engines.engine_choice import choose_engine
from moetrace.engines.job import Patch, make_job
from moetrace.engines.outcome import Outcome
from moetrace.engines.paths import Path, PathEngine
from moetrace.engines.places import single_place
from moetrace.errors import ArgumentError, ModelError
from moetrace.metrics import check_foils
from moetrace.models.anatomy import Anatomy, find_anatomy
from moetrace.models.float32 import computing_in
from moetrace.models.state import prepared
from moetrace.ranks import here, on_all_ranks
from moetrace.results.path_ends import PathEnd
from moetrace.results.paths import PathTrace
from moetrace.trace.batches import batches_of, run_batches
from moetrace.trace.matched import check_expert
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.parts import OutcomeForm
from moetrace.trace.provenance import provenance
from moetrace.trace.run_folder import RunFolder, call_facts
from moetrace.trace.session import Session, _without_failed, case_table, finished
from moetrace.weights import source_of

if TYPE_CHECKING:
    from moetrace.cases import Case

Pair = tuple[Any, Any]


@on_all_ranks
@partial(shows_options, without=("mode", "engine", "batch_tokens"))
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

    ``options``: the common arguments of :func:`moetrace.trace_layers` but ``mode``, ``engine`` and
    ``batch_tokens``, ``position`` one token of each case. Plain hooked forwards, for each case and draw two
    and two more for all its pairs.

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
    asked, out = common["metric"], common["out"]
    check_foils(asked.metrics, case_set)
    refuse_several_tokens(case_set, "trace_paths")
    with prepared(anatomy.model), computing_in(anatomy, common["compute_dtype"]):
        patches = [*(path.sender for path in paths), Patch.null(min(path.sender.layer for path in paths))]
        places = single_place(common["position"], case_set)
        job = make_job(anatomy, patches, common["corruption"], places, (), common["readout"], asked.metrics)
        job.corruptor.corruption.check(case_set)
        details, ranks = {"pairs": [[str(end) for end in pair] for pair in ends]}, here()
        facts = {**call_facts("paths", job, case_set, details, asked), "out": str(out)}
        ranks.agree("paths", lambda: facts)
        choice = choose_engine(job, case_set, "reference")
        attention = str(getattr(anatomy.config, "_attn_implementation", ""))
        folder = None
        if out is not None:
            form = OutcomeForm(2 * len(paths) + 1, job.draws, len(job.metrics) - 1)
            how = {"attention": attention, "compute_dtype": common["compute_dtype"] or ""}
            folder = ranks.first_then_all(
                "run folder", lambda: RunFolder.open(out, "paths", job, case_set, details, how, asked, form)
            )
        batches = batches_of(PathEngine(job, paths), case_set)
        found = Outcome.stack(run_batches(batches, case_set, folder, common["progress"], "paths"))
    session = _without_failed(case_set, found, choice, attention, job)
    session = replace(session, compute_dtype=common["compute_dtype"], whole=session.outcome, asked=asked)
    return finished(session, lambda own: _result(own, ends), out)


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


def _result(session: Session, ends: Sequence[tuple[PathEnd, PathEnd]]) -> PathTrace:
    """Columns of the session: paths, whole senders, the null patch."""
    outcome, count = session.outcome, len(ends)
    each = rescue(outcome.patched, outcome.noised)
    layers = sorted({end.layer for pair in ends for end in pair})
    return PathTrace(
        case_table(session),
        pd.DataFrame([(str(s), str(r)) for s, r in ends], columns=["sender", "receiver"]),
        outcome.patched[:, :count].mean(axis=2),
        each[:, :count].mean(axis=2),
        each[:, count:-1].mean(axis=2),
        session.failed,
        {**provenance(session, tuple(layers)), "engine": "paths"},
    ).with_draws(each[:, :count])
