"""The layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace.cases import as_case_set
from moetrace.effects import rescue
from moetrace.engines.job import Patch
from moetrace.engines.places import Place, is_map, places_of
from moetrace.metrics import LOGIT_DIFF
from moetrace.models.anatomy import find_anatomy
from moetrace.ranks import on_all_ranks
from moetrace.results.layer_map import LayerMap
from moetrace.results.layers import LayerTrace
from moetrace.trace.maps import map_cases, mapped, null_place, tokens_at
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


@on_all_ranks
@shows_options
def trace_layers(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    *,
    layers: int | Sequence[int] | None = None,
    **options: Unpack[TraceOptions],
) -> LayerTrace | LayerMap:
    """Patch the clean block output into the noised run, one layer at a time (section 3.3, equation 4).

    >>> layers = mt.trace_layers(model, cases)
    >>> layers.best, layers.summary()

    ``model``: a decoder-only language model of transformers, wherever it is placed; it is used through hooks
    and left as it was. ``cases``: a CaseSet or any sequence of Case.
    ``layers``: which; None is every layer with routed experts, or every layer of a model without any.
    ``noise``: the corruption, by default ``SubjectNoise(scale=3.0, seed=0, draws=1)`` (equation 2).
    ``corruption``: another one in its place: ``mt.SwapSubject(cases)``, ``mt.MeanEmbedding()``,
    ``mt.ZeroEmbedding()``, ``mt.UniformNoise()``, or a function of (case, embeddings of its subject).
    ``position``: where: "last", the final token, as in the paper; "subject_last", "subject_first";
    "subject", all its tokens together; "after_subject", the token behind it; a token index (negative from the
    end); a function of a Case that gives one or a list of tokens to patch together; "all", every token by
    itself; or a list of them, all in one pass. Of "all" and lists the result is a :class:`LayerMap`, layer x
    position.
    ``metric``: what is read off every run: "logit_diff", true minus foil (equation 1); "logprob" and "prob"
    of the true object over the whole vocabulary; "prob_ratio", true over foil; "kl", D(clean || run); "rank"
    of the true object, 1 the first; or a function of (logits (rows, vocabulary), case). A list of them gives
    a :class:`MetricTraces` of a result each, all from one pass. Rescue is patched minus noised in every one.
    ``engine``: "tree" (one pass), "reference" (one plain forward for each patch) or "auto".
    ``batch_tokens``: token rows of one batch, or "auto"; it changes time and memory, never the numbers beyond
    floating point. ``progress``: None shows a bar in a terminal or a notebook; True also a line now and then
    in a log; False nothing; or a function of (done, total).
    ``out``: a run folder, written as it goes; the same call resumes it. Ranks of torch.distributed that all
    make the call share its batches, and each gets the whole result (see :mod:`moetrace.ranks`).
    ``final_subject``: "refuse" or "keep" cases whose final token belongs to the subject.
    ``readout``: "exact" takes logits in float64 from what enters the head; "model" as the model's own head
    and dtype give them: in half precision rounded, so that some rescues come out as exactly zero (Table 3).
    ``compute_dtype``: "float32" computes in float32 from half-precision weights, a layer's copy at a time, so
    that ``.noise_floor`` falls from hundredths of a logit to about 1e-5; None computes as the model does. It
    needs the weights in memory, and memory for one layer, the embedding and the head in float32.
    What of a rescue goes straight to the logits and what through later layers, ``.direct`` and ``.indirect``,
    comes with it: see :class:`LayerTrace`.

    Errors: ArgumentError for a position that a prompt doesn't have, is unknown or named twice, CaseError and
    its children for cases, ModelError for models and layouts, LayerRangeError for
    layers, EngineError and HookError for engines, RunFolderError for ``out``, RankError where another rank
    fails. A case with NaN or infinite
    logits is reported in ``.failed`` with a NonFiniteWarning, and the rest goes on.
    """
    common = checked(dict(options), trace_layers)
    anatomy = find_anatomy(model)
    chosen = anatomy.resolve_layers(layers)
    case_set, position = as_case_set(cases), common.pop("position")
    places = places_of(position, case_set, prefix=False)
    patches = layer_patches(chosen, places)
    session = trace(model, case_set, patches, position=places, anatomy=anatomy, what="layers", **common)
    made = layer_map_of if is_map(position) else layer_trace_of
    return finished(session, lambda own: made(own, chosen), common["out"])


def layer_patches(layers: Sequence[int], places: Sequence[Place]) -> list[Patch]:
    """A block patch of every layer at every place, and last the null patch."""
    blocks = [Patch.block(layer, place) for layer in layers for place in mapped(places)]
    # The null fork leaves at the lowest layer, where it has the most layers to drift away in.
    return [*blocks, Patch.null(min(layers), null_place(places))]


def layer_trace_of(session: Session, layers: tuple[int, ...]) -> LayerTrace:
    """The first patches of the session are the layers', the last is the null patch."""
    outcome = session.outcome
    each = rescue(outcome.patched, outcome.noised)[:, :-1]
    straight = {
        "direct": outcome.direct[:, :-1].mean(axis=2),
        "direct_linear": outcome.direct_linear[:, :-1].mean(axis=2),
    }
    return LayerTrace(
        case_table(session),
        pd.DataFrame({"layer": list(layers)}),
        outcome.patched[:, :-1].mean(axis=2),
        each.mean(axis=2),
        session.failed,
        provenance(session, layers),
        **(straight if session.metric is LOGIT_DIFF else {}),
    ).with_draws(each)


def layer_map_of(session: Session, layers: tuple[int, ...]) -> LayerMap:
    """The same of a session whose patches are at several places."""
    outcome, places = session.outcome, session.job.places
    names = [places[at].name for at in mapped(places)]
    tokens = tokens_at(session)
    each = rescue(outcome.patched, outcome.noised)[:, :-1]
    patched, noised = outcome.patched[:, :-1].mean(axis=2), outcome.noised.mean(axis=1)
    straight = {name: getattr(outcome, name)[:, :-1].mean(axis=2) for name in ("direct", "direct_linear")}
    # Tokens before the subject aren't run: both runs are the same there.
    columns = np.tile(np.arange(len(names)), len(layers))
    same = np.isnan(each).all(axis=2) & (tokens[:, columns] >= 0) & ~outcome.present[:, :-1]
    each[same] = 0.0
    patched[same] = np.broadcast_to(noised[:, None], patched.shape)[same]
    for values in straight.values():
        values[same] = 0.0
    return LayerMap(
        map_cases(session),
        pd.DataFrame([(layer, name) for layer in layers for name in names], columns=["layer", "position"]),
        patched,
        each.mean(axis=2),
        session.failed,
        provenance(session, layers),
        tokens[:, columns],
        **(straight if session.metric is LOGIT_DIFF else {}),
    ).with_draws(each)
