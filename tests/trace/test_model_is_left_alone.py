"""The user's model comes back exactly as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import masking_utils

import moetrace as mt
from tests.engines.tiny import make_cases, make_model


def snapshot(model):
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for name, m in model.named_modules()
    ]
    training = [m.training for m in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [p.requires_grad for p in model.parameters()]
    masks = dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._local_mapping)
    config = copy.deepcopy(model.config.to_dict())
    internal = (model.config._attn_implementation, model.config._experts_implementation)
    return (
        hooks,
        training,
        weights,
        grads,
        masks,
        config,
        internal,
        torch.is_grad_enabled(),
        model.config.use_cache,
    )


def assert_same(before, after):
    assert before[0:2] == after[0:2]
    for name, tensor in before[2].items():
        assert torch.equal(tensor, after[2][name]), name
    assert before[3:] == after[3:]


@pytest.fixture
def model():
    model = make_model("qwen3_moe")
    model.train()
    model.model.layers[1].eval()  # a mixture, as in partial fine-tuning
    model.model.layers[0].mlp.experts.gate_up_proj.requires_grad_(False)
    return model


def fail_in(model, failure, after=1):
    calls = []

    def hook(_module, _args):
        calls.append(None)
        if len(calls) > after:
            raise failure

    return model.model.layers[2].self_attn.register_forward_pre_hook(hook)


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_after_a_trace(model, engine):
    before = snapshot(model)
    mt.trace_layers(model, make_cases(3), engine=engine)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 1, 4, 8])
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_after_an_exception_or_an_interrupt(model, failure, after, engine):
    before = snapshot(model)
    handle = fail_in(model, failure, after)

    def trace_repeatedly():
        for _ in range(20):
            mt.trace_layers(model, make_cases(3), engine=engine)

    with pytest.raises(type(failure)):
        trace_repeatedly()
    handle.remove()
    assert_same(before, snapshot(model))


def test_dropout_is_off_during_the_trace_and_on_after_it():
    model = make_model("qwen3_moe")
    expected = mt.trace_layers(model, make_cases(3)).effects
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    found = mt.trace_layers(model, make_cases(3)).effects
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.training


def test_attention_that_takes_no_mask_is_switched_and_switched_back():
    model = make_model("qwen3_moe")
    expected = mt.trace_layers(model, make_cases(3)).effects
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        config._attn_implementation_internal = "flex_attention"
    found = mt.trace_layers(model, make_cases(3)).effects
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert model.config._attn_implementation == "flex_attention"


def test_gradients_work_after_a_trace():
    model = make_model("qwen3_moe")
    mt.trace_layers(model, make_cases(2))
    ids = torch.tensor([make_cases(1)[0].input_ids])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_the_users_own_hooks_see_and_act():
    model = make_model("qwen3_moe")
    cases = make_cases(2)
    plain = mt.trace_layers(model, cases).effects
    handle = model.model.layers[0].register_forward_hook(lambda _m, _a, out: out * 0.5)
    halved = mt.trace_layers(model, cases).effects
    handle.remove()
    assert np.abs(halved - plain).max() > 1e-3
    np.testing.assert_allclose(mt.trace_layers(model, cases).effects, plain, atol=1e-6)


def test_another_threads_masks_are_not_touched():
    model, other = make_model("qwen3_moe"), make_model("llama")
    ids = torch.tensor([make_cases(1)[0].input_ids])
    with torch.no_grad():
        expected = other(input_ids=ids).logits
    seen = []

    def run_other(_module, _args):
        import threading

        def work():
            with torch.no_grad():
                seen.append(other(input_ids=ids).logits)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    handle = model.model.layers[3].register_forward_pre_hook(run_other)
    mt.trace_layers(model, make_cases(2))
    handle.remove()
    assert seen
    for logits in seen:
        torch.testing.assert_close(logits, expected)


def test_a_block_that_never_runs_is_an_error():
    model = make_model("qwen3_moe")
    layer = model.model.layers[2]
    layer.forward = lambda hidden_states, **kwargs: hidden_states  # skips its block
    with pytest.raises(mt.errors.HookError, match=r"layers? \[?2"):
        mt.trace_layers(model, make_cases(2))
