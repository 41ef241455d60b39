"""What router logits say: probabilities, and routings that rounding could swap."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moetrace.results.experts.arrays import ExpertArrays, Floats


def softmax_by_layer(logits: Floats, sites: pd.DataFrame) -> Floats:
    """Softmax of logits (cases, sites) within each layer."""
    found = np.empty_like(logits)
    for columns in sites.groupby("layer").indices.values():
        shifted = np.exp(logits[:, columns] - logits[:, columns].max(axis=1, keepdims=True))
        found[:, columns] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def routing_table(rows: pd.DataFrame, arrays: ExpertArrays, sites: pd.DataFrame) -> pd.DataFrame:
    """Routing columns of tidy rows, with logits and probabilities of both runs where they are known."""
    table = rows.loc[:, "case_id":"noised_weight"]
    for run in ("clean", "noised"):
        logits = getattr(arrays, f"{run}_logit")
        if logits is not None:
            table[f"{run}_logit"] = logits.ravel()
            table[f"{run}_probability"] = softmax_by_layer(logits, sites).ravel()
    return table


def close_calls(arrays: ExpertArrays, sites: pd.DataFrame, limit: float) -> int:
    """Clean routings of a case and layer whose weakest routed and strongest unrouted logit are that close."""
    logits, count = arrays.clean_logit, 0
    if logits is None:
        return 0
    for columns in sites.groupby("layer").indices.values():
        active = arrays.clean_active[:, columns]
        weakest = np.where(active, logits[:, columns], np.inf).min(axis=1)
        strongest = np.where(active, -np.inf, logits[:, columns]).max(axis=1)
        count += int((np.abs(weakest - strongest) < limit).sum())
    return count
