"""(d) TransformerLens' TransformerBridge: ``run_with_cache`` once, then ``run_with_hooks`` per patch.

After "Activation patching" of "The Hook System"
(https://transformerlensorg.github.io/TransformerLens/content/hook_system.html); the bridge is built by
``build_bridge_from_module``, its documented way for a model that is already loaded, since
``TransformerBridge.boot_transformers`` asks the hub for a tokenizer. The bridge replaces submodules and sets
eager attention in place, so it is given a twin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from benchmarks.model import Case, logit_difference
from benchmarks.peers import Sweep

requirement = "transformer_lens"


def prepare(model: Qwen3MoeForCausalLM) -> Sweep:
    """The measured function, on a ``TransformerBridge`` around ``model``."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(model, "Qwen3MoeForCausalLM", hf_config=model.config)
    names = [f"blocks.{layer}.mlp.hook_out" for layer in range(len(model.model.layers))]

    def add_noise(case: Case, noise: Tensor) -> Any:
        start, stop = case.subject

        def hook(activation: Tensor, hook: Any) -> Tensor:
            activation[:, start:stop] += noise
            return activation

        return hook

    def overwrite_final(value: Tensor) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            activation[:, -1] = value
            return activation

        return hook

    @torch.no_grad()
    def sweep(cases: Sequence[Case], noise: Mapping[int, Tensor]) -> np.ndarray:
        rescue = np.empty((len(cases), len(names)), dtype=np.float32)
        for row, case in enumerate(cases):
            ids = torch.tensor([case.input_ids])
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names)
            noising = ("embed.hook_out", add_noise(case, noise[case.case_id]))
            noised = logit_difference(bridge.run_with_hooks(ids, fwd_hooks=[noising])[0, -1], case)
            for layer, name in enumerate(names):
                patching = (name, overwrite_final(cache[name][:, -1]))
                logits = bridge.run_with_hooks(ids, fwd_hooks=[noising, patching])
                rescue[row, layer] = logit_difference(logits[0, -1], case) - noised
        return rescue

    return sweep
