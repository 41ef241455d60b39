"""What can change a forward is noticed, and what can't be trusted isn't: verdicts, floors and refusals."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace import errors
from moetrace.engines.job import Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.float32 import in_float32
from moetrace.models.state import prepared
from tests.engines.tiny import COMMON, FAMILIES, MOE, VOCAB, make_cases, make_model
from tests.engines.wide import WIDE, make_wide

CASES = make_cases(4)
SERVED = [family for family in (*FAMILIES, *WIDE) if family != "doge"]


def model_of(family: str) -> Any:
    return make_model(family) if family in FAMILIES else make_wide(family)


@pytest.fixture
def model() -> Any:
    return make_model("qwen3_moe")


# Half precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_half_precision_is_judged_as_float32_is(family: str) -> None:
    wide = mt.trace_layers(model_of(family), CASES[:2]).provenance
    half = mt.trace_layers(model_of(family).bfloat16(), CASES[:2]).provenance
    assert half["engine"] == wide["engine"]
    if wide["engine"] == "tree":
        assert half["engine_reason"] == wide["engine_reason"]  # forks join at the same place


@pytest.mark.parametrize("seed", range(8))
def test_what_float32_refuses_isnt_trusted_in_half_precision(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of keys are chosen by a maximum over rows, and a tree that isn't unfolded has other rows than a
    sequence."""
    monkeypatch.setattr("moetrace.engines.engine_choice.look_for_mixers", lambda *_: ())
    family = WIDE["minimax_m3"]
    model = make_wide(family, seed=seed).bfloat16()
    assert mt.trace_layers(model, CASES[:2]).provenance["engine"] == "reference"


def test_weights_in_float32_are_those_of_the_whole_model_and_come_back() -> None:
    model = make_model("deepseek_v3").bfloat16()
    before = dict(model.state_dict(keep_vars=True))
    patches = [Patch.block(layer) for layer in (1, 3)]
    wide = copy.deepcopy(model).float()
    with prepared(wide):
        expected = ReferenceEngine(make_job(find_anatomy(wide), patches)).run(CASES)
    anatomy = find_anatomy(model)
    with prepared(model), in_float32(anatomy):
        found = ReferenceEngine(make_job(anatomy, patches)).run(CASES)
    np.testing.assert_array_equal(found.patched, expected.patched)
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with (
        fail_at(anatomy.site(2).block, fails),
        prepared(model),
        pytest.raises(KeyboardInterrupt),
        in_float32(anatomy),
    ):
        model(torch.tensor([[5, 6, 7]]))
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class fail_at:
    """A hook for a time."""

    def __init__(self, module: torch.nn.Module, hook: Any) -> None:
        self.module, self.hook = module, hook

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self.hook)

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


# Changes of a model -------------------------------------------------------------------------------------


def steering(amount: dict[str, float]) -> Any:
    """A user's hook that adds a vector to the last row of every sequence."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value = value.clone()
        value[:, -1] += amount["size"] * torch.linspace(-1, 1, value.shape[-1])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return hook


@pytest.mark.parametrize("trace", [mt.trace_layers, mt.trace_experts])
def test_a_hook_that_comes_later_is_seen(model: Any, trace: Any) -> None:
    assert trace(model, CASES).provenance["engine"] == "tree"
    model.model.layers[1].register_forward_hook(steering({"size": 3.0}))
    found = trace(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "differs from plain forwards" in found.provenance["engine_reason"]
    np.testing.assert_allclose(found.effects, trace(model, CASES, engine="reference").effects, atol=1e-5)


def test_a_patched_forward_is_seen(model: Any) -> None:
    mt.trace_layers(model, CASES)
    layer = model.model.layers[1]
    plain, change = layer.forward, steering({"size": 3.0})
    layer.forward = lambda *args, **kwargs: change(None, None, plain(*args, **kwargs))
    found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    np.testing.assert_allclose(
        found.effects, mt.trace_layers(model, CASES, engine="reference").effects, atol=1e-5
    )


@pytest.mark.parametrize("half", [False, True])
def test_what_no_fingerprint_shows_is_found_by_the_traces_own_case(model: Any, half: bool) -> None:
    """A hook that is there from the start, and begins to act later."""
    model = model.bfloat16() if half else model
    amount = {"size": 0.0}
    model.model.layers[1].register_forward_hook(steering(amount))
    assert mt.trace_layers(model, CASES).provenance["engine"] == "tree"
    amount["size"] = 5.0
    with pytest.warns(errors.EngineWarning, match="differed by .* from plain forwards on case"):
        found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "differed" in found.provenance["engine_reason"]
    np.testing.assert_allclose(
        found.effects, mt.trace_layers(model, CASES, engine="reference").effects, atol=1e-6
    )


def test_a_run_of_two_engines_is_refused(model: Any, tmp_path: Any) -> None:
    amount = {"size": 0.0}
    model.model.layers[1].register_forward_hook(steering(amount))
    mt.trace_layers(model, CASES, out=tmp_path / "run")
    part = next((tmp_path / "run" / "parts").glob("*.parquet"))
    part.unlink()
    mt.trace_layers(model, CASES, out=tmp_path / "run")  # resumed by the same engine
    (second,) = (tmp_path / "run" / "parts").glob("*.parquet")
    with pytest.raises(errors.RunFolderError, match="engine"):
        mt.trace_layers(model, CASES, out=tmp_path / "run", engine="reference")
    second.unlink()
    amount["size"] = 5.0
    with pytest.warns(errors.EngineWarning):
        found = mt.trace_layers(model, CASES, out=tmp_path / "run")  # nothing was kept of the tree's
    assert mt.load(tmp_path / "run").provenance["engine"] == found.provenance["engine"] == "reference"


def test_a_resumed_run_has_one_attention(model: Any, tmp_path: Any) -> None:
    mt.trace_layers(model, CASES, out=tmp_path / "run")
    model.set_attn_implementation("eager")
    with pytest.raises(errors.RunFolderError, match="attention"):
        mt.trace_layers(model, CASES, out=tmp_path / "run")


def test_provenance_names_the_attention_that_ran(model: Any) -> None:
    model.config._attn_implementation_internal = "flex_attention"
    found = mt.trace_layers(model, CASES)
    assert found.provenance["attention"] == "sdpa"
    assert model.config._attn_implementation_internal == "flex_attention"


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_the_null_patch_runs_at_every_layer(model: Any, engine: str) -> None:
    """A layer's own noise shows in the null patch of the layers before it, whichever the lowest traced is."""
    generator = torch.Generator().manual_seed(0)

    def jitter(_module: Any, _args: Any, output: Any) -> Any:
        return output + 1e-5 * torch.randn(output.shape, generator=generator)

    model.model.layers[3].mlp.register_forward_hook(jitter)
    found = mt.trace_layers(model, CASES[:1], engine=engine)
    assert found.provenance["null_floor"] > 0
    assert found.noise_floor >= found.provenance["null_floor"]


# Models that are served, or refused by name -------------------------------------------------------------


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


def test_coalitions_say_which_sets_a_value_needs(model: Any) -> None:
    found = mt.trace_coalitions(model, CASES, layer=1, sets=("clean", "union"))
    with pytest.raises(errors.ArgumentError, match="trace with sets='all'"):
        found.shapley()


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


def test_a_check_that_fails_means_reference(model: Any) -> None:
    """A block that wants one sequence at a time can't be asked in a tree's way; plain forwards are right."""

    def only_plain(_module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("position_ids") is not None and not bool(
            (kwargs["position_ids"].diff(dim=-1) == 1).all()
        ):
            raise ZeroDivisionError("rows out of order")

    model.model.layers[0].register_forward_pre_hook(only_plain, with_kwargs=True)
    found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "ZeroDivisionError: rows out of order" in found.provenance["engine_reason"]
    with pytest.raises(errors.EngineError, match="rows out of order"):
        mt.trace_layers(model, CASES, engine="tree")
    assert mt.trace_layers(model, CASES, engine="reference").provenance["engine_reason"] == "asked for"


def test_looped_layers_are_refused_by_name() -> None:
    model = looped()
    with pytest.raises(errors.LoopedLayerError, match=r"layers \[2, 3\] up to 3 times .*\[0, 1, 4, 5\]"):
        mt.trace_layers(model, CASES)
    found = mt.trace_layers(model, CASES, layers=[0, 1, 4, 5])
    plain = mt.trace_layers(model, CASES, layers=[0, 1, 4, 5], engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=2e-4)


# What can't have an effect ------------------------------------------------------------------------------


def test_no_noise_is_no_noise(model: Any) -> None:
    for noise in (0, 0.0, mt.SubjectNoise(0.0)):
        with pytest.warns(errors.NoEffectWarning, match="changes the logit difference of no case"):
            found = mt.trace_layers(model, CASES, noise=noise)
        assert found.provenance["noise"]["scale"] == 0.0
        np.testing.assert_allclose(found.cases.clean, found.cases.noised, atol=1e-5)
    np.testing.assert_array_equal(
        mt.trace_layers(model, CASES, noise=1.5).effects,
        mt.trace_layers(model, CASES, noise=mt.SubjectNoise(1.5)).effects,
    )


def test_where_nothing_can_happen_it_is_said(model: Any) -> None:
    with pytest.warns(errors.NoEffectWarning, match="layer 3 is the last"):
        mt.trace_layers(model, CASES, position="subject_last")
    late = [mt.Case([5, 6, 7, 8], (2, 3), 10, 40, case_id=3)]
    with pytest.warns(errors.NoEffectWarning, match=r"before the subject in 1 of 1 .* \[3\]"):
        found = mt.trace_layers(model, late, layers=[0, 1], position=0)
    assert np.abs(found.effects).max() < 1e-5
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.warns(errors.NoEffectWarning, match="zero everywhere"):
        mt.trace_layers(model, CASES)


def test_a_plain_trace_says_nothing(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mt.trace_experts(model, CASES)


# Results ------------------------------------------------------------------------------------------------


def test_effects_cant_be_written_to(model: Any) -> None:
    for found in (mt.trace_layers(model, CASES), mt.trace_experts(model, CASES)):
        with pytest.raises(ValueError, match="read-only"):
            found.effects[0, 0] = 1.0


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"noise": 2.0}, "noise"),
        ({"position": "subject_last"}, "position"),
        ({"readout": "model"}, "readout"),
    ],
)
def test_traces_made_otherwise_arent_compared(model: Any, other: Any, word: str) -> None:
    experts = mt.trace_experts(model, CASES, layer=1)
    star = experts.select(min_active=1)
    experts.layer_share(star, mt.trace_layers(model, CASES))
    with pytest.raises(errors.ArgumentError, match=f"differ in {word}"):
        experts.layer_share(star, mt.trace_layers(model, CASES, layers=[1], **other))


def test_no_relation_is_no_word() -> None:
    assert mt.Case([5, 6], (0, 1), 8, 9, case_id=0, relation_id=None).relation_id == ""  # type: ignore[arg-type]
    assert mt.Case([5, 6], (0, 1), 8, 9, case_id=0, relation_id=float("nan")).relation_id == ""  # type: ignore[arg-type]


def test_case_sets_index_and_join() -> None:
    cases = mt.CaseSet(CASES)
    assert list(cases[[2, 0]]) == [CASES[2], CASES[0]]
    assert list(cases[np.array([True, False, False, True])]) == [CASES[0], CASES[3]]
    assert cases[np.int64(-1)] == CASES[3]
    assert list(cases[:1] + cases[2:]) == [CASES[0], CASES[2], CASES[3]]
    with pytest.raises(errors.DuplicateCaseError):
        cases + cases[:1]
    with pytest.raises(IndexError, match="position 4"):
        cases[4]
    with pytest.raises(errors.ArgumentError, match="one for each of 4"):
        cases[[True, False]]


def test_an_expert_that_is_routed_to_twice_is_refused() -> None:
    model = make_wide("deepseek_v4")
    model.model.layers[0].mlp.gate.tid2eid.zero_()
    mt.trace_layers(model, CASES[:1])
    with pytest.raises(errors.LayoutError, match=r"layer 0: .* one expert twice .*\[0, 0\]"):
        mt.trace_experts(model, CASES[:1], layer=0)
