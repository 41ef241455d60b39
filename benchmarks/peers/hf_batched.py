"""(b) Hugging Face hooks batched over patches: per case one forward of as many noised copies as layers.

Row i of the batch is patched at layer i, one more row stays unpatched and gives the noised value. What is
batched here is all that plain hooks can batch without an attention mask of their own; everything below the
patch is still computed once per row. ``prepare_lean`` is as in ``hf_loop``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep
from benchmarks.peers.hf_loop import LEAN, add_noise, clean_outputs, hooked

requirement = None


def overwrite_row(row: int, value: Tensor) -> Any:
    """Hook for a block: its output at the final position of one row of the batch becomes ``value``."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output[row, -1] = value
        return output

    return hook


def prepare(model: Qwen3MoeForCausalLM, **options: Any) -> Sweep:
    """The measured function, on ``model`` itself; ``options`` go to every forward."""
    layers = model.model.layers
    embedding = model.get_input_embeddings()

    def patched(case: Case, ids: Tensor, noise: Tensor) -> np.ndarray:
        clean = clean_outputs(model, ids, options)
        with ExitStack() as hooks:
            hooks.enter_context(hooked(embedding, add_noise(case, noise)))
            for index, layer in enumerate(layers):
                hooks.enter_context(hooked(layer.mlp, overwrite_row(index, clean[index])))
            output = model(ids.repeat(len(layers) + 1, 1), **options)
        return logit_difference(output.logits[:, -1], case).numpy()

    @torch.inference_mode()
    def sweep(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        rescue = np.empty((len(cases), len(layers)), dtype=np.float32)
        for row, case in enumerate(cases):
            values = patched(case, torch.tensor([case.input_ids]), noise[case.case_id])
            rescue[row] = values[:-1] - values[-1]
        return rescue

    return sweep


def prepare_lean(model: Qwen3MoeForCausalLM) -> Sweep:
    """The measured function with the forward's own savings."""
    return prepare(model, **LEAN)
