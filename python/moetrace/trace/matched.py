"""The gate-weight-matched control of one expert, raw and at equal norm, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.effects import rescue
from moetrace.engines.job import Patch
from moetrace.models.anatomy import expert_count, find_anatomy
from moetrace.ranks import on_all_ranks
from moetrace.results.expert_name import Expert, ExpertLike, ExpertRangeError, NeverActiveError
from moetrace.results.matched import SITES, MatchedTrace
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.trace.provenance import provenance
from moetrace.trace.session import Session, case_table, finished, trace

if TYPE_CHECKING:
    from moetrace.cases import Case, CaseSet
    from moetrace.models.anatomy import Anatomy

ROLES = {"selected": _core.Chosen.ANCHOR, "matched": _core.Chosen.MATCHED}


@on_all_ranks
@shows_options
def trace_matched(
    model: torch.nn.Module,
    cases: Sequence[Case] | CaseSet,
    star: ExpertLike,
    **options: Unpack[TraceOptions],
) -> MatchedTrace:
    """Compare an expert with the active expert of closest routing weight (appendix C, equations 8 to 10).

    >>> pairs = mt.trace_matched(model, validation, star)
    >>> pairs.table()                       # Table 9 (Table 11 for top-2 models)

    Raw patch vectors, and both scaled to the smaller norm of the two, over the cases where the star is
    clean-active and another expert is too. With top-2 routing the control is the one other active expert.
    Errors: as trace_experts; ExpertRangeError for an expert that doesn't exist; NeverActiveError where no
    case routes to it beside another.
    """
    common = checked(dict(options), trace_matched)
    anatomy = find_anatomy(model)
    chosen = check_expert(anatomy, star)
    patches: list[Patch] = [*matched_patches(chosen), Patch.null(chosen.layer)]
    session = trace(
        model,
        cases,
        patches,
        anatomy=anatomy,
        what="matched",
        details={"star": str(chosen)},
        direct=False,
        **common,
    )
    return finished(session, lambda own: matched_trace_of(own, chosen), common["out"])


def matched_patches(star: Expert) -> list[Patch]:
    """The star and its matched control, raw and at equal norm, in the order of SITES."""
    return [
        Patch.of_experts(star.layer, ROLES[role], experts=[star.expert], equal_norm=scaling == "equal_norm")
        for role, scaling in SITES
    ]


def check_expert(anatomy: Anatomy, star: ExpertLike) -> Expert:
    """The expert that a user names. ExpertRangeError or LayerRangeError where the model has none such."""
    chosen = Expert.of(star)
    count = expert_count(anatomy, chosen.layer)
    if chosen.expert >= count:
        raise ExpertRangeError(
            f"{chosen} doesn't exist: layer {chosen.layer} of {type(anatomy.model).__name__} has experts 0 "
            f"to {count - 1}"
        )
    return chosen


def _control(clean: np.ndarray, weight: np.ndarray, star: int) -> int:
    """The matched control of one case (equation 8)."""
    slot = _core.matched_control(clean, weight[clean], int(np.flatnonzero(clean == star)[0]))
    return int(clean[slot])


def matched_trace_of(session: Session, star: Expert) -> MatchedTrace:
    """The first patches of the session are those of :func:`matched_patches`, the last is the null patch."""
    outcome, routing = session.outcome, session.outcome.routing[star.layer, 0]
    active = np.flatnonzero(routing.clean_active[:, 0, star.expert] & (routing.top_k > 1))
    if not len(active):
        raise NeverActiveError(
            f"{star} is clean-active beside another expert in none of the {len(session.cases)} cases; "
            "expected at least one: choose an expert that .activity() shows"
        )
    cases = case_table(session)
    clean = routing.routed[:, 0, : routing.top_k]
    weight, norm = routing.clean_weight[:, 0], routing.delta_norm.mean(axis=1)
    control = np.array([_control(clean[i], weight[i], star.expert) for i in active])
    kept = cases.iloc[active].reset_index(drop=True)
    kept["control"] = control
    for name, values in (("weight", weight), ("norm", norm)):
        kept[f"star_{name}"] = values[active, star.expert]
        kept[f"control_{name}"] = values[active, control]
    each = rescue(outcome.patched, outcome.noised)[active, :-1]
    patched = outcome.patched[active, :-1].mean(axis=2)
    sites = pd.DataFrame(SITES, columns=["role", "scaling"])
    sites.insert(0, "layer", star.layer)
    facts = provenance(session, (star.layer,)) | {
        "star": str(star),
        "inactive_case_ids": np.delete(cases.case_id.to_numpy(), active).tolist(),
    }
    return MatchedTrace(kept, sites, patched, each.mean(axis=2), session.failed, facts).with_draws(each)
