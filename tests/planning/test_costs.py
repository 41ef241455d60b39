"""Operations, bytes and memory of a plan against sums written out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import look_over
from moetrace.planning.blueprint import skeleton_of
from moetrace.planning.sizes import size_of
from moetrace.planning.speed import disk_speed
from tests.engines.tiny import FAMILIES, make_cases, make_model
from tests.engines.wide import WIDE, make_wide

CASES = make_cases(5)
# Of Qwen3-30B-A3B: its published shape.
LARGE: dict[str, Any] = {
    "vocab_size": 151_936, "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "tie_word_embeddings": False, "dtype": "bfloat16",
    "max_position_embeddings": 40_960,
}  # fmt: skip


def folder_of(config: Any, path: Path) -> Path:
    """A folder with a config and nothing else."""
    config.save_pretrained(path)
    assert [own.name for own in path.iterdir()] == ["config.json"]
    return path


def test_the_large_model_of_the_paper_from_its_config_alone(tmp_path: Path) -> None:
    folder = folder_of(tf.Qwen3MoeConfig(**LARGE, architectures=["Qwen3MoeForCausalLM"]), tmp_path)
    cases = [mt.Case(tuple(range(12)), (3, 6), 1, 2, i) for i in range(128)]
    found = mt.plan(folder, cases, stream=True, timed=False)
    # 12 clean rows, 9 noised ones, and forks of the layers before, the null patch's first of all.
    attention = 2048 * 128 * (32 + 2 * 4) + 32 * 128 * 2048
    experts = 128 * 3 * 2048 * 768
    norms = 2 * 2048 + 2 * 128
    layer = attention + 128 * 2048 + experts + norms
    beside = 2 * 151_936 * 2048
    assert size_of(look_over(skeleton_of(tf.Qwen3MoeConfig(**LARGE)))).bytes == 2 * (
        48 * layer + beside + 2048
    )
    rows = [128 * (12 + 9 + (0 if index == 0 else index + 1)) for index in range(48)]
    assert found.rows_by_layer.tolist() == rows
    assert found.tokens == 128 * 12
    active = attention + 128 * 2048 + 8 * 3 * 2048 * 768
    scores = 2 * 32 * 128  # a product with a key, one with a value
    products = sum(2 * own * (active + own // 128 * scores) for own in rows)
    assert found.flops == products + 2 * 128 * 151_936 * 2048  # and the head, for a row of each case
    assert found.bytes_read == 2 * (48 * layer + beside + 2048)
    assert 3.5e9 < found.peak_memory < 6e9
    assert math.isnan(found.seconds)
    assert found.batch_tokens == 2048  # 128 rows an expert on average
    whole = mt.plan(folder, cases, timed=False)
    assert whole.bytes_read == found.bytes_read
    assert whole.peak_memory > 61e9
    again = mt.plan(folder, cases, what="experts", layers=47, stream=True, timed=False)
    assert again.flops < found.flops


@pytest.mark.parametrize("family", [name for name in (*FAMILIES, *WIDE) if name != "doge"])
def test_every_entry_of_every_family_is_counted(family: str) -> None:
    model = make_model(family) if family in FAMILIES else make_wide(family)
    size = size_of(look_over(model))
    assert size.bytes == sum(own.numel() * own.element_size() for own in model.parameters())
    for layer in size.layers:
        assert layer.attention > 0
        kinds = layer.attention + layer.router + layer.experts + layer.shared + layer.dense
        assert 0 < layer.active <= kinds <= layer.parameters


def test_shared_experts_and_dense_layers_are_told_apart() -> None:
    first, *others = size_of(look_over(make_model("deepseek_v3"))).layers
    assert (first.dense, first.experts, first.shared) == (3 * 32 * 48, 0, 0)
    for layer in others:
        assert (layer.dense, layer.experts, layer.shared) == (0, 8 * 3 * 32 * 16, 3 * 32 * 16)
        assert layer.active == layer.attention + 8 * 32 + 3 * 32 * 16 + 2 * 3 * 32 * 16
        assert layer.score_width == 4 * (16 + 8)  # keys of 8 + 8, values of 8


def test_experts_without_a_module_of_their_own_count_by_top_k() -> None:
    layer = size_of(look_over(make_wide("jetmoe"))).layers[0]
    assert layer.experts >= 8 * 3 * 32 * 48
    assert layer.active < layer.attention + layer.router + layer.experts / 2


def test_a_plan_of_a_folder_is_that_of_the_model(tmp_path: Path) -> None:
    model = make_model("qwen2_moe")
    model.config.save_pretrained(tmp_path)
    planned = [mt.plan(own, CASES, "experts", timed=False) for own in (model, str(tmp_path), tmp_path)]
    weights = sum(own.numel() * own.element_size() for own in model.parameters())
    assert [own.bytes_read for own in planned] == [0, weights, weights]
    for own in planned[1:]:
        assert own.flops == planned[0].flops
        assert own.rows_by_layer.tolist() == planned[0].rows_by_layer.tolist()
        assert own.peak_memory == planned[0].peak_memory


def test_bytes_of_a_streamed_protocol_are_those_of_its_passes(tmp_path: Path) -> None:
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records(), tokenizer)
    model.config.save_pretrained(tmp_path)
    found = mt.plan(
        tmp_path, cases, "protocol", stream=True, timed=False, settings={"n": 40, "relaxed": False}
    )
    size = size_of(look_over(skeleton_of(model.config)))
    passes = found.frame().set_index("stage").bytes_read / size.layer_bytes
    assert passes.tolist() == [1.0] * 6  # a selection's first batch is as large as it needs
    assert found.bytes_read == size.layer_bytes * passes.sum() + size.bytes - size.layer_bytes


def test_reading_out_by_the_model_s_head_costs_its_every_row() -> None:
    model = make_model("llama")
    exact, own = (mt.plan(model, CASES, timed=False, readout=kind) for kind in ("exact", "model"))
    read = 1 + 1 + 5  # clean, noised, four layers and the null
    assert own.flops - exact.flops == 2 * (read - 1) * len(CASES) * 97 * 32


def test_the_reference_engine_costs_a_forward_for_each_patch() -> None:
    found = mt.plan(make_model("llama"), CASES, timed=False, engine="reference")
    assert found.rows_by_layer.tolist() == [sum(7 * len(case.input_ids) for case in CASES)] * 4
    assert found.frame().forwards.sum() == 3 * len(CASES)
    assert mt.plan(make_model("jamba"), CASES, timed=False).engine == "tree"


def test_a_timed_plan_has_seconds_and_says_how(tmp_path: Path) -> None:
    model = make_model("deepseek_v3")
    model.config.save_pretrained(tmp_path)
    for own in (model, tmp_path):
        found = mt.plan(own, CASES, "experts", layers=[1, 2])
        assert 0 < found.seconds < 60
        assert found.seconds == pytest.approx(found.frame().seconds.sum())
        assert "Timed on one batch" in found.notes[-1]


def test_a_layer_that_can_t_be_run_by_itself_is_said_so() -> None:
    found = mt.plan(make_wide("gemma4_text"), CASES)
    assert found.seconds > 0
    assert "a matrix product alone" in found.notes[-1]


def test_what_a_plan_shows() -> None:
    found = mt.plan(make_model("qwen3_moe"), CASES, timed=False)
    assert "token rows over 4 layers" in repr(found)
    assert "not timed" in str(found)
    assert "<table" in found._repr_html_()
    told = json.loads(json.dumps(found.json()))
    assert told["rows"] == sum(told["rows_by_layer"]) == found.rows
    assert told["seconds"] is None
    assert told["stages"][0]["seconds"] is None
    assert found.frame("layer").rows.tolist() == found.rows_by_layer.tolist()
    assert found.frame("layer").routed.all()
    with pytest.raises(ValueError, match="read-only"):
        found.rows_by_layer[0] = 1
    with pytest.raises(errors.ArgumentError, match="stage"):
        found.frame("case")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"what": "layer"}, errors.ArgumentError, "did you mean 'layers'"),
        ({"model": 7}, errors.ModelError, "a folder or a hub id"),
        ({"model": "/nowhere/at/all"}, errors.ModelError, "no config"),
        ({"cases": []}, errors.NoCasesError, "no cases"),
        ({"cases": [mt.Case((5,) * 129, (0, 1), 8, 9, 7)]}, errors.PromptLengthError, "case 7"),
        ({"layers": 9}, errors.LayerRangeError, "layer 9"),
        ({"settings": {"margn": 1}}, errors.ArgumentError, "did you mean 'margin'"),
        ({"usable": 0}, errors.ArgumentError, "usable"),
        ({"what": "select", "position": "subject_last"}, errors.ArgumentError, "position"),
        ({"metric": "logit_dif"}, errors.ArgumentError, "did you mean .logit_diff"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], words: str) -> None:
    base: dict[str, Any] = {"model": make_model("qwen3_moe"), "cases": CASES, "timed": False}
    with pytest.raises(error, match=words):
        mt.plan(**{**base, **change})


def test_a_folder_without_a_language_model(tmp_path: Path) -> None:
    with pytest.raises(errors.ModelError, match="no config"):
        mt.plan(tmp_path, CASES, timed=False)
    tf.T5Config().save_pretrained(tmp_path)
    with pytest.raises(errors.ModelError, match="no causal language model"):
        mt.plan(tmp_path, CASES, timed=False)


def test_the_disk_is_read_where_the_weights_are(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert disk_speed([]) is None
    file.write_bytes(bytes(1 << 20))
    assert disk_speed([file]) is None  # too little to tell
    file.write_bytes(bytes(24 << 20))
    speed = disk_speed([file, tmp_path / "absent.safetensors"])
    assert speed is not None
    assert speed > 1e6


def test_a_plan_keeps_a_model_on_the_meta_device_there(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = tf.Qwen3MoeForCausalLM(make_model("qwen3_moe").config)
    with pytest.raises(errors.ModelError, match="meta device"):
        mt.trace_layers(model, CASES)
    assert (
        mt.plan(model, CASES, timed=False).rows == mt.plan(make_model("qwen3_moe"), CASES, timed=False).rows
    )


def test_metrics_of_the_whole_vocabulary_read_the_whole_head(tmp_path: Path) -> None:
    folder = folder_of(tf.Qwen3MoeConfig(**LARGE, architectures=["Qwen3MoeForCausalLM"]), tmp_path)
    cases = [mt.Case(tuple(range(12)), (3, 6), 1, 2, i) for i in range(8)]
    plain = mt.plan(folder, cases, stream=True, timed=False)
    read = 8 * (1 + 1 + 49)  # clean, noised, every layer and the null patch
    for metric in ("kl", "rank", ["logit_diff", "prob"], lambda logits, case: logits[:, 0]):
        found = mt.plan(folder, cases, stream=True, timed=False, metric=metric)
        assert found.flops == plain.flops + 2 * read * 151_936 * 2048
        assert found.rows == plain.rows
        assert found.peak_memory > plain.peak_memory + 51 * 151_936 * 8  # a sequence's logits in float64
    same = mt.plan(folder, cases, stream=True, timed=False, metric="prob_ratio")
    assert (same.flops, same.peak_memory) == (plain.flops, plain.peak_memory)


def test_computing_in_float32(tmp_path: Path) -> None:
    folder = folder_of(tf.Qwen3MoeConfig(**LARGE, architectures=["Qwen3MoeForCausalLM"]), tmp_path)
    cases = [mt.Case(tuple(range(12)), (3, 6), 1, 2, i) for i in range(128)]
    plain, wide, double = (
        mt.plan(folder, cases, timed=False, **options)  # type: ignore[arg-type]
        for options in ({}, {"compute_dtype": "float32"}, {"dtype": "float32"})
    )
    assert (wide.rows, wide.flops, wide.bytes_read) == (plain.rows, plain.flops, plain.bytes_read)
    beside = 4 * (2 * 151_936 * 2048 + 2048)
    layer = size_of(look_over(skeleton_of(tf.Qwen3MoeConfig(**LARGE)))).layers[0]
    rows = double.peak_memory - 2 * plain.bytes_read  # the process, and a batch in float32
    assert wide.peak_memory == plain.bytes_read + 2 * layer.bytes + beside + rows
    assert wide.batch_tokens == double.batch_tokens
    assert any("float32" in note for note in wide.notes)
    model = make_model("qwen3_moe").bfloat16()
    before = next(model.parameters()).dtype
    timed = mt.plan(model, CASES, compute_dtype="float32")
    assert timed.seconds > 0
    assert next(model.parameters()).dtype is before


def test_a_protocol_of_another_corruption(tmp_path: Path) -> None:
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records(), tokenizer)
    given = {"n": 40, "relaxed": False}
    noise = mt.plan(model, cases, "protocol", timed=False, settings=given)
    swap = mt.plan(model, cases, "protocol", timed=False, settings={**given, "corruption": "swap"})
    assert set(noise.frame().stage) - set(swap.frame().stage) == {"scales"}
    own = {"corruption": mt.ZeroEmbedding()}
    assert mt.plan(model, cases, "protocol", timed=False, settings={**given, **own}).rows > 0


def test_arguments_that_a_kind_of_trace_does_not_have() -> None:
    model = make_model("qwen3_moe")
    for what, options, match in (
        ("protocol", {"metric": "kl"}, "metric is 'kl'; the protocol"),
        ("select", {"mode": "noise"}, "mode is 'noise'"),
        ("protocol", {"position": "all"}, "position is 'all'"),
        ("knockout", {"noise": 2.0}, "noise is 2.0; knock-outs leave from the clean run"),
        ("knockout", {"position": ["last", 3]}, "a knock-out is at one position"),
    ):
        with pytest.raises(errors.ArgumentError, match=match):
            mt.plan(model, CASES, what, timed=False, **options)  # type: ignore[arg-type]
    longer = [mt.Case(c.input_ids, c.subject, (c.true_id, 3), c.foil_id, c.case_id) for c in CASES]
    with pytest.raises(errors.CaseError, match="run_protocol reads objects of one token"):
        mt.plan(model, longer, "protocol", timed=False)
    with pytest.raises(errors.MetricError, match="rank"):
        mt.plan(model, longer, timed=False, metric="rank")
    bare = [mt.Case(c.input_ids, c.subject, c.true_id, None, c.case_id) for c in CASES]
    with pytest.raises(errors.NoFoilError):
        mt.plan(model, bare, timed=False)
    assert mt.plan(model, bare, timed=False, metric="kl").rows > 0
