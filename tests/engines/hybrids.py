"""Tiny random models whose layers mix tokens otherwise than by masked attention, some or all of them."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.engines.tiny import FAMILIES as TINY
from tests.engines.tiny import LAYERS, MOE, VOCAB, WINDOW
from tests.engines.wide import LATENT, MIXED_MLP, NO_IMAGE, WIDE, Family

MIXED = ["linear_attention", "full_attention"] * (LAYERS // 2)
INDEXED = ["linear_attention", "indexed_attention"] * (LAYERS // 2)
HYBRID = ["hybrid", "hybrid_sliding"] * (LAYERS // 2)
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
ROPE: dict[str, Any] = {
    "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5,
}  # fmt: skip


def _but(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _qwen3_5() -> Any:
    return tf.Qwen3_5MoeTextConfig(
        **_but(MOE, "intermediate_size"), **DELTA, num_experts=8, shared_expert_intermediate_size=24,
        layer_types=MIXED, rope_parameters=ROPE,
    )  # fmt: skip


def _qwen4() -> Any:
    """With per-layer embeddings of n-grams, and an indexer that reads compressed keys."""
    return tf.Qwen4ExpTextConfig(
        **_but(MOE, "intermediate_size"), **DELTA, num_experts=8, shared_expert_intermediate_size=24,
        layer_types=INDEXED, rope_parameters=ROPE, hc_count=2, hc_lowrank=8, ple_layer_ids=[3],
        ple_embed_dim=32, heads_per_ngram=2, ngram_vocab_size_base=50, make_ngram_vocab_size_divisible_by=2,
        split_ngram_parts=2,
        indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=4,
    )  # fmt: skip


def _granite() -> Any:
    return tf.GraniteMoeHybridConfig(
        **_but(MOE, "moe_intermediate_size", "head_dim"), num_local_experts=8, shared_intermediate_size=24,
        residual_multiplier=0.5, logits_scaling=2.0, embedding_multiplier=3.0, layer_types=MIXED,
        mamba_n_heads=8, mamba_d_state=8, mamba_d_head=8, mamba_chunk_size=8,
    )  # fmt: skip


def _nemotron() -> Any:
    kinds = ["linear_attention", "moe", "full_attention", "moe"]
    return tf.NemotronHConfig(
        **_but(MOE, "num_hidden_layers"), layers_block_type=kinds, ssm_state_size=8, mamba_num_heads=8,
        mamba_head_dim=8, n_groups=2, chunk_size=8, n_routed_experts=8,
        moe_shared_expert_intermediate_size=24, use_mamba_kernels=False,
    )  # fmt: skip


def _kimi() -> Any:
    return tf.KimiLinearConfig(
        **_but(LATENT, "n_routed_experts", "q_lora_rank"), **MIXED_MLP, num_local_experts=8,
        layer_types=MIXED, linear_head_dim=8, linear_num_heads=4,
    )  # fmt: skip


def _bailing() -> Any:
    return tf.BailingHybridConfig(
        **_but(LATENT, "n_routed_experts"), **MIXED_MLP, num_local_experts=8, layer_types=MIXED, head_dim=8,
        n_group=2, topk_group=1,
    )  # fmt: skip


def _glm5() -> Any:
    text = {
        **_but(LATENT, "qk_rope_head_dim"), **MIXED_MLP, "qk_rope_head_dim": 0, "layer_types": INDEXED,
        "linear_head_dim": 8, "linear_num_heads": 4, "index_topk": 16, "index_head_dim": 8,
        "index_n_heads": 2, "index_kpool": 4, "hc_mult": 2,
    }  # fmt: skip
    return tf.Glm5NextConfig(text_config=text, vision_config={**NO_IMAGE, "out_hidden_size": 32})


def _zaya() -> Any:
    return tf.ZayaConfig(
        **{**_but(MOE, "intermediate_size"), "num_experts_per_tok": 1}, num_experts=8, layer_types=HYBRID,
        sliding_window=WINDOW, router_hidden_size=16,
    )  # fmt: skip


def _inkling() -> Any:
    return tf.InklingTextConfig(
        **MOE, n_routed_experts=8, n_shared_experts=1, layer_types=HYBRID, sliding_window_size=WINDOW,
        swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=8,
        logits_mup_width_multiplier=1.0, **MIXED_MLP,
    )  # fmt: skip


def _inkling2() -> Any:
    return tf.Inkling2TextConfig(
        **_but(MOE, "intermediate_size"), n_routed_experts=8, layer_types=HYBRID, sliding_window_size=WINDOW,
        swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=8,
        n_layers_per_attn_res_block=2, unpadded_vocab_size=VOCAB,
    )  # fmt: skip


HYBRIDS: dict[str, Family] = {
    "qwen3_next": Family(
        "Qwen3NextForCausalLM",
        lambda: tf.Qwen3NextConfig(
            **MOE, **DELTA, num_experts=8, shared_expert_intermediate_size=24, layer_types=MIXED
        ),
    ),
    "qwen3_5_moe": Family("Qwen3_5MoeForCausalLM", _qwen3_5),
    "qwen4_exp": Family("Qwen4ExpForCausalLM", _qwen4),
    "granitemoehybrid": Family("GraniteMoeHybridForCausalLM", _granite, block="block_sparse_moe"),
    "minimax": Family(
        "MiniMaxForCausalLM",
        lambda: tf.MiniMaxConfig(
            **_but(MOE, "moe_intermediate_size"), num_local_experts=8, layer_types=MIXED, block_size=4
        ),
    ),
    "jamba": Family("JambaForCausalLM", TINY["jamba"], block="feed_forward"),
    "lfm2_moe": Family(
        "Lfm2MoeForCausalLM",
        lambda: tf.Lfm2MoeConfig(
            **_but(MOE, "head_dim"), num_experts=8, num_dense_layers=1,
            layer_types=["conv", "full_attention"] * (LAYERS // 2),
        ),
        block="feed_forward",
    ),
    "nemotron_h": Family("NemotronHForCausalLM", _nemotron, block="mixer"),
    "kimi_linear": Family("KimiLinearForCausalLM", _kimi),
    "zaya": Family("ZayaForCausalLM", _zaya),
    "inkling": Family("InklingForCausalLM", _inkling),
    "inkling2": Family("Inkling2ForCausalLM", _inkling2, eager=True),
    "bailing_hybrid": Family("BailingHybridForCausalLM", _bailing),
    "lara_mini": Family(
        "LaraMiniForCausalLM",
        lambda: tf.LaraMiniConfig(
            **_but(MOE, "intermediate_size"), **DELTA, num_experts=8, shared_expert_intermediate_size=24,
            layer_types=["linear_attention", "sliding_attention", "linear_attention", "full_attention"],
            sliding_window=WINDOW,
        ),
    ),
    "glm5_next": Family("Glm5NextForConditionalGeneration", _glm5, layers="model.language_model.layers"),
    "deepseek_v4": WIDE["deepseek_v4"],
    "minimax_m3": WIDE["minimax_m3"],
}  # fmt: skip
