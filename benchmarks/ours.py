"""moetrace's own side: the one place where the benchmarks call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import NOISE_SCALE, Case

requirement = "moetrace"


def traced(cases: Sequence[Case]) -> list[Any]:
    """The benchmark's cases as moetrace's."""
    import moetrace as mt

    return [
        mt.Case(
            input_ids=case.input_ids,
            subject=case.subject,
            true_id=case.true_id,
            foil_id=case.foil_id,
            case_id=case.case_id,
        )
        for case in cases
    ]


def rescue(model: Qwen3MoeForCausalLM, cases: Sequence[Case]) -> np.ndarray:
    """Rescue of every layer, cases x layers: the layer sweep as a user calls it, at the default budget."""
    import moetrace as mt

    noise = mt.SubjectNoise(scale=NOISE_SCALE, seed=0, draws=1)
    return np.asarray(mt.trace_layers(model, traced(cases), noise=noise, progress=False).effects)


def every_expert(model: Qwen3MoeForCausalLM, cases: Sequence[Case]) -> np.ndarray:
    """Rescue of every clean-active expert of every layer, the same way."""
    import moetrace as mt

    noise = mt.SubjectNoise(scale=NOISE_SCALE, seed=0, draws=1)
    return np.asarray(mt.trace_experts(model, traced(cases), noise=noise, progress=False).effects)
