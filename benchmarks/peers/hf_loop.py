"""(a) One Hugging Face forward per patch, with PyTorch forward hooks.

The plain way, and the yardstick for the numbers: a clean forward that stores every block's final output, a
noised forward, then one noised forward per layer in which a hook overwrites that block's final output. The
hooks are PyTorch's ``register_forward_hook``, after "Forward and Backward Function Hooks"
(https://docs.pytorch.org/docs/stable/notes/modules.html#module-hooks), the forward is ``model(ids).logits``
without gradients. ``prepare_lean`` is the same loop with the savings that transformers' forward offers: no
cache and the logits of the final token alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep

requirement = None
LEAN = {"use_cache": False, "logits_to_keep": 1}


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """A forward hook for the length of a ``with`` block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def add_noise(case: Case, noise: Tensor) -> Any:
    """Hook for the embedding: adds the case's noise at its subject tokens, in every row of the batch."""
    start, stop = case.subject

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output[:, start:stop] += noise
        return output

    return hook


def overwrite_final(value: Tensor) -> Any:
    """Hook for a block: its output at the final position becomes ``value``."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        output[:, -1] = value
        return output

    return hook


def clean_outputs(model: Qwen3MoeForCausalLM, ids: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Final-position block output of the clean prompt at every layer, each of shape (width,)."""
    kept: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in model.model.layers:
            hooks.enter_context(
                hooked(layer.mlp, lambda module, args, output: kept.append(output[0, -1].clone()))
            )
        model(ids, **options)
    return kept


def prepare(model: Qwen3MoeForCausalLM, **options: Any) -> Sweep:
    """The measured function, on ``model`` itself; ``options`` go to every forward."""
    layers = model.model.layers
    embedding = model.get_input_embeddings()

    def difference(ids: Tensor, case: Case) -> float:
        return logit_difference(model(ids, **options).logits[0, -1], case).item()

    @torch.inference_mode()
    def sweep(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        rescue = np.empty((len(cases), len(layers)), dtype=np.float32)
        for row, case in enumerate(cases):
            ids = torch.tensor([case.input_ids])
            clean = clean_outputs(model, ids, options)
            with hooked(embedding, add_noise(case, noise[case.case_id])):
                noised = difference(ids, case)
                for index, layer in enumerate(layers):
                    with hooked(layer.mlp, overwrite_final(clean[index])):
                        rescue[row, index] = difference(ids, case) - noised
        return rescue

    return sweep


def prepare_lean(model: Qwen3MoeForCausalLM) -> Sweep:
    """The measured function with the forward's own savings."""
    return prepare(model, **LEAN)
