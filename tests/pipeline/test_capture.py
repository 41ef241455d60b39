"""Every kind of value that ``capture`` keeps, against hooks written by hand, over a dozen layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import moetrace as mt
from tests.pipeline.families import (
    DENSE,
    FAMILIES,
    IDS,
    LAYER,
    ROUTERS,
    SHARED,
    SPARSE,
    block_of,
    by_token,
    experts_of,
    first,
    hooked,
    layer_of,
    linear_of,
    mixer_of,
    model_of,
    output_of,
    routed,
)


@torch.no_grad()
def captured(model, what, **arguments):
    with mt.capture(model, what=what, **arguments) as tap:
        logits = model(input_ids=IDS).logits
    return tap, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_what_modules_give_is_what_hooks_see_and_nothing_changes(family):
    model = model_of(family)
    what = ["block", "residual"] + ["attention"] * (family != "longcat_flash")
    tap, logits = captured(model, what)
    with torch.no_grad():
        assert torch.equal(logits, model(input_ids=IDS).logits)
    for layer in (1, LAYER):
        assert torch.equal(tap.block[layer], output_of(model, block_of(model, family, layer)))
        assert torch.equal(tap.residual[layer], output_of(model, layer_of(model, family, layer)))
    if "attention" in what:
        assert torch.equal(tap.attention[LAYER], output_of(model, mixer_of(model, family)))
    assert list(tap.residual) == list(range(4))
    assert len(tap.block) >= 3


@pytest.mark.parametrize("family", SHARED)
def test_shared_experts_are_kept_as_they_give(family):
    model = model_of(family)
    tap, _ = captured(model, "shared_expert")
    expected = output_of(model, layer_of(model, family).get_submodule(SHARED[family]))
    assert torch.equal(tap.shared_expert[LAYER], expected)


@pytest.mark.parametrize("family", SPARSE)
def test_routing_is_what_experts_are_called_with(family):
    model, seen = model_of(family), []
    experts = experts_of(model, family)
    with hooked(experts, lambda _m, args, kwargs: seen.append(routed(args, kwargs)), before=True):
        tap, _ = captured(model, "routing")
    assert torch.equal(tap.routing[LAYER].experts, by_token(seen[0]["top_k_index"]))
    assert torch.equal(tap.routing[LAYER].weights, by_token(seen[0]["top_k_weights"]))
    assert tap.routing[LAYER].experts.shape == (*IDS.shape, 2)


@pytest.mark.parametrize("family", ROUTERS)
def test_router_logits_are_the_linear_map_of_what_the_router_is_given(family):
    model, seen = model_of(family), []
    entered, weight, bias = linear_of(model, family)
    with hooked(entered, lambda _m, args, kwargs: seen.append((*args, *kwargs.values())[0]), before=True):
        tap, _ = captured(model, "router_logits", layers=LAYER)
    expected = by_token(F.linear(seen[0].reshape(-1, seen[0].shape[-1]).float(), weight, bias))
    torch.testing.assert_close(tap.router_logits[LAYER], expected, rtol=1e-5, atol=1e-5)
    assert list(tap.router_logits) == [LAYER]


@pytest.mark.parametrize("family", SPARSE)
def test_contributions_are_what_the_block_loses_without_an_expert(family):
    """Equation 5 by ablation: the weight of one place is zero for every token, the rest as it was."""
    model = model_of(family)
    tap, _ = captured(model, ("contributions", "block", "routing"), layers=[LAYER])
    found, whole = tap.contributions[LAYER], tap.block[LAYER]
    assert found.shape == (*IDS.shape, 2, model.config.get_text_config().hidden_size)

    def silence(place):
        def act(_module, args, kwargs):
            given = routed(args, kwargs)
            given["top_k_weights"] = given["top_k_weights"].clone()
            given["top_k_weights"][:, place] = 0.0
            return (), given

        return act

    for place in range(2):
        lost = []
        with (
            hooked(experts_of(model, family), silence(place), before=True),
            hooked(block_of(model, family), lambda _m, _a, _k, output, lost=lost: lost.append(first(output))),
            torch.no_grad(),
        ):
            model(input_ids=IDS)
        expected = whole - by_token(lost[0])
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(
            found[:, :, place], expected, rtol=1e-4, atol=1e-5 * float(whole.abs().max())
        )


def test_chosen_tokens_are_those_of_the_whole():
    model = model_of("qwen2_moe")
    what = ("block", "routing", "contributions", "router_logits")
    whole, _ = captured(model, what)
    each = torch.tensor([[0, 4], [8, 1], [2, 3]])
    mask = torch.zeros(IDS.shape, dtype=torch.bool).scatter(1, each, True)
    rows = torch.arange(3)[:, None]
    for tokens, columns in (
        (5, torch.full((3, 1), 5)),
        (-1, torch.full((3, 1), 8)),
        ("last", torch.full((3, 1), 8)),
        ([7, 0, -2 + 3], torch.tensor([[7, 0, 1]] * 3)),
        (range(2, 4), torch.tensor([[2, 3]] * 3)),
        (each, each),
        (mask, each.sort(1).values),
    ):
        tap, logits = captured(model, what, tokens=tokens)
        for word in ("block", "router_logits"):
            assert torch.equal(getattr(tap, word)[LAYER], getattr(whole, word)[LAYER][rows, columns]), tokens
        assert torch.equal(tap.routing[LAYER].experts, whole.routing[LAYER].experts[rows, columns])
        expected = whole.contributions[LAYER][rows, columns]
        torch.testing.assert_close(tap.contributions[LAYER], expected, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            assert torch.equal(logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("family", DENSE)
def test_dense_models_have_no_experts_and_say_so(family):
    model = model_of(family)
    for word in ("routing", "contributions", "router_logits", "shared_expert"):
        with pytest.raises(mt.errors.LayerRangeError, match=f"no layer of .* has what '{word}' asks for"):
            mt.capture(model, what=word)
    with pytest.raises(mt.errors.LayerRangeError, match=r"layer 2 of .* is dense"):
        mt.capture(model, what="routing", layers=2)


def test_contributions_of_a_bfloat16_model_are_in_float32():
    model = model_of("qwen3_moe")
    tap, _ = captured(model, ("contributions", "block"))
    half = type(model)(model.config).bfloat16().eval()
    half.load_state_dict(model.state_dict())
    rounded, _ = captured(half, ("contributions", "block", "routing"))
    assert rounded.block[0].dtype is torch.bfloat16
    assert rounded.contributions[0].dtype is torch.float32
    torch.testing.assert_close(
        rounded.contributions[0].sum(2),
        rounded.block[0].float(),
        rtol=2e-2,
        atol=2e-2 * float(tap.block[0].abs().max()),
    )


@pytest.mark.parametrize("family", ["llama4_text", "axk1", "muse_spark"])
def test_experts_that_have_no_share_of_the_block_are_refused_by_name(family):
    model = model_of(family)
    with pytest.raises(mt.errors.ContributionError, match=r"layer \d") as refused, torch.no_grad():
        captured(model, "contributions")
    linear = "router may scale what goes in" if family == "llama4_text" else "does more with the sum"
    assert linear in str(refused.value)
    assert "without" in str(refused.value)  # what to do instead
    tap, _ = captured(model, ("block", "router_logits", "residual"))
    assert tap.block[1].shape == tap.residual[1].shape
    with torch.no_grad():
        model(input_ids=IDS)  # and it is as it was


def test_a_module_that_runs_twice_in_one_forward_has_no_single_value():
    model = model_of("llama")
    inner = model.model.layers[1]
    again = hooked(inner, lambda module, _a, _k, output: first(output) + module.mlp(first(output)))
    twice = pytest.raises(mt.errors.HookError, match="ran twice in one")
    with again, mt.capture(model, what="block", layers=1), twice:
        model(input_ids=IDS)
    with torch.no_grad(), mt.capture(model, what="block", layers=1) as tap:
        model(input_ids=IDS)
    assert tap.block[1].shape == (*IDS.shape, 32)
