"""Quantised models, of each kind that this machine has packages for: served, or refused by name."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

import moetrace as mt
from moetrace import errors
from moetrace.corruptions import embedding_std
from moetrace.models.anatomy import find_anatomy
from moetrace.models.quantised import explained, method_of
from moetrace.models.readout import plain_weight
from moetrace.models.state import fingerprint
from moetrace.trace.provenance import model_facts
from moetrace.weights.tensors import few_entries, is_plain, parts_of
from tests.engines.tiny import FAMILIES, MOE, make_cases, make_model

CASES = make_cases(3)
pytestmark = pytest.mark.filterwarnings("ignore::moetrace.errors.QuantizationWarning")


def wide_model() -> Any:
    """Wide enough for blocks of 32 codes."""
    torch.manual_seed(0)
    config = tf.Qwen3MoeConfig(
        **{**MOE, "hidden_size": 64, "head_dim": 32, "moe_intermediate_size": 64}, num_experts=8
    )
    model = tf.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.15)
    return model


def add_tokenizer(folder: Path) -> None:
    mt.load_demo()[1].save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    wide_model().save_pretrained(folder)
    add_tokenizer(folder)
    return folder


def clean_of(model: Any, case: mt.Case) -> float:
    """What the model itself says of a case."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([case.input_ids])).logits[0, -1].double()
    return float(logits[case.true_id] - logits[case.foil_id])


def is_served(model: Any, engine: str, note: str, within: float = 1e-4) -> None:
    """Both engines agree with each other and with the model; a second trace and a run folder work."""
    auto = mt.trace_experts(model, CASES)
    plain = mt.trace_experts(model, CASES, engine="reference")
    assert auto.provenance["engine"] == engine
    assert note in auto.provenance["quantization"]
    np.testing.assert_allclose(auto.effects, plain.effects, atol=max(2e-5, auto.noise_floor))
    for index, case in enumerate(CASES):
        assert abs(plain.cases.clean[index] - clean_of(model, case)) < within
    assert np.abs(plain.effects).max() > 0.02
    mt.trace_layers(model, CASES)


KINDS = {
    "Int8WeightOnlyConfig": ("tree", 1e-4),
    "Float8WeightOnlyConfig": ("tree", 1e-4),
    # Activations are coded too: what rounds otherwise by 1e-7 may get another code, and the single pass does.
    "Int8DynamicActivationInt8WeightConfig": ("reference", 0.05),
}


@pytest.mark.parametrize("kind", KINDS)
def test_torchao(checkpoint: Path, kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = tf.TorchAoConfig(getattr(quantization, kind)())
    with pytest.warns(errors.QuantizationWarning, match=r"experts are not quantised \(float32\)"):
        model, _ = mt.load_model(str(checkpoint), dtype="float32", quantization_config=config)
    assert any(not is_plain(weight) for weight in model.parameters())
    engine, within = KINDS[kind]
    is_served(model, engine, "torchao; routed experts are not quantised", within)


def test_torchao_of_the_whole_model() -> None:
    """Also the head, whose rows can't be taken then."""
    quantization = pytest.importorskip("torchao.quantization")
    model = wide_model()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert plain_weight(model.lm_head) is None
    is_served(model, "tree", "torchao")
    found = mt.trace_layers(model, CASES)
    assert found.provenance["readout_by"] == "own head"
    assert "its head isn't a plain matrix" in found.provenance["direct"]


def test_torchao_of_experts() -> None:
    """They have products one by one, and grouped ones not."""
    quantization = pytest.importorskip("torchao.quantization")
    model, kind = wide_model(), quantization.Int8WeightOnlyConfig()
    places = {rf"re:.*experts\.{name}": kind for name in ("gate_up_proj", "down_proj")}
    quantization.quantize_(model, quantization.FqnToConfig(places), filter_fn=None)
    assert model.config._experts_implementation == "grouped_mm"
    with torch.no_grad(), pytest.raises(NotImplementedError):
        model(input_ids=torch.tensor([CASES[0].input_ids]))
    model.set_experts_implementation("eager")
    clean = [clean_of(model, case) for case in CASES]
    model.set_experts_implementation("grouped_mm")
    found = mt.trace_experts(model, CASES)
    plain = mt.trace_experts(model, CASES, engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=2e-5)
    np.testing.assert_allclose(found.cases.clean, clean, atol=1e-4)
    assert found.provenance["quantization"] == "torchao; routed experts are quantised"
    assert found.provenance["engine"] == "tree"
    assert model.config._experts_implementation == "grouped_mm"


def test_torchao_in_half_precision(checkpoint: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = tf.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model, _ = mt.load_model(str(checkpoint), dtype="bfloat16", quantization_config=config)
    found = mt.trace_layers(model, CASES)
    for index, case in enumerate(CASES):
        assert abs(found.cases.clean[index] - clean_of(model, case)) < 0.1


def test_torchao_weights_that_need_other_machines_are_refused(checkpoint: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    config = tf.TorchAoConfig(quantization.Int4WeightOnlyConfig(group_size=32))
    if importlib.util.find_spec("mslk") is not None:
        pytest.skip("the package for 4-bit weights is here")
    with pytest.raises(errors.QuantizationError, match=r"with torchao weights: .*Int8WeightOnlyConfig"):
        mt.load_model(str(checkpoint), dtype="bfloat16", quantization_config=config)


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(checkpoint: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    config = tf.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    with pytest.warns(errors.QuantizationWarning, match=r"bitsandbytes; routed experts are not quantised"):
        model, _ = mt.load_model(str(checkpoint), dtype="float32", quantization_config=config)
    found = mt.trace_experts(model, CASES)
    plain = mt.trace_experts(model, CASES, engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=max(0.05, found.noise_floor))
    assert np.abs(plain.effects).max() > 0.02


def test_fp8_is_unpacked(tmp_path: Path) -> None:
    """A hub checkpoint in FP8, experts in tensors of their own, on a machine that can't compute in it."""
    plain = make_model("qwen3_moe").bfloat16()
    plain.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    for name, weight in list(kept.items()):
        if "proj" in name:
            scale = weight.float().abs().max() / 448
            code = (weight.float() / scale).to(torch.float8_e4m3fn)
            kept[name], kept[f"{name}_scale_inv"] = code, scale.reshape(1, 1)
            given = (code.float() * scale).bfloat16()
            _put(plain, name, given)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _say(tmp_path, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"})
    config = tf.FineGrainedFP8Config(dequantize=True)
    model, _ = mt.load_model(str(tmp_path), dtype="bfloat16", quantization_config=config)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    expected, found = mt.trace_experts(plain, CASES), mt.trace_experts(model, CASES)
    np.testing.assert_allclose(found.effects, expected.effects, atol=max(0.05, 2 * expected.noise_floor))


def _put(model: Any, name: str, weight: torch.Tensor) -> None:
    """Into a model with fused experts what a checkpoint has for one of them."""
    if ".experts." not in name:
        model.get_parameter(name).data.copy_(weight)
        return
    path, rest = name.split(".experts.")
    number, kind, _ = rest.split(".")
    experts = model.get_submodule(f"{path}.experts")
    if kind == "down_proj":
        experts.down_proj.data[int(number)] = weight
    else:
        half = experts.gate_up_proj.shape[1] // 2
        rows = slice(0, half) if kind == "gate_proj" else slice(half, None)
        experts.gate_up_proj.data[int(number), rows] = weight


def _say(folder: Path, quantization: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))


def test_quantising_to_fp8_without_a_gpu_is_refused(checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(errors.QuantizationError, match=r"with fp8 weights: No GPU.*dequantize=True"):
        mt.load_model(str(checkpoint), quantization_config=tf.FineGrainedFP8Config())


def test_mxfp4_is_unpacked(tmp_path: Path) -> None:
    config = FAMILIES["gpt_oss"]()
    config.hidden_size = config.intermediate_size = 64
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").bfloat16()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0.0, 0.2)
    model.save_pretrained(tmp_path)
    add_tokenizer(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    for name in [name for name in kept if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inner, outer = kept.pop(name).shape
        kept[f"{name}_blocks"] = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8)
        kept[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 122, dtype=torch.uint8)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _say(tmp_path, {"quant_method": "mxfp4"})
    given = {"quantization_config": tf.Mxfp4Config(dequantize=True), "attn_implementation": "eager"}
    loaded, _ = mt.load_model(str(tmp_path), dtype="bfloat16", **given)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    found = mt.trace_experts(loaded, CASES)
    plain = mt.trace_experts(loaded, CASES, engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=max(0.05, 2 * found.noise_floor))


@pytest.mark.parametrize("packed", [False, True])
def test_gguf_files_are_unpacked(tmp_path: Path, packed: bool) -> None:
    """Exactly the model that was written, or the one that its 8-bit codes stand for."""
    gguf = pytest.importorskip("gguf")
    config = tf.Qwen3MoeConfig(
        # transformers doesn't read the experts' width and takes its default
        **{**MOE, "hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 768},
        num_experts=4,
        norm_topk_prob=True,
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0.0, 0.15)
    _write_gguf(gguf, model, tmp_path / "model.gguf", packed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.QuantizationWarning)
        loaded, tokenizer = mt.load_model(str(tmp_path), gguf_file="model.gguf", dtype="float32")
    assert tokenizer is not None
    expected, found = mt.trace_experts(model, CASES), mt.trace_experts(loaded, CASES)
    np.testing.assert_allclose(found.effects, expected.effects, atol=2e-5)
    assert found.provenance["quantization"] == "gguf, unpacked to float32"
    assert found.provenance["engine"] == "tree"


_GGUF = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
}  # fmt: skip


def _write_gguf(gguf: Any, model: Any, path: Path, packed: bool) -> None:
    """What llama.cpp's converter writes. The model's packed weights become those that the codes stand for."""
    config, writer = model.config, gguf.GGUFWriter(str(path), "qwen3moe")
    numbers = {
        "context_length": config.max_position_embeddings, "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads, "head_count_kv": config.num_key_value_heads,
        "key_length": config.head_dim, "layer_norm_rms_eps": config.rms_norm_eps, "rope_freq_base": 10000.0,
        "expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok,
        "vocab_size": config.vocab_size, "bos_token_id": 1, "eos_token_id": 2, "name": "tiny",
        "tokenizer_model": "gpt2", "tokenizer_pre": "qwen2", "token_merges": ["t 0"],
        "token_list": ["t", "0", "t0", *(f"t{index}" for index in range(3, config.vocab_size))],
    }  # fmt: skip
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(value)

    def add(name: str, weight: torch.Tensor) -> None:
        values = weight.detach().numpy()
        if packed and values.ndim > 1 and values.shape[-1] % 32 == 0 and "inp" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            codes = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, codes, raw_dtype=kind)
            weight.data.copy_(torch.from_numpy(gguf.quants.dequantize(codes, kind)))
        else:
            writer.add_tensor(name, values)

    for name, weight in model.state_dict().items():
        if not name.startswith("model.layers."):
            add(f"{_GGUF[name.removesuffix('.weight')]}.weight", weight)
            continue
        _, _, layer, rest = name.split(".", 3)
        if rest == "mlp.experts.gate_up_proj":
            for kind, part in zip(("gate", "up"), weight.chunk(2, dim=1), strict=True):
                own = part.contiguous()
                add(f"blk.{layer}.ffn_{kind}_exps.weight", own)
                part.data.copy_(own)
        elif rest == "mlp.experts.down_proj":
            add(f"blk.{layer}.ffn_down_exps.weight", weight)
        else:
            add(f"blk.{layer}.{_GGUF[rest.removesuffix('.weight')]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_missing_package_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.quantizers import quantizer_bnb_8bit

    monkeypatch.setattr(quantizer_bnb_8bit, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(errors.QuantizationError, match=r"with bitsandbytes weights: .*pip install"):
        mt.load_model(str(checkpoint), quantization_config=tf.BitsAndBytesConfig(load_in_8bit=True))


class Codes(torch.Tensor):
    """Codes and a scale, which torch sees as float32 numbers that it can't get at."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of codes")


def codes(weight: torch.Tensor) -> nn.Parameter:
    scale = weight.abs().max() / 127
    return nn.Parameter(Codes((weight / scale).round().to(torch.int8), scale), requires_grad=False)


def test_no_subclass_is_read_as_if_it_were_numbers() -> None:
    model = make_model("qwen3_moe")
    experts, embedding = model.model.layers[1].mlp.experts, model.model.embed_tokens
    for module, name in ((experts, "down_proj"), (model.lm_head, "weight"), (embedding, "weight")):
        module._parameters[name] = codes(getattr(module, name).detach())
    assert not is_plain(model.lm_head.weight)
    assert plain_weight(model.lm_head) is None
    sites = find_anatomy(model).sites
    assert [site.expert_layout is not None for site in sites] == [True, False, True, True]
    assert len(list(parts_of(experts.down_proj))) == 2
    before, facts = fingerprint(model), model_facts(model)
    entries = few_entries(experts.down_proj)
    experts.down_proj.codes[0, 0, 0] += 1
    assert few_entries(experts.down_proj) != entries
    assert fingerprint(model) != before
    assert model_facts(model) != facts
    embedding.forward = lambda ids: torch.ones(*ids.shape, 32) * ids.unsqueeze(-1)
    expected = torch.arange(97.0).repeat_interleave(32).std()
    assert abs(embedding_std(embedding, 97, torch.device("cpu")) - float(expected)) < 1e-5


def test_float8_without_its_scale_is_no_number() -> None:
    head = nn.Linear(4, 4, bias=False)
    assert plain_weight(head) is not None
    head.weight.data = head.weight.data.to(torch.float8_e4m3fn)
    assert plain_weight(head) is None


def test_a_forward_that_fails_in_a_package_says_so_and_what_to_do() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = wide_model()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    layer = model.model.layers[1].self_attn.q_proj
    layer.forward = lambda x: layer.weight.permute(0, 1, 0)
    with pytest.raises(errors.QuantizationError, match=r"is quantised \(torchao\), and torchao failed.*int8"):
        mt.trace_layers(model, CASES)


def test_a_users_own_failure_is_left_alone() -> None:
    model = make_model("qwen3_moe")
    model.config.quantization_config = {"quant_method": "torchao"}
    assert method_of(model) == "torchao"
    with pytest.raises(ZeroDivisionError), explained(model):
        _ = 1 / 0
    del model.config.quantization_config
    assert method_of(model) is None
