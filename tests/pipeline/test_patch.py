"""Every site of ``patch``, against hooks written by hand, over a dozen layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import moetrace as mt
from tests.pipeline.families import (
    FAMILIES,
    IDS,
    LAYER,
    SHARED,
    SPARSE,
    block_of,
    experts_of,
    hooked,
    layer_of,
    linear_of,
    mixer_of,
    model_of,
    output_of,
    replaced,
    rerouted,
)

TOKENS = [2, 5]


@torch.no_grad()
def patched(model, values, tokens=None, **inputs):
    with mt.patch(model, values, tokens=tokens):
        return model(**(inputs or {"input_ids": IDS})).logits


@torch.no_grad()
def plain(model):
    return model(input_ids=IDS).logits


def close(found, expected, model):
    assert not torch.allclose(expected, plain(model), rtol=1e-4, atol=1e-4)  # the test can fail
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def with_tokens(change, tokens=TOKENS):
    """A change of whole values, at some tokens alone."""

    def act(value):
        value[:, tokens] = change(value[:, tokens])
        return value

    return act


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_modules_are_replaced(family):
    model = model_of(family)
    places = [
        (mt.Block(1), block_of(model, family, 1)),
        (mt.Residual(1), layer_of(model, family, 1)),
        *([] if family == "longcat_flash" else [(mt.Attention(LAYER), mixer_of(model, family))]),
    ]
    for site, module in places:
        width = output_of(model, module).shape[-1]
        vector = torch.randn(width, generator=torch.Generator().manual_seed(2))
        by_hand = replaced(model, module, with_tokens(lambda value, vector=vector: vector.expand_as(value)))
        close(patched(model, {site: vector}, TOKENS), by_hand, model)
        by_hand = replaced(model, module, lambda value: 0.5 * value + 1.0)
        close(patched(model, {site: lambda value: 0.5 * value + 1.0}), by_hand, model)
    assert torch.equal(plain(model), patched(model, {places[0][0]: lambda value: value}))


@pytest.mark.parametrize("family", SHARED)
def test_shared_experts_are_replaced(family):
    model = model_of(family)
    module = layer_of(model, family).get_submodule(SHARED[family])
    by_hand = replaced(model, module, with_tokens(torch.zeros_like))
    close(patched(model, {mt.SharedExpert(LAYER): mt.Ablate("zero")}, TOKENS), by_hand, model)


@pytest.mark.parametrize("family", SPARSE)
def test_experts_are_suppressed_and_forced(family):
    model, experts = model_of(family), experts_of(model_of(family), family)
    with mt.capture(model, what="routing", layers=LAYER) as tap:
        plain(model)
    chosen = int(tap.routing[LAYER].experts[0, 0, 0])

    def by_hand(change):
        with hooked(experts, rerouted(model, family, change), before=True):
            return plain(model)

    def suppress(index, weights):
        return index, weights.masked_fill(index == chosen, 0.0)

    def renormalise(index, weights):
        new = weights.masked_fill(index == chosen, 0.0)
        return index, new * (
            weights.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).where(new.sum(-1, keepdim=True) != 0, 1)
        )

    def force(index, weights):
        for b in range(index.shape[0]):
            for t in range(index.shape[1]):
                if chosen not in index[b, t]:
                    index[b, t, weights[b, t].abs().argmin()] = chosen
        return index, weights

    site, first_half = mt.Routing(LAYER), torch.tensor([0.5, 1.0])  # a norm behind the block undoes a scale
    close(patched(model, {site: mt.Suppress(chosen)}), by_hand(suppress), model)
    close(patched(model, {site: mt.Suppress([chosen], renormalise=True)}), by_hand(renormalise), model)
    close(patched(model, {site: mt.Force(chosen)}), by_hand(force), model)
    close(patched(model, {site: suppress}), by_hand(suppress), model)
    halved = by_hand(lambda index, weights: (index, with_tokens(lambda w: w * first_half)(weights)))
    close(patched(model, {site: lambda index, weights: (index, weights * first_half)}, TOKENS), halved, model)


@pytest.mark.parametrize("family", SPARSE)
def test_one_experts_contribution_is_replaced(family):
    """Zero is the expert's weight at zero; a vector stands in the place of what it gives, or of nothing."""
    model, experts, block = (
        model_of(family),
        experts_of(model_of(family), family),
        block_of(model_of(family), family),
    )
    with mt.capture(model, what=("routing", "contributions", "block"), layers=LAYER) as tap:
        plain(model)
    index, own = tap.routing[LAYER].experts, tap.contributions[LAYER]
    chosen = int(index[0, TOKENS[0], 1])
    site = mt.Expert(LAYER, chosen)

    def silence(index, weights):
        here = torch.zeros(index.shape[:2], dtype=torch.bool)
        here[:, TOKENS] = True
        return index, weights.masked_fill((index == chosen) & here[..., None], 0.0)

    with hooked(experts, rerouted(model, family, silence), before=True):
        by_hand = plain(model)
    close(patched(model, {site: mt.Ablate("zero")}, TOKENS), by_hand, model)

    present = (own * (index == chosen)[..., None]).sum(2)
    vector = torch.randn(own.shape[-1], generator=torch.Generator().manual_seed(3))
    by_hand = replaced(model, block, lambda value: value - present + vector)
    close(patched(model, {site: vector}), by_hand, model)
    close(
        patched(model, {site: lambda value: 3.0 * value}),
        replaced(model, block, lambda v: v + 2 * present),
        model,
    )

    here = (index == chosen).any(-1)
    mean = present[here].mean(0) * here[..., None]
    close(
        patched(model, {site: mt.Ablate("mean")}), replaced(model, block, lambda v: v - present + mean), model
    )
    resample = replaced(model, block, lambda value: value - present + present.roll(1, 0))
    close(patched(model, {site: mt.Ablate("resample")}), resample, model)


# Of routers whose linear map is in the router itself: by hand, what is given to it decides.
@pytest.mark.parametrize("family", SPARSE)
def test_router_logits_take_a_bias(family):
    """By hand: a bias that a copy of the router's linear map has."""
    model = model_of(family)
    _, weight, _ = linear_of(model, family)
    added = torch.randn(weight.shape[0], generator=torch.Generator().manual_seed(4))
    if family == "deepseek_v4":
        added = added.abs() + 0.5  # square roots of softplus: what decides is far from flat
    found = patched(model, {mt.Router(LAYER): lambda logits: logits + added})
    original = F.linear

    def biased(value, own, own_bias=None):
        result = original(value, own, own_bias)
        return (
            result + added
            if own.shape == weight.shape and torch.equal(own.float(), weight.float())
            else result
        )

    torch._C._nn.linear, F.linear = biased, biased
    try:
        by_hand = plain(model)
    finally:
        torch._C._nn.linear = F.linear = original
    close(found, by_hand, model)


@pytest.mark.parametrize("family", SPARSE)
def test_rerouting_lets_the_router_choose_its_next_expert(family):
    model = model_of(family)
    with mt.capture(model, what=("routing", "router_logits"), layers=LAYER) as tap:
        plain(model)
    before, logits = tap.routing[LAYER], tap.router_logits[LAYER]
    chosen = int(before.experts[0, 4, 0])
    tap = mt.capture(model, what=("routing", "router_logits"), layers=LAYER)
    with mt.patch(model, {mt.Expert(LAYER, chosen): mt.Ablate("reroute")}, tokens=4), tap:
        plain(model)
    behind = tap.routing[LAYER]
    others = [token for token in range(IDS.shape[1]) if token != 4]
    assert torch.equal(behind.experts[:, others], before.experts[:, others])
    assert not (behind.experts[:, 4] == chosen).any()
    assert torch.equal(tap.router_logits[LAYER][:, others], logits[:, others])
    for sequence in range(3):
        old = set(before.experts[sequence, 4].tolist())
        new = set(behind.experts[sequence, 4].tolist())
        assert len(new) == 2
        if chosen not in old:
            assert new == old
    if family in ("qwen3_moe", "gpt_oss", "granitemoe"):  # softmax over the best logits: closed form
        left = logits[:, 4].clone()
        left[:, chosen] = -torch.inf
        best = left.topk(2, -1)
        assert torch.equal(behind.experts[:, 4], best.indices)
        torch.testing.assert_close(behind.weights[:, 4], best.values.softmax(-1))


def test_ablations_of_a_value():
    model = model_of("qwen2_moe")
    block = block_of(model, "qwen2_moe", 1)
    for mode, change in (
        ("zero", torch.zeros_like),
        ("mean", lambda value: value.mean((0, 1), keepdim=True).expand_as(value)),
        ("resample", lambda value: value.roll(1, 0)),
    ):
        by_hand = replaced(model, block, with_tokens(change))
        close(patched(model, {mt.Block(1): mt.Ablate(mode)}, TOKENS), by_hand, model)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    attended = mask.bool()
    with (
        hooked(
            block,
            lambda _m, _a, _k, output: output[attended].mean(0).expand_as(output),
        ),
        torch.no_grad(),
    ):
        by_hand = model(input_ids=IDS, attention_mask=mask).logits
    found = patched(model, {mt.Block(1): mt.Ablate("mean")}, input_ids=IDS, attention_mask=mask)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)


def test_several_sites_act_in_the_order_in_which_the_model_comes_by():
    model = model_of("qwen2_moe")
    seen = []

    def see(name):
        def act(value):
            seen.append(name)
            return value

        return act

    def see_routing(experts, weights):
        seen.append("routing")
        return experts, weights

    values = {
        mt.Residual(1): see("residual"), mt.Block(1): see("block"), mt.Expert(1, 2): see("expert"),
        mt.SharedExpert(1): see("shared"), mt.Routing(1): see_routing, mt.Router(1): see("router"),
        mt.Attention(1): see("attention"), "block.0": see("before"),
    }  # fmt: skip
    assert torch.equal(patched(model, values), plain(model))
    assert seen.index("before") == 0
    order = ["attention", "router", "routing", "expert", "block", "residual"]
    assert [name for name in seen if name in order] == order


def test_two_experts_of_a_layer_are_ablated_together():
    model = model_of("deepseek_v3")
    with mt.capture(model, what=("routing", "contributions"), layers=LAYER) as tap:
        plain(model)
    index, own = tap.routing[LAYER].experts, tap.contributions[LAYER]
    pair = index[0, 0].tolist()
    lost = sum((own * (index == expert)[..., None]).sum(2) for expert in pair)
    by_hand = replaced(model, block_of(model, "deepseek_v3"), lambda value: value - lost)
    close(patched(model, {(f"L03E{expert:03d}"): mt.Ablate("zero") for expert in pair}), by_hand, model)
    by_hand = replaced(model, block_of(model, "deepseek_v3"), lambda value: 2 * (value - lost))
    both = {mt.Expert(LAYER, expert): mt.Ablate("zero") for expert in pair} | {
        mt.Block(LAYER): lambda v: 2 * v
    }
    close(patched(model, both), by_hand, model)


def test_forced_experts_take_their_own_place_or_the_smallest():
    experts = torch.tensor([[[5, 3, 1], [2, 0, 4]]])
    weights = torch.tensor([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]])
    index, found = mt.Force([1, 7])(experts, weights)
    assert index.tolist() == [[[5, 7, 1], [2, 7, 1]]] or index.tolist() == [[[5, 7, 1], [7, 0, 1]]]
    assert torch.equal(found, weights)
    index, found = mt.Force([7], weights=[1.0], renormalise=True)(experts, weights)
    assert index.tolist() == [[[5, 3, 7], [2, 0, 7]]]
    torch.testing.assert_close(found, torch.tensor([[[0.5, 0.3, 1.0], [0.4, 0.4, 1.0]]]) / 1.8)
    index, found = mt.Suppress([5, 3, 1], renormalise=True)(experts, weights)
    assert found[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(found[0, 1], weights[0, 1])
