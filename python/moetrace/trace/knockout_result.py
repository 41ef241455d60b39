"""What a knock-out gives back, whichever way it was run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from moetrace.engines.knockout import Ablation, donors_of
from moetrace.metrics import Metric
from moetrace.models.anatomy import Anatomy
from moetrace.results.knockout import KnockoutTrace
from moetrace.trace.knockout_call import Call, details_of
from moetrace.trace.set_runs import runner_of


def result_of(
    anatomy: Anatomy,
    call: Call,
    metric: Metric,
    cases: pd.DataFrame,
    sites: list[tuple[int, int]],
    ablated: np.ndarray,
    active: np.ndarray,
    failed: pd.DataFrame,
    facts: dict[str, Any],
    ablation: Ablation,
) -> KnockoutTrace:
    """The trace in one metric. ``cases``: with its clean values; ``ablated``, ``active``: (cases, sites)."""
    donors = None
    if call.asked.kind == "resample":
        donors = np.where(active, donors_of(ablation, cases.case_id.tolist(), sites), -1)
    effects = ablated - cases.clean.to_numpy()[:, None]
    places = pd.DataFrame(sites, columns=["layer", "expert"])
    runner = runner_of(anatomy, call, metric)
    return KnockoutTrace(cases, places, ablated, effects, failed, facts, active, donors, runner)


def facts_of(call: Call) -> dict[str, Any]:
    """What its provenance has beside that of every trace."""
    return {**details_of(call), "mode": "knockout", "noise": None}
