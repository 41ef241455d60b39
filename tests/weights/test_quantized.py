"""fp8 and MXFP4 checkpoints are dequantised a layer at a time, by transformers' own conversion."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace.errors import ModelError
from moetrace.models.anatomy import decoder_layers
from tests.engines.tiny import make_model
from tests.weights.folders import edit_json, load_plain, load_streamed, logits, rewrite, same, save, state


def check(made, folder):
    plain = load_plain(made, folder)
    streamed, source = load_streamed(made, folder)
    for number, (layer, expected) in enumerate(
        zip(decoder_layers(streamed), decoder_layers(plain), strict=True)
    ):
        assert any(weight.is_meta for weight in layer.parameters())
        source.enter(number)
        found, wanted = state(layer), state(expected)
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name]) for name in found)
        source.leave(number)
    assert logits(streamed).equal(logits(plain))


def test_fp8(tmp_path):
    made = save("qwen3_moe", tmp_path)

    def quantise(tensors):
        for name in list(tensors):
            if tensors[name].dim() == 2 and "proj" in name:
                scale = torch.rand(tensors[name].shape[0] // 8, tensors[name].shape[1] // 8) + 0.5
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)
                tensors[f"{name}_scale_inv"] = scale

    rewrite(tmp_path, quantise)
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    edit_json(tmp_path / "config.json", quantization_config=quantization)
    check(made, tmp_path)


def test_mxfp4(tmp_path):
    config = make_model("gpt_oss").config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 32, 16
    made = tf.GptOssForCausalLM._from_config(config, attn_implementation="eager").to(torch.bfloat16).eval()
    made.save_pretrained(tmp_path)

    def quantise(tensors):
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, rows, columns = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.randint(118, 124, blocks.shape[:-1], dtype=torch.uint8)

    rewrite(tmp_path, quantise)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    check(made, tmp_path)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "something new"])
def test_other_methods_are_refused_by_name(method, tmp_path):
    save("qwen3_moe", tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(ModelError, match=f"(?s){method}.*(plain|stream)"):
        mt.load_model(str(tmp_path), stream=True)
