"""Which layouts of expert weights the compiled routines read."""

from __future__ import annotations

import torch
from torch import nn
from transformers.integrations import moe as hf_moe

from moetrace.weights.tensors import is_plain


def is_fused_layout(module: nn.Module, apart: bool = False) -> bool:
    """Whether the compiled routines know the layout: fused silu-gated weights without biases, in memory.

    ``apart``: they needn't be in memory now.
    """
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(up, torch.Tensor) and isinstance(down, torch.Tensor) and up.dim() == down.dim() == 3):
        return False
    gate = getattr(type(module), "_apply_gate", None)
    # Nothing else may act on the output: muse_spark's experts end with a norm of their own.
    alone = {name for name, _ in module.named_parameters()} == {"gate_up_proj", "down_proj"}
    plain_gate = gate is None or gate is hf_moe._default_apply_gate
    activation = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
    flags = (
        not getattr(module, "has_bias", False)
        and not getattr(module, "is_transposed", False)
        and getattr(module, "is_concatenated", True)
        and getattr(module, "has_gate", True)
    )
    in_memory = is_plain(up) and is_plain(down) and (apart or not (up.is_meta or down.is_meta))
    shapes = up.shape[0] == down.shape[0] and up.shape[1] == 2 * down.shape[2]  # not with identity experts
    return bool(
        alone and plain_gate and activation and flags and in_memory and shapes and up.device == down.device
    )
