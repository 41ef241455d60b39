"""Tiny random models of the families beyond tiny.py, with the paths at which an oracle finds their blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf

from moetrace import Case
from tests.engines import oracle
from tests.engines.tiny import COMMON, LAYERS, MOE, VOCAB, WINDOW

# Latent attention has one width for queries and keys, and none is the head's own.
LATENT: dict[str, Any] = {
    **{k: v for k, v in MOE.items() if k != "head_dim"}, "num_key_value_heads": 4, "kv_lora_rank": 16,
    "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 8,
    "n_shared_experts": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
# The indexer of sparse attention keeps every key of a prompt, but not every row of a tree.
INDEXER: dict[str, Any] = {"index_topk": 16, "index_head_dim": 8, "index_n_heads": 4}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
SHARED_INDEXER = ["full", "shared", "full", "shared"]
MIXED_MLP = {"mlp_layer_types": ["dense", *["sparse"] * (LAYERS - 1)]}
GRANITE = {
    **MOE, "num_local_experts": 8, "shared_intermediate_size": 24, "residual_multiplier": 0.5,
    "logits_scaling": 2.0, "embedding_multiplier": 3.0,
}  # fmt: skip
NO_IMAGE = {"depth": LAYERS + 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16}


@dataclass(frozen=True)
class Family:
    """How to make one: ``architecture`` of transformers, ``config``, and where layers and blocks are.

    ``tree``: whether the tree engine serves it; ``grow``: whether forks join at their layer; ``experts``:
    whether experts can be traced one by one.
    """

    architecture: str
    config: Callable[[], Any]
    layers: str = "model.layers"
    block: str = "mlp"
    eager: bool = False
    tree: bool = True
    grow: bool = True
    experts: bool = True


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _dbrx() -> Any:
    return tf.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=LAYERS,
        max_seq_len=128,
        vocab_size=VOCAB,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
    )


def llama4(**extra: Any) -> Any:
    return tf.Llama4TextConfig(
        **MOE, num_local_experts=8, intermediate_size_mlp=48, attention_chunk_size=WINDOW, **extra
    )


def _jetmoe() -> Any:
    common = _without(COMMON, "num_attention_heads", "head_dim")
    return tf.JetMoeConfig(**common, num_experts_per_tok=2, num_local_experts=8, kv_channels=8)


def _gemma4() -> Any:
    return tf.Gemma4TextConfig(
        **_without(MOE, "num_experts_per_tok"),
        **SLIDING,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB,
        num_kv_shared_layers=2,
        final_logit_softcapping=20.0,
    )


def minimax_m3(block_size: int = 4) -> Any:
    return tf.MiniMaxM3VLTextConfig(
        **_without(MOE, "moe_intermediate_size"),
        **MIXED_MLP,
        num_local_experts=8,
        dense_intermediate_size=48,
        shared_intermediate_size=24,
        rotary_dim=4,
        index_n_heads=2,
        index_head_dim=8,
        index_block_size=block_size,
        layer_types=["full_attention", "minimax_m3_sparse"] * (LAYERS // 2),
    )


def _longcat() -> Any:
    shared = _without(
        LATENT, "num_hidden_layers", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"
    )
    return tf.LongcatFlashConfig(
        **_without(shared, "intermediate_size"),
        num_layers=LAYERS,
        ffn_hidden_size=48,
        head_dim=8,
        moe_topk=2,
        zero_expert_num=2,
        expert_ffn_hidden_size=16,
    )


def _qwen3_vl() -> Any:
    vision = {
        **NO_IMAGE,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**MOE, "num_experts": 8, "rope_parameters": rope}
    return tf.Qwen3VLMoeConfig(text_config=text, vision_config=vision)


def _glm4v() -> Any:
    vision = {**NO_IMAGE, "out_hidden_size": 32}
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [1, 1, 0],
        "partial_rotary_factor": 0.5,
    }
    text = {**MOE, "n_routed_experts": 8, "n_shared_experts": 1, "rope_parameters": rope}
    return tf.Glm4vMoeConfig(text_config=text, vision_config=vision)


def _ernie_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {
        **_without(MOE, "num_experts_per_tok", "head_dim"), "moe_intermediate_size": [16, 16], "moe_k": 2,
        "moe_num_experts": 8, "rope_parameters": rope, **MIXED_MLP,
    }  # fmt: skip
    return tf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=NO_IMAGE)


def _step3p7() -> Any:
    text = {
        **MOE,
        "n_routed_experts": 8,
        "share_expert_dim": 24,
        "moe_router_scaling_factor": 1.5,
        **MIXED_MLP,
        **SLIDING,
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return tf.Step3p7Config(text_config=text, vision_config=vision)


def _ocr2() -> Any:
    text = {**_without(MOE, "head_dim"), "n_routed_experts": 8, "n_shared_experts": 1, **MIXED_MLP}
    sam = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 16}
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
    }
    return tf.DeepseekOcr2Config(
        text_config=text, vision_config={"sam_config": sam, "encoder_config": encoder}
    )


def _omni() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**MOE, "num_experts": 8, "rope_parameters": rope}
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    return tf.Qwen3OmniMoeThinkerConfig(
        text_config=text, vision_config=NO_IMAGE, audio_config=audio, vision_start_token_id=90
    )


def _muse_spark() -> Any:
    """Experts that end with a norm of their own, at another width than the model's."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    audio = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "out_hidden_size": 32}
    text = {**MOE, "num_local_experts": 8, "moe_hidden_size": 24, "sliding_window": WINDOW}
    return tf.MuseSparkConfig(
        text_config=text, vision_config={**small, "out_hidden_size": 32}, audio_config=audio
    )


def _deepseek_v4() -> Any:
    """Layers that route by token ids, and attention over compressed keys, which a tree has no rows for."""
    kinds = ["heavily_compressed_attention", "compressed_sparse_attention"] * (LAYERS // 2)
    return tf.DeepseekV4Config(
        **_without(MOE, "num_key_value_heads", "intermediate_size", "head_dim"), head_dim=16, q_lora_rank=16,
        n_routed_experts=8, layer_types=kinds, mlp_layer_types=["hash_moe", "hash_moe", "moe", "moe"],
        o_groups=2, o_lora_rank=8, index_n_heads=2, index_head_dim=8, index_topk=16, qk_rope_head_dim=8,
        sliding_window=8, hc_mult=2, num_nextn_predict_layers=0,
    )  # fmt: skip


BESIDE_VISION = "model.language_model.layers"
WIDE: dict[str, Family] = {
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM", lambda: tf.DeepseekV2Config(**LATENT, first_k_dense_replace=1)
    ),
    "deepseek_v32": Family(
        "DeepseekV32ForCausalLM",
        lambda: tf.DeepseekV32Config(**LATENT, **INDEXER, **MIXED_MLP, n_group=2, topk_group=1),
    ),
    "glm4_moe_lite": Family("Glm4MoeLiteForCausalLM", lambda: tf.Glm4MoeLiteConfig(**LATENT)),
    "glm_moe_dsa": Family(
        "GlmMoeDsaForCausalLM",
        lambda: tf.GlmMoeDsaConfig(**LATENT, **INDEXER, **MIXED_MLP, indexer_types=SHARED_INDEXER),
    ),
    "granitemoeshared": Family(
        "GraniteMoeSharedForCausalLM", lambda: tf.GraniteMoeSharedConfig(**GRANITE), block="block_sparse_moe"
    ),
    "granitemoe_swa": Family(
        "GraniteMoeSWAForCausalLM",
        lambda: tf.GraniteMoeSWAConfig(**GRANITE, **SLIDING),
        block="block_sparse_moe",
        eager=True,
    ),
    "hunyuan_v1_moe": Family(
        "HunYuanMoEV1ForCausalLM",
        lambda: tf.HunYuanMoEV1Config(**_without(MOE, "num_experts_per_tok"), num_experts=8, moe_topk=2),
    ),
    "ernie4_5_moe": Family(
        "Ernie4_5_MoeForCausalLM",
        lambda: tf.Ernie4_5_MoeConfig(**_without(MOE, "num_experts_per_tok"), moe_k=2, moe_num_experts=8),
    ),
    "dots1": Family(
        "Dots1ForCausalLM",
        lambda: tf.Dots1Config(
            **MOE, **SLIDING, n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1
        ),
    ),
    "minimax_m2": Family("MiniMaxM2ForCausalLM", lambda: tf.MiniMaxM2Config(**MOE, num_local_experts=8)),
    "phimoe": Family(
        "PhimoeForCausalLM", lambda: tf.PhimoeConfig(**MOE, num_local_experts=8, sliding_window=WINDOW)
    ),
    "llama4_text": Family("Llama4ForCausalLM", llama4, block="feed_forward"),
    "jetmoe": Family("JetMoeForCausalLM", _jetmoe, experts=False),
    "dbrx": Family("DbrxForCausalLM", _dbrx, layers="transformer.blocks", block="ffn"),
    "longcat_flash": Family("LongcatFlashForCausalLM", _longcat),
    "exaone_moe": Family("ExaoneMoeForCausalLM", lambda: tf.ExaoneMoeConfig(**MOE, **SLIDING, num_experts=8)),
    "afmoe": Family(
        "AfmoeForCausalLM",
        lambda: tf.AfmoeConfig(**MOE, **SLIDING, num_experts=8, num_shared_experts=1, route_scale=1.5),
    ),
    "cohere2_moe": Family(
        "Cohere2MoeForCausalLM",
        lambda: tf.Cohere2MoeConfig(**MOE, **SLIDING, num_experts=8, num_shared_experts=1, logit_scale=0.5),
    ),
    "gemma4_text": Family("Gemma4ForCausalLM", _gemma4, block="experts"),
    "mellum": Family("MellumForCausalLM", lambda: tf.MellumConfig(**MOE, **SLIDING, num_experts=8)),
    "mimo_v2_flash": Family(
        "MiMoV2FlashForCausalLM",
        lambda: tf.MiMoV2FlashConfig(**MOE, **SLIDING, n_routed_experts=8, v_head_dim=8),
        eager=True,
    ),
    "solar_open": Family(
        "SolarOpenForCausalLM",
        lambda: tf.SolarOpenConfig(**_without(MOE, "intermediate_size"), n_routed_experts=8),
    ),
    "hy_v3": Family("HYV3ForCausalLM", lambda: tf.HYV3Config(**MOE, num_experts=8)),
    "hy_v4": Family(
        "HYV4ForCausalLM",
        lambda: tf.HYV4Config(**LATENT, **INDEXER, **MIXED_MLP, head_dim=16, indexer_types=SHARED_INDEXER),
        eager=True,
    ),
    "laguna": Family(
        "LagunaForCausalLM",
        lambda: tf.LagunaConfig(
            **MOE,
            **SLIDING,
            num_experts=8,
            shared_expert_intermediate_size=24,
            moe_routed_scaling_factor=1.5,
        ),
    ),
    "axk1": Family("AXK1ForCausalLM", lambda: tf.AXK1Config(**LATENT, n_group=2, topk_group=1)),
    "axk2": Family("AXK2ForCausalLM", lambda: tf.AXK2Config(**LATENT, **INDEXER, gated_norm_rank=4)),
    "aria_text": Family(
        "AriaTextForCausalLM",
        lambda: tf.AriaTextConfig(
            **_without(COMMON, "head_dim"), moe_num_experts=8, moe_topk=2, moe_num_shared_experts=1
        ),
    ),
    "mistral4": Family("Mistral4ForCausalLM", lambda: tf.Mistral4Config(**LATENT)),
    "qwen3_vl_moe": Family("Qwen3VLMoeForConditionalGeneration", _qwen3_vl, layers=BESIDE_VISION),
    "qwen3_omni_moe": Family("Qwen3OmniMoeThinkerForConditionalGeneration", _omni),
    "glm4v_moe": Family("Glm4vMoeForConditionalGeneration", _glm4v, layers=BESIDE_VISION),
    "ernie4_5_vl_moe": Family("Ernie4_5_VLMoeForConditionalGeneration", _ernie_vl, layers=BESIDE_VISION),
    "step3p7": Family("Step3p7ForConditionalGeneration", _step3p7, layers=BESIDE_VISION),
    "deepseek_ocr2": Family("DeepseekOcr2ForConditionalGeneration", _ocr2, layers=BESIDE_VISION),
    "muse_spark": Family("MuseSparkForConditionalGeneration", _muse_spark, layers=BESIDE_VISION),
    "deepseek_v4": Family("DeepseekV4ForCausalLM", _deepseek_v4, eager=True, grow=False),
    "minimax_m3": Family("MiniMaxM3VLForCausalLM", minimax_m3),
}


def make_wide(family: str | Family, seed: int = 0) -> Any:
    """A random model with weights large enough for attention, routing and logits to be far from flat."""
    known = family_of(family)
    torch.manual_seed(seed)
    config = known.config()
    config._attn_implementation = "eager" if known.eager else "sdpa"
    model = getattr(tf, known.architecture)._from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(0.0, 0.25)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
        for name, table in model.state_dict().items():
            if name.endswith("tid2eid"):  # experts by token id
                table.copy_(torch.stack([torch.randperm(8)[: table.shape[1]] for _ in table]))
    return model


def family_of(family: str | Family) -> Family:
    """A family by its name in WIDE, or itself."""
    return WIDE[family] if isinstance(family, str) else family


def layers_of(model: Any, family: str | Family) -> list[Any]:
    """Decoder layers; some releases of transformers keep a thinker's one level further down."""
    try:
        return list(attrgetter(family_of(family).layers)(model))
    except AttributeError:
        return list(attrgetter("model.language_model.layers")(model))


def block_of(layer: Any, family: str | Family) -> Any:
    """The sparse block; in a dense layer of a sparse model its MLP."""
    name = family_of(family).block
    return getattr(layer, name) if hasattr(layer, name) else layer.mlp


class Plain:
    """A model as oracle.py expects it: blocks at ``model.layers[i].mlp``, and a text config."""

    def __init__(self, model: Any, family: str | Family) -> None:
        blocks = [block_of(layer, family) for layer in layers_of(model, family)]
        self.model = SimpleNamespace(layers=[SimpleNamespace(mlp=block) for block in blocks])
        self.config = model.config.get_text_config(decoder=True)
        self.get_input_embeddings = model.get_input_embeddings
        self._call = model

    def __call__(self, **inputs: Any) -> Any:
        return self._call(**inputs)


def experts_of(block: Any) -> Any:
    """The experts module of a block, which may be the block itself."""
    found = [module for name, module in block.named_modules() if name in ("experts", "text_moe.experts")]
    return found[0] if found else block


def subject_noise(plain: Plain, case: Case) -> torch.Tensor:
    start, stop = case.subject
    generator = torch.Generator().manual_seed(case.case_id)
    noise = torch.randn(stop - start, plain.config.hidden_size, generator=generator)
    return noise * (3.0 * oracle.embedding_output_std(plain))


def without_expert(
    plain: Plain, case: Case, layer: int, noise: Any, silent: int | None
) -> tuple[torch.Tensor, list[int]]:
    """A block's output at the last token with one expert's weight at 0, and the experts it is routed to."""
    routed: list[int] = []

    def silence(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
        if "top_k_index" not in given:  # llama4: every expert's inputs, weighed by the router
            inputs = given["hidden_states"].unflatten(0, (plain.config.num_local_experts, -1)).clone()
            routed.extend(inputs[:, -1].any(-1).nonzero().flatten().tolist())
            inputs[[expert == silent for expert in range(len(inputs))], -1] = 0.0
            return (), {"hidden_states": inputs.flatten(0, 1)}
        routed.extend(given["top_k_index"][-1].tolist())
        weights = given["top_k_weights"].clone()
        weights[-1, [expert == silent for expert in routed]] = 0.0
        return (), {**given, "top_k_weights": weights}

    kept: dict[int, torch.Tensor] = {}
    experts = experts_of(plain.model.layers[layer].mlp)
    handle = experts.register_forward_pre_hook(silence, with_kwargs=True)
    try:
        oracle.run(plain, case, noise, keep=kept)
    finally:
        handle.remove()
    return kept[layer][-1], routed


def expert_rescue(model: Any, family: str | Family, case: Case, layer: int) -> dict[int, float]:
    """Rescue of every clean-active expert of a layer: equations 5 and 6 in whole forward passes."""
    plain = Plain(model, family)
    noise = subject_noise(plain, case)
    whole, routed = without_expert(plain, case, layer, None, None)
    row, noised = without_expert(plain, case, layer, noise, None)
    start = oracle.run(plain, case, noise)
    found = {}
    for expert in routed:
        delta = whole - without_expert(plain, case, layer, None, expert)[0]
        if expert in noised:
            delta = delta - (row - without_expert(plain, case, layer, noise, expert)[0])
        found[expert] = oracle.run(plain, case, noise, (layer, row + delta, -1)) - start
    return found
