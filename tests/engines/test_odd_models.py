"""Models as users have them: compiled, quantised, in any precision, looped; and those that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import find_anatomy
from tests.engines.tiny import COMMON, MOE, VOCAB, make_cases, make_model
from tests.engines.wide import make_wide

CASES = make_cases(4)


@pytest.fixture
def model() -> Any:
    return make_model("qwen3_moe")


def looped() -> Any:
    config = tf.Inkling2LoopTextConfig(
        **{**MOE, "num_hidden_layers": 6}, num_experts=8, loop_layer_index_start=2, loop_layer_index_end=4,
        loop_num_passes=3, n_layers_per_attn_res_block=2, loop_gate_rank=8,
    )  # fmt: skip
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).float().eval()


def test_router_losses_dont_stop_a_trace(model: Any) -> None:
    expected = mt.trace_experts(model, CASES).effects
    model.config.output_router_logits = True
    for engine in ("tree", "reference"):
        np.testing.assert_allclose(mt.trace_experts(model, CASES, engine=engine).effects, expected, atol=2e-5)
    assert model.config.output_router_logits is True


@pytest.mark.parametrize("how", ["function", "method"])
def test_compiled_models_are_traced_as_what_they_compile(model: Any, how: str) -> None:
    expected = mt.trace_layers(model, CASES).effects
    if how == "function":
        found = mt.trace_layers(torch.compile(model, backend="eager"), CASES)
    else:
        model.compile(backend="eager")
        call = model._compiled_call_impl
        found = mt.trace_layers(model, CASES)
        assert model._compiled_call_impl is call
    np.testing.assert_array_equal(found.effects, expected)


def test_double_precision(model: Any) -> None:
    model = model.double()
    tree = mt.trace_experts(model, CASES, engine="tree")
    plain = mt.trace_experts(model, CASES, engine="reference")
    np.testing.assert_allclose(tree.effects, plain.effects, atol=1e-6)


def test_mixed_precision(model: Any) -> None:
    """Half-precision experts in a float32 model."""
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.bfloat16()
        experts.register_forward_pre_hook(lambda _m, args: (args[0].bfloat16(), args[1], args[2].bfloat16()))
        experts.register_forward_hook(lambda _m, _args, output: output.float())
    auto = mt.trace_layers(model, CASES)
    plain = mt.trace_layers(model, CASES, engine="reference")
    assert np.abs(auto.effects - plain.effects).max() <= max(auto.noise_floor, 0.05)


class Quantised(torch.Tensor):
    """A tensor subclass, as quantisation makes them: operations work, memory isn't what it seems."""


def test_tensor_subclasses_are_left_to_their_modules(model: Any) -> None:
    expected = mt.trace_experts(model, CASES).effects
    for layer in model.model.layers:
        experts = layer.mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            plain = getattr(experts, name).detach()
            experts._parameters[name] = torch.nn.Parameter(plain.as_subclass(Quantised), requires_grad=False)
    assert not any(site.fusible for site in find_anatomy(model).sites)
    np.testing.assert_allclose(mt.trace_experts(model, CASES).effects, expected, atol=2e-5)


def test_attention_with_biases_by_distance_is_served_by_plain_forwards() -> None:
    """Falcon's ALiBi counts keys, and a tree has more of them than a sequence."""
    config = tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, alibi=True,
        new_decoder_architecture=False, multi_query=True, parallel_attn=False, bias=False,
    )  # fmt: skip
    torch.manual_seed(0)
    falcon = tf.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in falcon.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.25)
    auto = mt.trace_layers(falcon, CASES)
    assert auto.provenance["engine"] == "reference"
    assert "single pass failed" in auto.provenance["engine_reason"]
    plain = mt.trace_layers(falcon, CASES, engine="reference")
    np.testing.assert_array_equal(auto.effects, plain.effects)
    assert np.abs(plain.effects).max() > 0.02


@pytest.mark.parametrize("layer", [7.9, "1", True, None, [1, 2], float("nan")])
def test_what_is_no_layer_isnt_taken_for_one(model: Any, layer: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="layer"):
        mt.trace_coalitions(model, CASES, layer=layer)
    if not isinstance(layer, list) and layer is not None:
        for trace in (mt.trace_layers, mt.trace_experts):
            with pytest.raises(errors.ArgumentError, match="layers"):
                trace(model, CASES, layers=layer)


def test_weights_without_values_are_refused(model: Any) -> None:
    model.model.layers[2].to("meta")
    with pytest.raises(errors.ModelError, match=r"layers\.2\..* is on the meta device"):
        mt.trace_layers(model, CASES)


def test_masked_models_are_refused() -> None:
    config = tf.ModernBertConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model = tf.ModernBertForMaskedLM(config).eval()
    with pytest.raises(errors.NotCausalError, match="AutoModelForCausalLM"):
        mt.trace_layers(model, CASES)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "RemBert", "MegatronBert", "RoFormer"])
def test_encoders_with_a_causal_head_are_refused(family: str) -> None:
    config = getattr(tf, f"{family}Config")(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    )  # fmt: skip
    head = getattr(tf, f"{family}LMHeadModel", None) or getattr(tf, f"{family}ForCausalLM")
    with pytest.raises(errors.NotCausalError, match=r"config\.is_decoder is False.*is_decoder=True"):
        mt.trace_layers(head(config).eval(), CASES)
    config.is_decoder = True  # causal, and refused for what its layers are
    with pytest.raises(errors.LayoutError, match="no decoder layers were found"):
        mt.trace_layers(head(config).eval(), CASES)


def test_decoders_that_count_as_encoders_are_not_refused_for_it() -> None:
    """GPT-NeoX has a config that says it is no decoder, and causal attention."""
    config = tf.GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        use_parallel_residual=False,
    )  # fmt: skip
    assert config.is_decoder is False
    found = mt.trace_layers(tf.GPTNeoXForCausalLM(config).eval(), CASES)
    assert found.layers == (0, 1, 2)


def test_tokens_that_see_later_ones_are_refused(model: Any) -> None:
    """A causal model whose user lets a token see the next one."""

    def peek(_module: Any, _args: Any, output: Any) -> Any:
        return output + 0.5 * output.roll(-1, dims=1)

    model.model.layers[0].mlp.register_forward_hook(peek)
    with pytest.raises(errors.NotCausalError, match="see those that come later"):
        mt.trace_layers(model, CASES)


def test_prompts_beyond_the_models_positions_are_refused(model: Any) -> None:
    long = mt.Case([5] * (COMMON["max_position_embeddings"] + 1), (0, 1), 8, 9, case_id=7)
    with pytest.raises(errors.CaseError, match="case 7: the prompt has 129 tokens; expected at most 128"):
        mt.trace_layers(model, [long])
    with pytest.raises(errors.CaseError, match="case 7"):
        mt.select_cases(model, [long])


def test_looped_layers_are_refused_by_name() -> None:
    model = looped()
    with pytest.raises(errors.LoopedLayerError, match=r"layers \[2, 3\] up to 3 times .*\[0, 1, 4, 5\]"):
        mt.trace_layers(model, CASES)
    found = mt.trace_layers(model, CASES, layers=[0, 1, 4, 5])
    plain = mt.trace_layers(model, CASES, layers=[0, 1, 4, 5], engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=2e-4)


def test_an_expert_that_is_routed_to_twice_is_refused() -> None:
    model = make_wide("deepseek_v4")
    model.model.layers[0].mlp.gate.tid2eid.zero_()
    mt.trace_layers(model, CASES[:1])
    with pytest.raises(errors.LayoutError, match=r"layer 0: .* one expert twice .*\[0, 0\]"):
        mt.trace_experts(model, CASES[:1], layer=0)
