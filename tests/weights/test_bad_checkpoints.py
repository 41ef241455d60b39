"""A checkpoint that is incomplete, damaged or of another model is an error that names it and the remedy."""

from __future__ import annotations

import json
import re
import struct

import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace._native import _core
from moetrace.errors import ArgumentError, CheckpointError, LayoutError, ModelError
from tests.engines.tiny import make_cases, make_model
from tests.weights.folders import edit_json, inputs, load_streamed, logits, rewrite, save

INDEX = "model.safetensors.index.json"


def refused(folder, *words, kind=CheckpointError, **options):
    with pytest.raises(kind) as caught:
        mt.load_model(str(folder), stream=True, **options)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.fixture
def sharded(tmp_path):
    save("qwen3_moe", tmp_path, max_shard_size="100KB")
    return tmp_path


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def test_a_folder_without_weights(tmp_path):
    make_model("qwen3_moe").config.save_pretrained(tmp_path)
    refused(tmp_path, str(tmp_path), "model.safetensors", "it holds no weights", "fetch")


def test_a_folder_that_is_none(tmp_path):
    refused(tmp_path / "nowhere", "can't be", kind=ModelError)
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no folder")


def test_pickles_alone(tmp_path):
    made = save("qwen3_moe", tmp_path)
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "pytorch_model.bin", "pickled", "save_pretrained", kind=ModelError)


def test_other_names_than_the_hubs(tmp_path):
    save("qwen3_moe", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    refused(tmp_path, "weights.safetensors", "save_pretrained")


def test_a_shard_that_is_missing(sharded):
    gone = shards(sharded)[1]
    gone.unlink()
    refused(sharded, gone.name, f"1 of the {len(shards(sharded)) + 1} files", "fetch")


@pytest.mark.parametrize("left", [0, 7, 100, 0.5, 0.99999])
def test_a_shard_that_is_cut_off(sharded, left):
    path = shards(sharded)[0]
    content = path.read_bytes()
    path.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    refused(sharded, path.name, "cut off", "fetch it again")


def test_a_shard_that_is_no_safetensors(sharded):
    path = shards(sharded)[0]
    for content in (b"\x89PNG" + bytes(2000), struct.pack("<Q", 12) + b'{"a": [1, 2]}' + bytes(99)):
        path.write_bytes(content)
        refused(sharded, path.name, "fetch it again")


@pytest.mark.parametrize(
    "own",
    [
        {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "xy", "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        {},
    ],
)
def test_a_header_that_is_wrong(sharded, own):
    path = shards(sharded)[0]
    text = json.dumps({"a": own}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(sharded, path.name, "fetch it again")


def test_an_index_that_names_other_files(sharded):
    index = json.loads((sharded / INDEX).read_text())
    renamed = {name: file.replace("model", "other") for name, file in index["weight_map"].items()}
    edit_json(sharded / INDEX, weight_map=renamed)
    refused(sharded, INDEX, "other-00001", "fetch")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_that_names_what_it_may_not(sharded, name):
    index = json.loads((sharded / INDEX).read_text())
    edit_json(sharded / INDEX, weight_map={**index["weight_map"], "lm_head.weight": name})
    refused(sharded, INDEX, "same folder")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', "{}", '{"weight_map": {}}'])
def test_an_index_that_cant_be_read(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, "fetch")


def test_an_index_that_names_tensors_that_the_shard_lacks(sharded):
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    files = sorted(set(index.values()))
    edit_json(sharded / INDEX, weight_map={**index, "lm_head.weight": files[-1], "more.weight": files[0]})
    refused(sharded, files[0], "more.weight", "lacks 1 of")


def test_tensors_that_the_checkpoint_lacks(tmp_path):
    save("qwen3_moe", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.layers.2.self_attn.q_proj.weight"))
    refused(tmp_path, "lacks 1 of", "model.layers.2.self_attn.q_proj.weight", "whole model")


def test_experts_that_the_checkpoint_lacks(tmp_path):
    save("qwen3_moe", tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.layers.2.mlp.experts.3.up_proj.weight"))
    refused(tmp_path, "model.layers.2.mlp.experts.gate_up_proj")


def test_a_checkpoint_of_another_model_takes_no_memory(tmp_path):
    """All parameters are missing: nothing may be allocated for them, which would be the whole model."""
    save("qwen3_moe", tmp_path)
    edit_json(tmp_path / "config.json", hidden_size=1 << 20, moe_intermediate_size=1 << 18)
    refused(tmp_path, "has shape", "by config.json", "different models")


def test_wrong_shapes(tmp_path):
    save("qwen3_moe", tmp_path)

    def widen(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(40, 32)

    rewrite(tmp_path, widen)
    refused(tmp_path, "model.layers.1.self_attn.q_proj.weight", "(40, 32)", "(32, 32)")


def test_experts_of_unequal_shapes(tmp_path):
    save("qwen3_moe", tmp_path)

    def widen(tensors):
        tensors["model.layers.1.mlp.experts.3.up_proj.weight"] = torch.zeros(20, 32)

    rewrite(tmp_path, widen)
    refused(tmp_path, "model.layers.1.mlp.experts.gate_up_proj", "can't be made")


def test_no_config(tmp_path):
    save("qwen3_moe", tmp_path)
    (tmp_path / "config.json").unlink()
    refused(tmp_path, str(tmp_path), kind=ModelError)


def test_a_model_of_an_unknown_type(tmp_path):
    save("qwen3_moe", tmp_path)
    edit_json(tmp_path / "config.json", model_type="gpt_17", architectures=["Gpt17ForCausalLM"])
    refused(tmp_path, "gpt_17", kind=ModelError)


def test_a_model_without_decoder_layers(tmp_path):
    config = tf.XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=16)
    tf.XLNetLMHeadModel(config).save_pretrained(tmp_path)
    refused(tmp_path, "no decoder layers", "XLNetLMHeadModel", kind=LayoutError)


def test_arguments_that_dont_go_with_streaming(tmp_path):
    save("qwen3_moe", tmp_path)
    refused(tmp_path, "device_map", kind=ArgumentError, device_map="auto")
    refused(tmp_path, "use_safetensors", kind=ArgumentError, use_safetensors=False)
    with pytest.raises(ArgumentError, match="stream"):
        mt.load_model(str(tmp_path), stream="yes")
    refused(tmp_path, "float31", "bfloat16", kind=ArgumentError, dtype="float31")


@pytest.fixture
def streamed(sharded):
    made = make_model("qwen3_moe")
    model, source = load_streamed(made, sharded)
    return model, source, sharded


def nothing_is_left(model, source):
    assert not source._held
    assert all(weight.is_meta for layer in model.model.layers for weight in layer.parameters())


def rest_of_sweep(source):
    for layer in range(1, 4):
        source.enter(layer)
        source.leave(layer)


@pytest.mark.parametrize("how", ["cut", "remove", "touch", "replace"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_that_changes(streamed, how, when):
    model, source, folder = streamed
    path = shards(folder)[1]

    def change():
        if how == "cut":
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        elif how == "remove":
            path.unlink()
        elif how == "touch":
            path.write_bytes(path.read_bytes())
        else:
            other = folder / "other"
            other.write_bytes(path.read_bytes() + b"more")
            other.rename(path)

    expected = {"cut": "cut off", "remove": "missing", "touch": "changed", "replace": "changed"}[how]
    if when == "before":
        change()
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{expected}"):
            source.begin()
    else:
        source.begin()
        source.enter(0)
        change()
        source.leave(0)
        with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{expected}"):
            rest_of_sweep(source)
        source.end()
    nothing_is_left(model, source)
    with pytest.raises(CheckpointError, match=re.escape(path.name)):
        mt.trace_layers(model, mt.CaseSet(make_cases(2)))
    nothing_is_left(model, source)


class FailingReader:
    """A reader over a disk that fails at one layer."""

    def __init__(self, reader, layer):
        self._reader, self._layer = reader, layer

    def acquire(self, layer):
        if layer == self._layer:
            raise _core.ReadError("model-00002.safetensors: Input/output error (reading at byte 4096)")
        return self._reader.acquire(layer)

    def __getattr__(self, name):
        return getattr(self._reader, name)


def test_a_disk_that_fails_in_the_middle(streamed):
    model, source, _ = streamed
    expected = logits(model)
    reader, source._reader = source._reader, FailingReader(source._reader, 2)
    with pytest.raises(CheckpointError, match=r"layer 2 .*model-00002.*Input/output error.*look at the disk"):
        model(**inputs())
    nothing_is_left(model, source)
    source._reader = reader
    assert logits(model).equal(expected)  # a disk that is back again


def test_a_disk_that_fails_under_the_reader(streamed):
    """/proc/self/mem can be opened, but nothing can be read at its beginning."""
    reader = _core.LayerReader(["/proc/self/mem"], [[_core.Segment(0, 0, 100, 0)]])
    with pytest.raises(_core.ReadError, match="/proc/self/mem: Input/output error"):
        reader.acquire(0)


def test_a_meta_model_is_refused():
    with torch.device("meta"):
        model = tf.Qwen3MoeForCausalLM(make_model("qwen3_moe").config)
    with pytest.raises(ModelError, match="meta device and holds no values; load"):
        mt.trace_layers(model, mt.CaseSet(make_cases(2)))
