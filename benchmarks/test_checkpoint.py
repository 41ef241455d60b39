"""The synthetic checkpoint is one that transformers loads, in the hub's layout."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from benchmarks.checkpoint import SPREAD, shape_of_qwen3, write_checkpoint
from moetrace import load_model


def small() -> Qwen3MoeConfig:
    config = shape_of_qwen3(layers=3)
    config.vocab_size, config.hidden_size, config.moe_intermediate_size, config.num_experts = 500, 64, 32, 16
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    return config


def test_transformers_loads_it_and_it_can_be_streamed(tmp_path):
    total = write_checkpoint(tmp_path, small(), shard=300_000, drawn=10_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert len(set(index["weight_map"].values())) > 1
    assert "model.layers.2.mlp.experts.15.down_proj.weight" in index["weight_map"]

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype is torch.bfloat16
    assert total == sum(2 * weight.numel() for weight in model.parameters())
    experts = model.model.layers[1].mlp.experts.gate_up_proj.float()
    assert abs(experts.std() / SPREAD - 1) < 0.05
    assert not experts[0].equal(experts[1])

    streamed, _ = load_model(tmp_path, stream=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found, expected = streamed(input_ids=ids).logits, model(input_ids=ids).logits
    assert found.isfinite().all()
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_the_real_shape():
    from benchmarks.checkpoint import _tensors

    assert sum(tensor.size for tensor in _tensors(shape_of_qwen3())) == 2 * 30_532_122_624
