"""moetrace's own side: the one place where the benchmarks call it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import NOISE_SCALE, Case

requirement = "moetrace"


def rescue(model: Qwen3MoeForCausalLM, cases: Sequence[Case]) -> np.ndarray:
    """Rescue of every layer, cases x layers: the layer sweep as a user calls it, at the default budget."""
    import moetrace as mt

    traced = [
        mt.Case(
            input_ids=case.input_ids,
            subject=case.subject,
            true_id=case.true_id,
            foil_id=case.foil_id,
            case_id=case.case_id,
        )
        for case in cases
    ]
    noise = mt.SubjectNoise(scale=NOISE_SCALE, seed=0, draws=1)
    effects = mt.trace_layers(model, traced, noise=noise, batch_tokens="auto", progress=False).effects
    return np.asarray(effects)
