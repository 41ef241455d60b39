"""One fixed expert at several noise scales (appendix E, Table 13)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_list, as_seed
from moetrace.corruptions import NoiseScales
from moetrace.effects import rescue
from moetrace.engines.job import Patch
from moetrace.models.anatomy import find_anatomy
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_name import Expert, ExpertLike
from moetrace.results.scales import ScaleTrace
from moetrace.trace.matched import check_expert
from moetrace.trace.options import ScaleOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet


@on_all_ranks
@partial(shows_options, without=("noise", "corruption"))
def trace_noise_scales(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    star: ExpertLike,
    scales: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    *,
    seed: int = 0,
    **options: Unpack[ScaleOptions],
) -> ScaleTrace:
    """Rescue of a fixed expert, and of its layer's block, under several corruption strengths (Table 13).

    >>> mt.trace_noise_scales(model, validation, "L44E069").table()

    Nothing is selected anew. The scales are branches of one tree: they share the clean run, and each case's
    one draw (seed + case_id). ``options``: the common arguments of trace_layers but ``noise`` and
    ``corruption``.
    Errors: as trace_matched.
    """
    common = checked(dict(options), trace_noise_scales)
    anatomy = find_anatomy(model)
    chosen = check_expert(anatomy, star)
    own_patch = Patch.of_experts(chosen.layer, _core.Chosen.EXPERTS, experts=[chosen.expert])
    patches = [Patch.block(chosen.layer), own_patch, Patch.null(chosen.layer)]
    noise = NoiseScales(tuple(as_list(scales, "scales", "a list of noise scales")), as_seed(seed))
    session = trace(
        model,
        cases,
        patches,
        direct=False,
        anatomy=anatomy,
        what="scales",
        details={"star": str(chosen)},
        **common | {"corruption": noise},
    )
    return finished(session, lambda own: _scale_trace_of(own, chosen, noise), common["out"])


def _scale_trace_of(session: Session, chosen: Expert, noise: NoiseScales) -> ScaleTrace:
    """The session's patches are the block's, the expert's and the null patch."""
    outcome, routing = session.outcome, session.outcome.routing[chosen.layer, 0]
    active = routing.clean_active[:, 0, chosen.expert]
    block, own = rescue(outcome.patched, outcome.noised)[:, :2].swapaxes(0, 1)  # (cases, scales) each
    expert = np.where(active[:, None], own, 0.0)  # it is patched where the noised run alone routes to it, too
    effects = np.concatenate([expert, block], axis=1)
    names = [(what, scale) for what in ("expert", "block") for scale in noise.scales]
    sites = pd.DataFrame(names, columns=["patch", "scale"])
    sites.insert(0, "layer", chosen.layer)
    table = case_table(session)
    table["noised"] = outcome.noised[:, 0]
    table["clean_active"] = active
    for index, scale in enumerate(noise.scales):
        table[f"noised_{scale:g}"] = outcome.noised[:, index]
    facts = provenance(session, (chosen.layer,)) | {"star": str(chosen)}
    patched = effects + np.tile(outcome.noised, 2)
    return ScaleTrace(table, sites, patched, effects, session.failed, facts)
