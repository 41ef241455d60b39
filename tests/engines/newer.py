"""Tiny random models of the families that came after those of wide.py."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.engines.tiny import LAYERS, MOE, VOCAB, WINDOW
from tests.engines.wide import (
    BESIDE_VISION,
    INDEXER,
    LATENT,
    MIXED_MLP,
    SHARED_INDEXER,
    SLIDING,
    Family,
)


def _but(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _dots3() -> Any:
    """Layers with a window have heads, ranks and widths of their own."""
    window = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "head_dim": 16,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    kinds = ["indexed_attention", "sliding_attention"] * (LAYERS // 2)
    return tf.Dots3NoteTextConfig(
        **LATENT, **INDEXER, **MIXED_MLP, head_dim=16, sliding_window=WINDOW, layer_types=kinds,
        shared_experts_intermediate_size=24, **{f"swa_{name}": value for name, value in window.items()},
    )  # fmt: skip


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _mistral_large4() -> Any:
    text = {**_but(LATENT, "q_lora_rank"), **INDEXER, **MIXED_MLP, "indexer_types": SHARED_INDEXER}
    vision = {**SMALL, "model_type": "pixtral", "intermediate_size": 16, "head_dim": 8}
    return tf.MistralLarge4Config(text_config=text, vision_config=vision)


def _hy_v4_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {
        **LATENT,
        **INDEXER,
        **MIXED_MLP,
        "head_dim": 16,
        "indexer_types": SHARED_INDEXER,
        "rope_parameters": rope,
    }
    vision = {**SMALL, "intermediate_size": 16, "out_hidden_size": 32}
    return tf.HYV4VLConfig(text_config=text, vision_config=vision)


def _unlimited_ocr() -> Any:
    text = {
        **_but(MOE, "head_dim"),
        **MIXED_MLP,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "sliding_window": WINDOW,
    }
    sam = {**SMALL, "output_channels": 16, "mlp_dim": 16, "downsample_channels": [16, 16]}
    encoder = {**SMALL, "intermediate_size": 16}
    vision = {"sam_config": sam, "encoder_config": encoder}
    return tf.UnlimitedOcrConfig(text_config=text, vision_config=vision)


def _inkling2_loop() -> Any:
    """The middle two layers run three times."""
    return tf.Inkling2LoopTextConfig(
        **_but(MOE, "intermediate_size"), n_routed_experts=8, sliding_window_size=WINDOW,
        layer_types=["hybrid", "hybrid_sliding"] * (LAYERS // 2), swa_num_attention_heads=4,
        swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4, rel_extent=8, n_layers_per_attn_res_block=1,
        unpadded_vocab_size=VOCAB, loop_layer_index_start=1, loop_layer_index_end=3, loop_gate_rank=4,
    )  # fmt: skip


NEWER: dict[str, Family] = {
    "beam": Family(
        "BeamForCausalLM",
        lambda: tf.BeamConfig(
            **MOE, **SLIDING, **MIXED_MLP, num_experts=8, n_group=2, topk_group=1, routed_scaling_factor=1.5
        ),
    ),
    "dots3_note": Family("Dots3NoteForCausalLM", _dots3),
    "flint": Family(
        "FlintForCausalLM",
        lambda: tf.FlintConfig(
            **MOE, **SLIDING, num_experts=8, shared_expert_intermediate_size=24, mlp_only_layers=[0]
        ),
        eager=True,
    ),
    "hy_v4_vl": Family("HYV4VLForConditionalGeneration", _hy_v4_vl, layers=BESIDE_VISION, eager=True),
    "inkling2_loop": Family("Inkling2LoopForCausalLM", _inkling2_loop, eager=True, tree=False),
    "kolibri1": Family(
        "Kolibri1ForCausalLM",
        lambda: tf.Kolibri1Config(
            **_but(MOE, "intermediate_size"), **SLIDING, num_experts=8, shared_expert_intermediate_size=24
        ),
    ),
    "mistral_large4": Family("MistralLarge4ForConditionalGeneration", _mistral_large4, layers=BESIDE_VISION),
    "sarvam_mla": Family(
        "DeepseekV3ForCausalLM", lambda: tf.SarvamMLAConfig(**LATENT, first_k_dense_replace=1)
    ),
    "sarvam_moe": Family(
        "Glm4MoeForCausalLM",
        lambda: tf.SarvamMoEConfig(**MOE, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1),
    ),
    "unlimited_ocr": Family("UnlimitedOcrForConditionalGeneration", _unlimited_ocr, layers=BESIDE_VISION),
}
