from __future__ import annotations

import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace import errors
from tests.engines.tiny import COMMON, VOCAB, make_cases, make_model


def case(ids=(5, 6, 7, 8), subject=(1, 2), true_id=3, foil_id=4, case_id=7):
    return mt.Case(ids, subject, true_id, foil_id, case_id)


@pytest.mark.parametrize(
    ("cases", "error", "words"),
    [
        ([], errors.NoCasesError, "no cases"),
        ([case(subject=(2, 2))], errors.SubjectSpanError, "7"),
        ([case(subject=(2, 9))], errors.SubjectSpanError, "7"),
        ([case(subject=(-1, 2))], errors.SubjectSpanError, "7"),
        ([case(subject=(1, 4))], errors.SubjectSpanError, "final"),
        ([case(true_id=4)], errors.SameObjectError, "7"),
        ([case(ids=(5, VOCAB, 7, 8))], errors.TokenIdError, str(VOCAB)),
        ([case(foil_id=VOCAB)], errors.TokenIdError, str(VOCAB)),
        ([case(), case()], errors.DuplicateCaseError, "7"),
    ],
)
def test_cases(model, cases, error, words):
    with pytest.raises(error, match=words):
        mt.trace_layers(model, cases)


def test_a_final_subject_can_be_kept(model):
    result = mt.trace_layers(model, [case(subject=(1, 4))], final_subject="keep")
    reference = mt.trace_layers(model, [case(subject=(1, 4))], final_subject="keep", engine="reference")
    assert abs(result.effects - reference.effects).max() < 2e-4


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"layers": [4]}, errors.LayerRangeError, "layers 0 to 3"),
        ({"layers": -1}, errors.LayerRangeError, "-1"),
        ({"layers": []}, errors.LayerRangeError, "empty"),
        ({"layers": [1, 1]}, errors.LayerRangeError, "repeats"),
        ({"layers": "all"}, errors.LayerRangeError, "None for all"),
        ({"layers": [1.5]}, errors.LayerRangeError, "None for all"),
        ({"layers": 2.0}, errors.LayerRangeError, "None for all"),
        ({"engine": "fast"}, errors.ArgumentError, "'fast'"),
        ({"metric": "probability"}, errors.ArgumentError, "logit_diff"),
        ({"batch_tokens": 0}, errors.ArgumentError, "batch_tokens"),
        ({"position": 99}, errors.ArgumentError, "99"),
        ({"position": "first"}, errors.ArgumentError, "first"),
        ({"noise": mt.SubjectNoise(seed=-1000)}, errors.ArgumentError, "seed"),
    ],
)
def test_arguments(model, arguments, error, words):
    with pytest.raises(error, match=words):
        mt.trace_layers(model, make_cases(2), **arguments)


@pytest.mark.parametrize("values", [{"scale": -1.0}, {"scale": float("nan")}, {"draws": 0}])
def test_noise(values):
    with pytest.raises(errors.ArgumentError):
        mt.SubjectNoise(**values)


def test_encoder_decoder_is_refused():
    config = tf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(errors.EncoderDecoderError, match="decoder-only"):
        mt.trace_layers(tf.T5ForConditionalGeneration(config), make_cases(1))


def test_a_bare_decoder_has_no_head():
    bare = tf.LlamaModel(tf.LlamaConfig(**COMMON))
    with pytest.raises(errors.LayoutError, match="head"):
        mt.trace_layers(bare, make_cases(1))


def test_a_model_without_layers():
    model = make_model("llama")
    model.model.stack = model.model.layers
    del model.model.layers
    with pytest.raises(errors.LayoutError, match="no decoder layers"):
        mt.trace_layers(model, make_cases(1))


def test_something_that_is_no_transformers_model():
    with pytest.raises(errors.ModelError, match="config"):
        mt.trace_layers(torch.nn.Linear(2, 2), make_cases(1))


def test_experts_in_an_unknown_layout():
    model = make_model("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.specialists = layer.mlp.experts
        layer.mlp.chooser = layer.mlp.gate
        del layer.mlp.experts, layer.mlp.gate
    with pytest.raises(errors.LayoutError, match=r"chooser, specialists|speaks of experts"):
        mt.trace_layers(model, make_cases(1))


def test_blocks_in_an_unknown_place():
    model = make_model("llama")
    for layer in model.model.layers:
        layer.network = layer.mlp
        del layer.mlp
    with pytest.raises(errors.LayoutError, match="network"):
        mt.trace_layers(model, make_cases(1))


def test_every_error_is_a_moetrace_error():
    for name in dir(errors):
        found = getattr(errors, name)
        if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, Warning):
            assert issubclass(found, mt.MoetraceError), name
