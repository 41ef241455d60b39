"""(c) nnsight: one trace per patch.

After "Activation Patching" of its documentation (docs/patterns/activation-patching.md, mirrored at
https://nnsight.net/notebooks/tutorials/activation_patching/): the clean activations are cached in one trace,
as in its "Layer x position map", and each layer is patched in a trace of its own, as in "Sweep over layers".
The model is wrapped by ``NNsight`` (docs/models/nnsight-base.md), which needs no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep

requirement = "nnsight"


def prepare(model: Qwen3MoeForCausalLM) -> Sweep:
    """The measured function, on an ``NNsight`` wrapper of ``model``."""
    import nnsight

    wrapped = nnsight.NNsight(model)
    count = len(model.model.layers)

    def clean_outputs(ids: Tensor) -> list[Tensor]:
        with wrapped.trace(input_ids=ids):
            clean = nnsight.save([layer.mlp.output[:, -1, :].clone() for layer in wrapped.model.layers])
        return clean

    def noised_logits(ids: Tensor, start: int, stop: int, noise: Tensor) -> Tensor:
        with wrapped.trace(input_ids=ids):
            wrapped.model.embed_tokens.output[:, start:stop, :] += noise
            logits = wrapped.lm_head.output[:, -1, :].save()
        return logits

    def patched_logits(
        ids: Tensor, start: int, stop: int, noise: Tensor, layer: int, value: Tensor
    ) -> Tensor:
        with wrapped.trace(input_ids=ids):
            wrapped.model.embed_tokens.output[:, start:stop, :] += noise
            wrapped.model.layers[layer].mlp.output[:, -1, :] = value
            logits = wrapped.lm_head.output[:, -1, :].save()
        return logits

    @torch.no_grad()
    def sweep(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        rescue = np.empty((len(cases), count), dtype=np.float32)
        for row, case in enumerate(cases):
            ids = torch.tensor([case.input_ids])
            drawn = noise[case.case_id]
            clean = clean_outputs(ids)
            noised = logit_difference(noised_logits(ids, *case.subject, drawn)[0], case)
            for layer in range(count):
                logits = patched_logits(ids, *case.subject, drawn, layer, clean[layer])
                rescue[row, layer] = logit_difference(logits[0], case) - noised
        return rescue

    return sweep
