"""The clean and the noised forwards alone: the cost that no method can avoid.

Both are plain forwards over all cases at once, with the logits of the final token only; no patch, no hook but
the one that adds the noise. ``separate`` runs one batch of clean and one of noised prompts, ``together`` one
batch of both: the tables take the faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep
from benchmarks.peers.hf_loop import hooked


def add_noise_to_rows(cases: Sequence[Case], noise: Mapping[int, Tensor], first: int) -> Any:
    """Hook for the embedding: row ``first + i`` of the batch is case i and gets its noise at its subject."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        for row, case in enumerate(cases, start=first):
            output[row, slice(*case.subject)] += noise[case.case_id]
        return output

    return hook


def differences(model: Qwen3MoeForCausalLM, ids: Tensor, cases: Sequence[Case]) -> np.ndarray:
    """Logit difference of each row; row i belongs to case i modulo the number of cases."""
    logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    rows = [logit_difference(logits[row], cases[row % len(cases)]) for row in range(len(ids))]
    return torch.stack(rows).numpy()


def prepare_separate(model: Qwen3MoeForCausalLM) -> Sweep:
    """Two batches; gives the clean and the noised logit difference, cases x 2."""
    embedding = model.get_input_embeddings()

    @torch.inference_mode()
    def forwards(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        ids = torch.tensor([case.input_ids for case in cases])
        clean = differences(model, ids, cases)
        with hooked(embedding, add_noise_to_rows(cases, noise, first=0)):
            noised = differences(model, ids, cases)
        return np.stack([clean, noised], axis=1)

    return forwards


def prepare_together(model: Qwen3MoeForCausalLM) -> Sweep:
    """One batch; gives the clean and the noised logit difference, cases x 2."""
    embedding = model.get_input_embeddings()

    @torch.inference_mode()
    def forwards(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        ids = torch.tensor([case.input_ids for case in cases]).repeat(2, 1)
        with hooked(embedding, add_noise_to_rows(cases, noise, first=len(cases))):
            both = differences(model, ids, cases)
        return both.reshape(2, len(cases)).T

    return forwards
