"""Tiny random models of the families, and cases for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from moetrace import Case

VOCAB = 97
LAYERS = 4
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE: dict[str, Any] = {**COMMON, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = 6


def _deepseek(config: type, **extra: Any) -> Any:
    return config(
        **{**MOE, "num_key_value_heads": 4, "head_dim": 8}, n_routed_experts=8, n_shared_experts=1, n_group=2,
        topk_group=1, first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=8, routed_scaling_factor=1.5, **extra,
    )  # fmt: skip


def _gpt_oss() -> Any:
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return tf.GptOssConfig(
        **MOE, num_local_experts=8, sliding_window=WINDOW, layer_types=kinds, attn_implementation="eager"
    )


def _jamba() -> Any:
    return tf.JambaConfig(
        **COMMON, num_experts=8, num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2,
        mamba_dt_rank=4, use_mamba_kernels=False,
    )  # fmt: skip


def _gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return tf.Gemma3TextConfig(
        **COMMON,
        sliding_window=WINDOW,
        layer_types=kinds,
        query_pre_attn_scalar=8,
        final_logit_softcapping=20.0,
    )


SPARSE: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**MOE, num_experts=8, norm_topk_prob=True),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(**MOE, num_experts=8, shared_expert_intermediate_size=24),
    "mixtral_window": lambda: tf.MixtralConfig(**MOE, num_local_experts=8, sliding_window=WINDOW),
    "olmoe": lambda: tf.OlmoeConfig(**MOE, num_experts=8),
    "deepseek_v3": lambda: _deepseek(tf.DeepseekV3Config),
    "glm4_moe": lambda: tf.Glm4MoeConfig(
        **MOE, n_routed_experts=8, n_shared_experts=1, n_group=2, topk_group=1, first_k_dense_replace=1
    ),
    "gpt_oss": _gpt_oss,
    "granitemoe": lambda: tf.GraniteMoeConfig(
        **MOE, num_local_experts=8, residual_multiplier=0.5, logits_scaling=2.0, embedding_multiplier=3.0
    ),
    "flex_olmo": lambda: tf.FlexOlmoConfig(**MOE, num_experts=8),
}
DENSE: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: tf.Qwen3Config(**COMMON),
    "llama": lambda: tf.LlamaConfig(**COMMON),
    "gemma3": _gemma3,
}
OTHER: dict[str, Callable[[], Any]] = {
    "jamba": _jamba,
    "doge": lambda: tf.DogeConfig(**COMMON, is_moe=True, num_experts=16, num_experts_per_tok=2),
}
FAMILIES = {**SPARSE, **DENSE, **OTHER}


def make_model(family: str, seed: int = 0) -> torch.nn.Module:
    """A random model with weights large enough for attention, routing and logits to be far from flat."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    implementation = "eager" if family == "gpt_oss" else "sdpa"
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
            elif "A_log" not in name and "dt" not in name and name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return model


def make_cases(n: int = 5, seed: int = 0, longest: int = 14) -> list[Case]:
    """Cases of unequal lengths, with prefixes of 0 and more tokens, longer than the window."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for index in range(n):
        length = longest - (index * 2) % 7
        start = index % 4
        stop = start + 1 + index % 3
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        cases.append(Case(ids, (start, stop), 10 + index, 40 + index, 100 + index, f"P{index % 2}"))
    return cases
