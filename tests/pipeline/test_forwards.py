"""Captures and patches in forwards of any kind: padded, cached, generated, with gradients, nested."""

from __future__ import annotations

import threading

import pytest
import torch

import moetrace as mt
from tests.engines.tiny import VOCAB, make_model
from tests.pipeline.families import IDS, block_of, first, hooked, model_of, replaced
from tests.weights import folders, places

WHAT = ("block", "routing", "contributions", "router_logits", "residual", "attention")


@pytest.fixture
def model():
    return model_of("qwen3_moe")


def values_of(tap, layer=1):
    return [
        tap.block[layer], tap.contributions[layer], tap.router_logits[layer], tap.residual[layer],
        tap.attention[layer], tap.routing[layer].weights, tap.routing[layer].experts,
    ]  # fmt: skip


def assert_close(found, expected, **tolerance):
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, **({"rtol": 1e-4, "atol": 1e-4} | tolerance))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_hold_what_each_sequence_has_alone(model, side):
    lengths, longest = (9, 5, 7), 9
    ids, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        here = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, here], mask[row, here] = IDS[row, :length], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad(), mt.capture(model, what=WHAT, tokens="last") as last:
        whole = model(**batch).logits
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), mt.patch(model, {mt.Block(1): vector}, tokens="last"):
        patched = model(**batch).logits
    for row, length in enumerate(lengths):
        alone = {"input_ids": IDS[row : row + 1, :length]}
        with torch.no_grad(), mt.capture(model, what=WHAT, tokens=-1) as tap:
            model(**alone)
        assert_close([value[row : row + 1] for value in values_of(last)], values_of(tap))
        with torch.no_grad(), mt.patch(model, {mt.Block(1): vector}, tokens=length - 1):
            expected = model(**alone).logits[0, -1]
        at = longest - 1 if side == "left" else length - 1
        torch.testing.assert_close(patched[row, at], expected, rtol=1e-4, atol=1e-4)
        assert (patched[row, at] - whole[row, at]).abs().max() > 1e-2


@torch.no_grad()
def test_forwards_with_a_cache_go_on_with_their_sequences(model):
    with mt.capture(model, what=WHAT) as whole:
        model(input_ids=IDS)
    with mt.capture(model, what=WHAT) as tap, mt.capture(model, what="block", tokens=[7, 1]) as two:
        cache = model(input_ids=IDS[:, :5], use_cache=True).past_key_values
        for step in range(5, 9):
            cache = model(
                input_ids=IDS[:, step : step + 1], past_key_values=cache, use_cache=True
            ).past_key_values
    assert_close(values_of(tap), values_of(whole))
    assert tap.steps == [5, 1, 1, 1, 1]
    assert_close([two.block[1]], [whole.block[1][:, [1, 7]]])  # forward by forward
    with mt.capture(model, what="block") as later:  # a cache that was filled before: its tokens aren't here
        model(input_ids=IDS[:, :2], past_key_values=cache, use_cache=True)
        assert later.block[1].shape[1] == 2
        model(input_ids=IDS[:1])
        assert later.block[1].shape[:2] == (1, 9)
        assert later.steps == [9]


@torch.no_grad()
def test_generation_holds_the_prompt_and_every_token_but_the_last(model):
    options = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    before = model.generate(IDS, **options)
    with mt.capture(model, what=WHAT) as tap, mt.capture(model, what="residual", tokens=-1) as ends:
        assert torch.equal(model.generate(IDS, **options), before)
    with mt.capture(model, what=WHAT) as whole:
        model(input_ids=before[:, :-1])
    assert tap.block[1].shape[1] == 9 + 3
    assert_close(values_of(tap), values_of(whole))
    assert_close([ends.residual[3]], [whole.residual[3][:, 8:]])

    def steer(value):
        return value + 3.0

    by_hand = [IDS]
    with hooked(model.model.layers[2], lambda _m, _a, _k, output: steer(first(output))):
        by_hand = model.generate(IDS, **options)
    with mt.patch(model, {mt.Residual(2): steer}):
        assert torch.equal(model.generate(IDS, **options), by_hand)
    assert not torch.equal(by_hand, before)
    with mt.patch(model, {mt.Residual(2): steer}, tokens=range(9, 12)):  # the new tokens alone
        assert torch.equal(model.generate(IDS, **options)[:, 9], before[:, 9])


@torch.no_grad()
def test_left_padded_generation_takes_the_last_token_of_each_step(model):
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    options = {"do_sample": False, "max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    with mt.capture(model, what="block", tokens="last") as last, mt.capture(model, what="block") as whole:
        model.generate(IDS, attention_mask=mask, **options)
    assert_close([last.block[1]], [whole.block[1][:, 8:]])


def test_gradients_flow_through_what_is_captured(model):
    with mt.capture(model, what=("block", "routing", "residual", "router_logits", "contributions")) as tap:
        loss = model(input_ids=IDS).logits[:, -1, 5].sum()
    wanted = [tap.block[1], tap.residual[0], tap.routing[2].weights, tap.router_logits[2]]
    grads = torch.autograd.grad(loss, wanted, retain_graph=True)
    kept = {}

    def keep(name):
        def act(_module, _args, _kwargs, output):
            kept[name] = first(output)

        return act

    with (
        hooked(block_of(model, "qwen3_moe", 1), keep("block")),
        hooked(model.model.layers[0], keep("residual")),
    ):
        by_hand = model(input_ids=IDS).logits[:, -1, 5].sum()
    expected = torch.autograd.grad(by_hand, [kept["block"], kept["residual"]])
    assert_close(grads[:2], expected)
    assert all(grad.abs().max() > 0 for grad in grads)
    # An expert's contribution reaches back to its own weights.
    weight = model.model.layers[1].mlp.experts.down_proj
    own = torch.autograd.grad(tap.contributions[1].square().sum(), weight, retain_graph=True)[0]
    same = torch.autograd.grad(tap.contributions[1].sum(2).square().sum(), weight)[0]
    assert own.abs().max() > 0
    assert not torch.allclose(own, same)


def test_gradients_flow_through_a_patch_to_what_it_was_made_of(model):
    def run(site, **arguments):
        vector = torch.full((32,), 0.3, requires_grad=True)
        value = (lambda present: present + vector) if arguments.pop("add", False) else vector
        with mt.patch(model, {site: value}, **arguments):
            loss = model(input_ids=IDS).logits[:, -1, 5].sum()
        return torch.autograd.grad(loss, vector)[0]

    for site, arguments in (
        (mt.Block(1), {"tokens": 4}),
        (mt.Residual(1), {"add": True}),
        (mt.Expert(2, 3), {"tokens": "last"}),
        (mt.Attention(1), {"add": True, "tokens": [0, 8]}),
    ):
        grad = run(site, **arguments)
        assert grad.abs().max() > 0
    vector = torch.full((32,), 0.3, requires_grad=True)
    module = block_of(model, "qwen3_moe", 1)

    def act(_module, _args, _kwargs, output):
        return torch.cat([output[:, :4], vector.expand(3, 1, 32), output[:, 5:]], 1)

    with hooked(module, act):
        loss = model(input_ids=IDS).logits[:, -1, 5].sum()
    assert_close([run(mt.Block(1), tokens=4)], [torch.autograd.grad(loss, vector)[0]])


def test_what_is_kept_stays_as_it_was_when_the_model_writes_over_it(model):
    module = model.model.layers[1]
    tap = mt.capture(model, what="residual", layers=1)
    with torch.no_grad(), tap, hooked(module, lambda _m, _a, _k, output: first(output).mul_(0.0)):
        model(input_ids=IDS)
    with torch.no_grad(), mt.capture(model, what="residual", layers=1) as plain:
        model(input_ids=IDS)
    assert torch.equal(tap.residual[1], plain.residual[1])


@torch.no_grad()
def test_scopes_nest_and_act_in_the_order_in_which_they_came(model):
    zero = {mt.Block(1): mt.Ablate("zero"), mt.Router(1): lambda logits: logits * 0.0 - 1.0}
    with mt.capture(model, what=("block", "router_logits")) as outside, mt.patch(model, zero):
        with (
            mt.capture(model, what=("block", "router_logits")) as inside,
            mt.patch(model, {mt.Block(1): lambda v: v + 1}),
        ):
            found = model(input_ids=IDS).logits
        model(input_ids=IDS[:1])
    assert torch.equal(inside.block[1], torch.zeros(3, 9, 32))
    assert torch.equal(inside.router_logits[1], torch.full((3, 9, 8), -1.0))
    assert outside.block[1].shape[0] == 1
    assert outside.block[1].abs().max() > 0
    assert outside.router_logits[1].std() > 0.1
    by_hand = replaced(model, block_of(model, "qwen3_moe", 1), torch.ones_like)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(model.model.layers[1].mlp.gate)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_function_may_call_the_model_itself(model):
    """It runs without the patch, and nothing of it is kept."""
    plain = model(input_ids=IDS).logits
    inner = []

    def again(value):
        inner.append(model(input_ids=IDS[:1, :3]).logits)
        return 0.5 * value

    with mt.capture(model, what="block") as tap, mt.patch(model, {mt.Block(1): again}):
        found = model(input_ids=IDS).logits
    assert torch.allclose(inner[0], plain[:1, :3], atol=1e-5)
    assert tap.block[1].shape == (3, 9, 32)
    by_hand = replaced(model, block_of(model, "qwen3_moe", 1), lambda value: 0.5 * value)
    torch.testing.assert_close(found, by_hand)


@torch.no_grad()
def test_a_scope_can_be_opened_again_but_not_twice_at_once(model):
    tap = mt.capture(model, what="block", layers=1)
    for batch in (1, 2):
        with tap:
            model(input_ids=IDS[:batch])
            with pytest.raises(mt.errors.HookError, match="open already"), tap:
                pass
        assert tap.block[1].shape[0] == batch
    own = mt.patch(model, {mt.Block(1): mt.Ablate("zero")})
    for _ in range(2):
        with own:
            model(input_ids=IDS)
    with pytest.raises(mt.errors.HookError, match="no forward"), own:
        pass


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
def test_the_model_is_as_it_was_after_what_ends_a_forward(model, failure):
    plain = model(input_ids=IDS).logits

    def fail(value):
        raise failure

    values = {mt.Router(2): fail, mt.Block(1): lambda value: 2 * value, mt.Expert(0, 1): mt.Ablate("reroute")}
    with pytest.raises(type(failure)), mt.capture(model, what=WHAT), mt.patch(model, values):
        model(input_ids=IDS)
    assert torch.equal(model(input_ids=IDS).logits, plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_threads_work_on_models_of_their_own():
    models = [make_model("qwen3_moe", seed) for seed in range(3)]
    alone, found = [], {}

    @torch.no_grad()
    def work(number):
        ids = torch.randint(3, VOCAB, (2, 6 + number), generator=torch.Generator().manual_seed(number))
        values = {mt.Block(1): lambda value: 0.5 * value, mt.Router(2): lambda logits: -logits}
        with mt.patch(models[number], values), mt.capture(models[number], what=WHAT) as tap:
            for _ in range(5):
                logits = models[number](input_ids=ids).logits
        return [logits, *values_of(tap)]

    for number in range(3):
        alone.append(work(number))
    threads = [threading.Thread(target=lambda n=n: found.update({n: work(n)})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_close(found[number], alone[number], rtol=0, atol=0)


@torch.no_grad()
def test_a_forward_in_another_thread_than_the_scopes_own_is_served(model):
    """As where tokens are streamed from a thread that generates."""
    with mt.capture(model, what="block") as tap:
        thread = threading.Thread(target=torch.no_grad()(lambda: model(input_ids=IDS)))
        thread.start()
        thread.join()
    assert tap.block[1].shape == (3, 9, 32)


@torch.no_grad()
def test_streamed_models_are_served(tmp_path):
    made = folders.save("qwen2_moe", tmp_path)
    plain = folders.load_plain(made, tmp_path)
    streamed, _ = folders.load_streamed(made, tmp_path)
    what, values = (
        (*WHAT, "shared_expert"),
        {mt.Expert(1, 3): mt.Ablate("zero"), mt.Block(2): lambda v: 2 * v},
    )
    found = []
    for model in (plain, streamed):
        with mt.patch(model, values), mt.capture(model, what=what) as tap:
            logits = model(input_ids=IDS).logits
        found.append([logits, *values_of(tap), tap.shared_expert[3]])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_models_that_accelerate_offloads_are_served(place, tmp_path):
    pytest.importorskip("accelerate")
    plain, away = places.in_memory(), places.PLACES[place](places.in_memory(), tmp_path)
    found = []
    for model in (plain, away):
        with mt.patch(model, {mt.Expert(1, 3): mt.Ablate("zero")}), mt.capture(model, what=WHAT) as tap:
            logits = model(input_ids=IDS).logits
        found.append([logits, *values_of(tap)])
    assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_models_compiled_in_place_run_uncompiled_for_the_time():
    model = make_model("qwen3_moe")
    plain = model(input_ids=IDS).logits
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    with mt.capture(model, what="block") as tap:
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert tap.block[1].shape == (3, 9, 32)
    assert model._compiled_call_impl is compiled


def test_training_mode_and_dropout_stay_as_they_are(model):
    model.train()
    try:
        with mt.capture(model, what="block"):
            assert model.training
            model(input_ids=IDS)
        assert model.training
    finally:
        model.eval()
