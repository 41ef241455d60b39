"""The layer sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace.effects import rescue
from moetrace.engines.job import ORIGINS, Patch
from moetrace.models.anatomy import find_anatomy
from moetrace.ranks import on_all_ranks
from moetrace.results.layers import LayerTrace
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, keep, trace

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
) -> LayerTrace:
    """Patch the clean block output into the noised run, one layer at a time (section 3.3, equation 4).

    >>> layers = mt.trace_layers(model, cases)
    >>> layers.best, layers.summary()

    ``model``: a decoder-only language model of transformers, wherever it is placed; it is used through hooks
    and left as it was. ``cases``: a CaseSet or any sequence of Case.
    ``layers``: which; None is every layer with routed experts, or every layer of a model without any.
    ``mode``: "denoise", the paper's; or "noise", the noised value into the clean run: an effect, still in
    ``rescue`` and ``effects``, is then patched minus clean, below 0 where the recall needs what was patched.
    ``noise``: the corruption, by default ``SubjectNoise(scale=3.0, seed=0, draws=1)`` (equation 2).
    ``position``: the patched token: "last" as in the paper, "subject_last", or an index.
    ``metric``: "logit_diff", true minus foil (equation 1).
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

    Errors: CaseError and its children for cases, ModelError for models and layouts, LayerRangeError for
    layers, EngineError and HookError for engines, RunFolderError for ``out``, RankError where another rank
    fails. A case with NaN or infinite
    logits is reported in ``.failed`` with a NonFiniteWarning, and the rest goes on.
    """
    common = checked(dict(options), trace_layers)
    anatomy = find_anatomy(model)
    chosen = anatomy.resolve_layers(layers)
    # The null fork leaves at the lowest layer, where it has the most layers to drift away in.
    origin = ORIGINS[common["mode"]]
    patches: list[Patch] = [Patch.block(layer, origin=origin) for layer in chosen]
    patches.append(Patch.null(min(chosen), origin=origin))
    session = trace(model, cases, patches, anatomy=anatomy, what="layers", **common)
    result = layer_trace_of(session, chosen)
    keep(result, common["out"])
    return result


def layer_trace_of(session: Session, layers: tuple[int, ...]) -> LayerTrace:
    """The first patches of the session are the layers', the last is the null patch."""
    outcome = session.outcome
    effects = rescue(outcome.patched, outcome.base(session.job)).mean(axis=2)
    return LayerTrace(
        case_table(session),
        pd.DataFrame({"layer": list(layers)}),
        outcome.patched[:, :-1].mean(axis=2),
        effects[:, :-1],
        session.failed,
        provenance(session, layers),
        direct=outcome.direct[:, :-1].mean(axis=2),
        direct_linear=outcome.direct_linear[:, :-1].mean(axis=2),
    )
