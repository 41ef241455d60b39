"""What users get wrong: each an error of the package that names the thing, what was expected, the remedy."""

from __future__ import annotations

import threading

import pytest
import torch

import moetrace as mt
from moetrace import errors
from tests.engines.tiny import make_model
from tests.pipeline.families import IDS, model_of


@pytest.fixture
def model():
    return model_of("qwen2_moe")


def refused(kind, *words):
    return pytest.raises(kind, match=".*".join(words))


@torch.no_grad()
def run(model, ids=IDS):
    return model(input_ids=ids)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"what": "blok"}, errors.ArgumentError, ["what is 'blok'", "did you mean 'block'", "router_logits"]),
        ({"what": ("block", "routeing")}, errors.ArgumentError, ["did you mean 'routing'"]),
        ({"what": 3}, errors.ArgumentTypeError, ["what is 3"]),
        ({"what": ()}, errors.ArgumentError, ["what is empty"]),
        ({"layers": 4}, errors.LayerRangeError, ["layer 4 is out of range", "layers 0 to 3"]),
        ({"layers": [-1]}, errors.LayerRangeError, ["layer -1 is out of range"]),
        ({"layers": [1, 1]}, errors.LayerRangeError, ["repeats"]),
        ({"layers": "1"}, errors.LayerTypeError, ["layers is '1'"]),
        ({"tokens": "final"}, errors.ArgumentError, ["tokens is 'final'", "'last'"]),
        ({"tokens": 1.5}, errors.ArgumentTypeError, ["tokens is 1.5"]),
        ({"tokens": []}, errors.ArgumentError, ["tokens is empty"]),
        ({"tokens": slice(2, 3)}, errors.ArgumentTypeError, ["list\\(range"]),
        ({"tokens": [1, 1]}, errors.ArgumentError, ["tokens repeats \\[1\\]"]),
        ({"tokens": [[1, 2], [3]]}, errors.ArgumentError, ["as many of each"]),
    ],
)
def test_arguments_of_capture(model, arguments, kind, words):
    with refused(kind, *words):
        mt.capture(model, **arguments)


def test_reading_what_isnt_there(model):
    tap = mt.capture(model, what=("block", "routing"), layers=[1, 2])
    with refused(errors.HookError, "block of layer 1", "before any forward", "with mt.capture"):
        tap.block[1]
    with tap:
        run(model)
    with refused(errors.LayerRangeError, "block of layer 3 wasn't captured", "\\[1, 2\\]"):
        tap.block[3]
    with refused(errors.HookError, "residual wasn't captured", "what="):
        tap.residual  # noqa: B018
    with refused(AttributeError, "no 'routings'", "did you mean 'routing'"):
        tap.routings  # noqa: B018
    with mt.capture(model, tokens=3, what="block") as other:
        with refused(errors.HookError, "before any forward"):
            other.block[1]
        run(model)


def test_tokens_outside_of_the_prompt(model):
    outside = refused(errors.TokenRangeError, "capture of block", "was left", "token 20 lies outside")
    with outside, mt.capture(model, what="block", tokens=[3, 20]) as tap:
        run(model)
    with refused(errors.TokenRangeError, "block of layer 1", "token 20 lies outside", "tokens 0 to 8"):
        tap.block[1]
    with mt.capture(model, what="block", tokens=-10), refused(errors.TokenRangeError, "token -10", "0 to 8"):
        run(model)
    with (
        mt.capture(model, tokens=torch.tensor([[1], [2]])),
        refused(errors.ArgumentError, "2 sequences", "has 3"),
    ):
        run(model)
    with mt.capture(model, tokens=[8, -1]), refused(errors.ArgumentError, "token 8 is asked for twice"):
        run(model)
    own = mt.patch(model, {mt.Block(1): mt.Ablate("zero")}, tokens=[2, 9])
    with refused(errors.TokenRangeError, "token 9 lies outside"), own:
        run(model)
    run(model)


def test_tokens_that_a_model_leaves_out_have_a_remedy():
    """Gemma 4 computes the last layers of the last token alone, where no other logits are asked for."""
    gemma = model_of("gemma4_text")
    options = {"max_new_tokens": 2, "do_sample": False}
    with (
        refused(errors.HookError, "block of layer 2", "3 x 9 tokens", "output_hidden_states=True"),
        mt.capture(gemma, what="block"),
    ):
        gemma.generate(IDS, **options)
    with torch.no_grad(), mt.capture(gemma, what="block") as tap:
        gemma.generate(IDS, **options, output_hidden_states=True)
    with torch.no_grad(), mt.capture(gemma, what="block", layers=2) as plain:
        gemma(IDS)
    assert tap.block[2].shape == (3, 10, 32)
    torch.testing.assert_close(tap.block[2][:, :9], plain.block[2])


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (
            {"blok.3": mt.Ablate("zero")},
            errors.ArgumentError,
            ["'blok.3' is no site", "did you mean 'block.3'"],
        ),
        ({"Residuals.2": mt.Ablate("zero")}, errors.ArgumentError, ["did you mean 'residual.2'"]),
        ({"block": mt.Ablate("zero")}, errors.ArgumentError, ["'block' is no site", "mt.Block\\(layer\\)"]),
        ({3: mt.Ablate("zero")}, errors.ArgumentTypeError, ["a site is 3"]),
        ({mt.Block(4): mt.Ablate("zero")}, errors.LayerRangeError, ["block.4 is out of", "layers 0 to 3"]),
        ({mt.Residual(9): mt.Ablate("zero")}, errors.LayerRangeError, ["residual.9", "layers 0 to 3"]),
        ({mt.Expert(1, 8): mt.Ablate("zero")}, IndexError, ["expert 8 is out of range", "experts 0 to 7"]),
        ({"L01E012": mt.Ablate("zero")}, IndexError, ["expert 12 is out of range"]),
        ({mt.Block(1): torch.zeros(31)}, errors.PatchError, ["block.1", "\\(31,\\)", "last axis of 32"]),
        ({mt.Router(1): torch.zeros(32)}, errors.PatchError, ["router.1", "last axis of 8"]),
        ({mt.Expert(1, 2): torch.zeros(3)}, errors.PatchError, ["L01E002", "last axis of 32"]),
        ({mt.Block(1): torch.zeros(32, dtype=torch.int64)}, errors.PatchError, ["torch.int64", "floating"]),
        ({mt.Block(1): 0.0}, errors.ArgumentTypeError, ["the value of block.1", "Ablate\\('zero'\\)"]),
        ({mt.Block(1): mt.Ablate("reroute")}, errors.PatchError, ["block.1", "mt.Expert"]),
        ({mt.Routing(1): torch.zeros(8)}, errors.PatchError, ["routing.1", "mt.Suppress"]),
        ({mt.Routing(1): mt.Ablate("mean")}, errors.PatchError, ["routing.1"]),
        ({mt.Block(1): mt.Ablate}, TypeError, ["the value of block.1", "Ablate"]),
        ({mt.Block(1): torch.full((32,), torch.nan)}, errors.PatchError, ["block.1", "32 of 32 .*NaN"]),
        ({mt.Block(1): lambda value, other: value}, errors.PatchError, ["block.1", "takes", "present value"]),
        ({mt.Routing(1): lambda experts: experts}, errors.PatchError, ["routing.1", "experts and weights"]),
        ({mt.Routing(1): int}, errors.PatchError, ["routing.1", "a function of both"]),
        (
            {mt.Routing(1): (torch.zeros(3, 9, 2, dtype=torch.long), torch.full((3, 9, 2), torch.nan))},
            errors.PatchError,
            ["routing.1", "the weights are", "54 of 54 .*NaN"],
        ),
        ({mt.Block(1): mt.Suppress(3)}, errors.PatchError, ["block.1", "mt.Routing"]),
        ({mt.Expert(1, 2): mt.Force([3])}, errors.PatchError, ["L01E002", "mt.Routing"]),
        ({mt.Routing(1): mt.Suppress(8)}, IndexError, ["expert 8 is out of range"]),
        ({}, errors.ArgumentError, ["values is empty"]),
        ([mt.Block(1)], errors.ArgumentTypeError, ["values is", "a dictionary of sites"]),
        (
            {mt.Block(1): mt.Ablate("zero"), "block.1": mt.Ablate("zero")},
            errors.ArgumentError,
            ["given twice"],
        ),
    ],
)
def test_arguments_of_patch(model, values, kind, words):
    with refused(kind, *words):
        mt.patch(model, values)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mt.Ablate("zeros"), ["the mode of Ablate is 'zeros'", "did you mean 'zero'", "reroute"]),
        (lambda: mt.Block(-1), ["layer is -1"]),
        (lambda: mt.Block("3"), ["layer is '3'"]),
        (lambda: mt.Suppress([]), ["one at least"]),
        (lambda: mt.Suppress([1, 1]), ["each once"]),
        (lambda: mt.Force([1, 2], weights=[0.5]), ["1 weights", "2 experts"]),
        (lambda: mt.Force(-1), ["experts is -1"]),
        (lambda: mt.Force([1, 2], weights=[0.5, -0.5]), ["weights is -0.5", "0"]),
        (lambda: mt.Force(1, weights=float("nan")), ["weights is nan"]),
    ],
)
def test_values_that_cant_be_made(make, words):
    with refused(errors.ArgumentError, *words):
        make()


def test_a_site_that_doesnt_exist_has_a_near_one():
    with refused(AttributeError, "no attribute 'Blok'", "did you mean 'Block'"):
        mt.Blok  # noqa: B018


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({mt.Block(1): torch.zeros(2, 32)}, ["block.1", "\\(2, 32\\)", "\\(3, 9, 32\\)"]),
        (
            {mt.Block(1): torch.zeros(32, dtype=torch.float64)},
            ["torch.float64", "expected torch.float32", "\\.to\\("],
        ),
        (
            {mt.Block(1): lambda value: value[..., :5]},
            ["the function returned", "\\(3, 9, 5\\)", "\\(3, 9, 32\\)"],
        ),
        ({mt.Block(1): lambda value: None}, ["the function returned None", "expected a tensor"]),
        ({mt.Router(1): lambda value: value.double()}, ["router.1", "torch.float64"]),
        ({mt.Expert(1, 2): lambda value: value[:1]}, ["L01E002", "\\(1, 9, 32\\)"]),
        ({mt.Routing(1): lambda experts, weights: weights}, ["routing.1", "a pair"]),
        ({mt.Routing(1): lambda experts, weights: (weights, weights)}, ["whole numbers"]),
        ({mt.Routing(1): lambda experts, weights: (experts > 3, weights)}, ["whole numbers"]),
        ({mt.Routing(1): lambda experts, weights: (experts, None)}, ["the weights are None", "a tensor"]),
        ({mt.Routing(1): lambda experts, weights: None}, ["routing.1", "returned None", "a pair"]),
        (
            {mt.Routing(1): lambda experts, weights: (experts[:1], weights)},
            ["\\(1, 9, 2\\)", "\\(3, 9, 2\\)"],
        ),
        ({mt.Routing(1): lambda experts, weights: (experts + 8, weights)}, ["out of range", "0 to 7"]),
        ({mt.Routing(1): mt.Force([1, 2, 3])}, ["3 experts are forced", "has 2"]),
    ],
)
def test_values_that_dont_fit_in_the_forward(model, values, words):
    with refused(ValueError, *words), mt.patch(model, values):
        run(model)
    with torch.no_grad(), mt.capture(model, what="block") as tap:  # and the model is as it was
        run(model)
    assert tap.block[1].shape == (3, 9, 32)


def test_another_sequence_is_needed_to_resample(model):
    with (
        refused(errors.PatchError, "block.1", "the batch has one"),
        mt.patch(model, {"block.1": mt.Ablate("resample")}),
    ):
        run(model, IDS[:1])


def test_a_patch_that_never_came_to_act_is_an_error(model):
    zero = {mt.Block(3): mt.Ablate("zero"), mt.Expert(3, 1): mt.Ablate("zero")}
    with refused(errors.HookError, "block.3", "no forward of Qwen2MoeForCausalLM"), mt.patch(model, zero):
        pass
    model.config.num_hidden_layers = 2  # a forward that leaves early
    try:
        with refused(errors.HookError, "was never patched in 1 forwards", "didn't run"):
            model.config.num_hidden_layers = 4
            own = mt.patch(model, zero)
            model.config.num_hidden_layers = 2
            with own:
                run(model)
        with refused(errors.HookError, "didn't run in the last forward"):
            model.config.num_hidden_layers = 4
            tap = mt.capture(model, what="block")
            model.config.num_hidden_layers = 2
            with tap:
                run(model)
            tap.block[3]
    finally:
        model.config.num_hidden_layers = 4
    with refused(ZeroDivisionError, "division"), mt.patch(model, zero):
        raise ZeroDivisionError("division")  # the error inside is the one that is told


def test_sites_that_a_family_hasnt():
    with refused(
        errors.LayerRangeError, "layer 1 of Qwen3MoeForCausalLM has no shared expert", "shared_expert"
    ):
        mt.patch(model_of("qwen3_moe"), {mt.SharedExpert(1): mt.Ablate("zero")})
    with refused(errors.LayerRangeError, "layer 2 of LlamaForCausalLM", "no router"):
        mt.patch(model_of("llama"), {mt.Router(2): lambda logits: logits})
    with refused(errors.LayerRangeError, "layer 2 of LlamaForCausalLM is dense"):
        mt.patch(model_of("llama"), {mt.Expert(2, 0): mt.Ablate("zero")})
    with refused(errors.LayoutError, "layer 0 of LongcatFlashForCausalLM", "self_attn", "Residual\\(0\\)"):
        mt.capture(model_of("longcat_flash"), what="attention")


def test_experts_that_are_called_one_by_one_are_refused_by_name():
    model = make_model("qwen2_moe")
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList([torch.nn.Identity() for _ in range(8)])
    with refused(errors.LayoutError, "layer 0", "its 8 experts one by one", "Block, Router"):
        mt.capture(model, what="routing")
    with refused(errors.LayoutError, "layer 1", "one by one"):
        mt.patch(model, {mt.Expert(1, 2): mt.Ablate("zero")})
    assert list(mt.capture(model).block) == [0, 1, 2, 3]


def test_models_in_whose_forwards_hooks_dont_fire(model):
    with refused(errors.WrappedModelError, "torch.compile", "_orig_mod"):
        mt.capture(torch.compile(model, backend="eager"))
    with refused(errors.WrappedModelError, "DataParallel", ".module"):
        mt.patch(torch.nn.DataParallel(model), {mt.Block(1): mt.Ablate("zero")})
    with refused(errors.ModelError, "the text 'some/model'", "load_model"):
        mt.capture("some/model")
    training = make_model("llama").train()
    training.gradient_checkpointing_enable()
    with refused(errors.ModelError, "checkpointing", "gradient_checkpointing_disable"), mt.capture(training):
        run(training)


def test_two_threads_in_one_scope_are_refused(model):
    inside, done, failures = threading.Event(), threading.Event(), []

    def wait(value):
        inside.set()
        assert done.wait(60)
        return value

    def second():
        assert inside.wait(60)
        try:
            run(model)
        except errors.HookError as failure:
            failures.append(str(failure))
        finally:
            done.set()

    thread = threading.Thread(target=second)
    thread.start()
    with mt.patch(model, {mt.Block(1): wait}):
        run(model)
    thread.join()
    assert "two threads run forwards" in failures[0]
    assert "copy of the model" in failures[0]
