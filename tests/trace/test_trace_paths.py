from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.results.expert_name import ExpertRangeError
from tests.engines import oracle
from tests.engines.test_gradients import contributions, noise_of
from tests.engines.tiny import SPARSE, make_cases, make_model
from tests.trace.test_model_is_left_alone import assert_same, fail_in, snapshot


@pytest.fixture(scope="module")
def cases():
    return make_cases(4)


class ByHand:
    """Paths of a Qwen3-MoE model, written from its layer: h = x + attention, out = h + block(norm(h))."""

    def __init__(self, model, case, position, draw=0):
        self.model, self.case = model, case
        self.at = position % len(case.input_ids)
        self.noise = noise_of(model, case, draw)
        self.clean, self.noised = {}, {}
        oracle.run(model, case, keep=self.clean)
        self.middle = {}
        handles = [
            layer.post_attention_layernorm.register_forward_hook(self._keep(number))
            for number, layer in enumerate(oracle.layers_of(model))
        ]
        self.difference = oracle.run(model, case, self.noise, keep=self.noised)
        for handle in handles:
            handle.remove()
        self.contributions = [contributions(model, case, noise, self.at) for noise in (None, self.noise)]

    def _keep(self, number):
        def hook(_module, args, _output):
            self.middle[number] = args[0].reshape(-1, args[0].shape[-1])[self.at].clone()

        return hook

    def delta(self, sender):
        """The change of the stream; None where the expert isn't clean-active."""
        if isinstance(sender, int):
            return self.clean[sender][self.at] - self.noised[sender][self.at]
        layer, expert = sender
        clean, noised = (run[layer] for run in self.contributions)
        return clean[expert] - noised.get(expert, 0) if expert in clean else None

    def path(self, sender, layer, kind, expert=-1):
        value = self.received(sender, layer, kind, expert)
        if value is None:
            return 0.0
        return oracle.run(self.model, self.case, self.noise, (layer, value, self.at)) - self.difference

    def received(self, sender, layer, kind, expert=-1):
        """What the receiver's block gives."""
        delta = self.delta(sender)
        if delta is None:
            return None
        own = oracle.layers_of(self.model)[layer]
        with torch.no_grad():
            before = own.post_attention_layernorm(self.middle[layer][None])
            after = own.post_attention_layernorm((self.middle[layer] + delta)[None])
            routing = {name: own.mlp.gate(hidden)[1:] for name, hidden in (("b", before), ("a", after))}
            if kind == "block":
                value = own.mlp(after[None])[0, 0]
            else:
                value = torch.zeros_like(before[0])
                weights, chosen = routing["a" if kind == "router" else "b"]
                for slot in range(chosen.shape[1]):
                    number = int(chosen[0, slot])
                    hidden = after if kind == "expert" and number == expert else before
                    gate, up = (own.mlp.experts.gate_up_proj[number] @ hidden[0]).chunk(2)
                    inner = torch.nn.functional.silu(gate) * up
                    value += weights[0, slot] * (own.mlp.experts.down_proj[number] @ inner)
        return value


def active_experts(model, cases, layer):
    found = mt.trace_experts(model, cases, layer=layer)
    order = np.argsort(-found.arrays.clean_active.sum(axis=0), kind="stable")
    noised = np.argsort(-found.arrays.noised_active.sum(axis=0), kind="stable")
    return int(order[0]), int(noised[0])


@pytest.mark.parametrize("position", [-1, -2])
def test_paths_written_by_hand(model, cases, position):
    sender = active_experts(model, cases, 0)[0]
    receiver = active_experts(model, cases, 2)[1]
    pairs = [
        ((0, sender), 1), ((0, sender), 3), ((0, sender), "L02.router"), ((0, sender), (2, receiver)),
        (1, 2), ("L01", "L03.router"), (0, f"L02E{receiver:03d}"), ((1, 0), 2),
    ]  # fmt: skip
    found = mt.trace_paths(model, cases, pairs, position=position)
    assert found.sites.sender.tolist()[4:6] == ["L01", "L01"]
    assert found.sites.receiver.tolist()[2:4] == ["L02.router", f"L02E{receiver:03d}"]
    plain = [
        ((0, sender), 1, "block"), ((0, sender), 3, "block"), ((0, sender), 2, "router"),
        ((0, sender), 2, "expert", receiver), (1, 2, "block"), (1, 3, "router"),
        (0, 2, "expert", receiver), ((1, 0), 2, "block"),
    ]  # fmt: skip
    for index, case in enumerate(cases):
        by_hand = ByHand(model, case, position)
        expected = [by_hand.path(*pair) for pair in plain]
        np.testing.assert_allclose(found.effects[index], expected, atol=3e-4)
    large = np.abs(found.effects).max(axis=0)[:7]
    assert (large > 1e-2).all() if position == -1 else (large > 1e-3).sum() >= 3
    layers = mt.trace_layers(model, cases, layers=[0, 1], position=position)
    np.testing.assert_allclose(found.rescue[:, [4, 6]], layers.effects[:, [1, 0]], atol=3e-4)
    experts = mt.trace_experts(model, cases, layer=0, position=position)
    np.testing.assert_allclose(found.rescue[:, 0], experts.effects[:, sender], atol=3e-4)


def test_inactive_ends_are_exactly_zero(model, cases):
    exact = mt.trace_experts(model, cases, layer=[0, 2])
    pairs = [((0, sender), (2, receiver)) for sender in range(8) for receiver in range(8)]
    found = mt.trace_paths(model, cases, pairs)
    clean, noised = exact.arrays.clean_active[:, :8], exact.arrays.noised_active[:, 8:]
    both = clean[:, :, None] & noised[:, None, :]
    effects = found.effects.reshape(both.shape)
    assert (effects[~both] == 0).all()
    assert (np.abs(effects[both]) > 1e-6).mean() > 0.9


def test_a_pair_alone_and_among_others(model, cases):
    pairs = [(0, 3), (0, 1), (1, "L02.router"), ((0, 1), 2), (2, 3)]
    together = mt.trace_paths(model, cases, pairs)
    for index, pair in enumerate(pairs):
        alone = mt.trace_paths(model, cases[::-1], [pair]).subset(together.cases.case_id)
        np.testing.assert_allclose(together.effects[:, [index]], alone.effects, atol=1e-4)


def test_draws_are_averaged(model, cases):
    noise = mt.SubjectNoise(draws=2)
    found = mt.trace_paths(model, cases[:1], [(0, 2)], noise=noise)
    first, second = (ByHand(model, cases[0], -1, draw).path(0, 2, "block") for draw in (0, 1))
    assert abs(first - second) > 1e-2
    np.testing.assert_allclose(found.effects, [[(first + second) / 2]], atol=3e-4)
    rescue = mt.trace_layers(model, cases[:1], layers=0, noise=noise)
    np.testing.assert_allclose(found.rescue, rescue.effects, atol=3e-4)


@pytest.mark.parametrize("family", SPARSE)
def test_families_add_to_one_stream(family, cases):
    model = make_model(family)
    last = 3
    found = mt.trace_paths(model, cases, [(0, last), (1, f"L{last:02d}.router"), (1, 2)])
    assert np.isfinite(found.effects).all()
    assert np.abs(found.effects).max() > 1e-3


def test_half_precision_adds_to_one_stream_too(cases):
    exact = mt.trace_paths(make_model("qwen3_moe"), cases, [(0, 2), (1, 3)])
    rounded = mt.trace_paths(make_model("qwen3_moe").bfloat16(), cases, [(0, 2), (1, 3)])
    assert np.corrcoef(exact.effects.ravel(), rounded.effects.ravel())[0, 1] > 0.8


def test_a_stream_that_is_scaled_on_its_way_is_refused(cases):
    model = make_model("qwen3_moe")
    model.model.layers[2].register_forward_hook(lambda _m, _a, out: out * 1.5)
    mt.trace_paths(model, cases, [(0, 1)])
    with pytest.raises(errors.LayoutError, match=r"residual stream isn't found.*layer 3"):
        mt.trace_paths(model, cases, [(0, 3)])
    model = make_model("qwen3_moe")
    layer = model.model.layers[2]
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _m, args: (args[0] * 2,))
    with pytest.raises(errors.LayoutError, match=r"residual stream isn't found.*block of layer 2"):
        mt.trace_paths(model, cases, [(0, 2)])


def test_saved_joined_shown(model, cases, tmp_path):
    found = mt.trace_paths(model, cases, [(0, 2), ("L01E003", "L03.router")])
    assert found.rows.columns.tolist()[2:] == [
        "sender",
        "receiver",
        "clean",
        "noised",
        "patched",
        "path",
        "rescue",
    ]
    np.testing.assert_allclose(found.rows.patched - found.rows.noised, found.rows.path, atol=1e-9)
    found.save(tmp_path / "paths")
    again = mt.load(tmp_path / "paths")
    assert isinstance(again, mt.PathTrace)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    ids = found.cases.case_id.tolist()
    joined = mt.concat([found.subset(ids[:1]), found.subset(ids[1:])])
    pd.testing.assert_frame_equal(joined.rows, found.rows)
    assert {"sender", "receiver", "mean"} <= set(found.summary())
    assert "L03.router" in found._repr_html_()
    assert found.noise_floor < 1e-3
    pytest.importorskip("matplotlib").use("Agg")
    assert "L00 to L02" in [label.get_text() for label in found.plot().get_yticklabels()]


def test_the_model_comes_back_as_it_was(model, cases):
    before = snapshot(model)
    mt.trace_paths(model, cases, [(0, 2), (1, "L02.router")])
    assert_same(before, snapshot(model))
    for failure, after in ((RuntimeError("boom"), 4), (KeyboardInterrupt(), 5), (RuntimeError("boom"), 6)):
        handle = fail_in(model, failure, after)
        with pytest.raises(type(failure)):
            mt.trace_paths(model, cases, [(0, 2), (1, "L02.router")])
        handle.remove()
        assert_same(before, snapshot(model))


class Block:
    def __init__(self, layer):
        self.layer = layer


@pytest.mark.parametrize(
    ("pairs", "error", "match"),
    [
        ([], errors.ArgumentError, "empty"),
        ([(2, 2)], errors.ArgumentError, "isn't before"),
        ([(3, 1)], errors.ArgumentError, r"sender L03 isn't before the receiver L01"),
        ([("L01.router", 2)], errors.ArgumentError, "router can only be a receiver"),
        ([(0, 9)], errors.LayerRangeError, "layer 9"),
        ([(0, "L09.router")], errors.LayerRangeError, "layer 9"),
        ([((0, 99), 2)], ExpertRangeError, "L00E099"),
        ([(0, "L02E008")], ExpertRangeError, "L02E008"),
        ([(0, "L02.ruoter")], errors.ArgumentError, "did you mean 'router'"),
        ([(0, "attention")], errors.ArgumentError, "no end of a path"),
        ([(0, 1, 2)], errors.ArgumentError, r"expected a pair"),
        ([(0, 1), ("L00", Block(1))], errors.ArgumentError, r"\(L00, L01\) twice"),
        (7, errors.ArgumentTypeError, "list of pairs"),
    ],
)
def test_bad_pairs(model, cases, pairs, error, match):
    with pytest.raises(error, match=match):
        mt.trace_paths(model, cases, pairs)


def test_dense_layers_have_blocks_and_no_routers(cases):
    dense = make_model("llama")
    assert np.isfinite(mt.trace_paths(dense, cases, [(0, 2)]).effects).all()
    with pytest.raises(errors.LayerRangeError, match="dense"):
        mt.trace_paths(dense, cases, [(0, "L02.router")])


def test_other_metrics_by_hand(model, cases):
    sender = active_experts(model, cases, 0)[0]
    pairs = [((0, sender), 2), (1, "L03.router")]

    def margin(logits, case):
        return logits[:, case.true_id] - logits.mean(dim=1)

    found = mt.trace_paths(model, cases, pairs, metric=["kl", "logprob", margin])
    assert list(found) == ["kl", "logprob", "margin"]
    for index, case in enumerate(cases):
        by_hand = ByHand(model, case, -1)
        clean = oracle.final_logits(model, case)

        def values(logits, case=case, clean=clean):
            logs, true = logits.log_softmax(0), case.true_id
            kl = torch.nn.functional.kl_div(logs, clean.log_softmax(0), reduction="sum", log_target=True)
            return np.array([kl, logs[true], logits[true] - logits.mean()])

        noised = values(oracle.final_logits(model, case, by_hand.noise))
        for column, pair in enumerate([((0, sender), 2, "block"), (1, 3, "router")]):
            row = by_hand.received(*pair)
            expected = np.zeros(3)
            if row is not None:
                patch = (pair[1], row, by_hand.at)
                expected = values(oracle.final_logits(model, case, by_hand.noise, patch)) - noised
            own = [found[name].effects[index, column] for name in found]
            np.testing.assert_allclose(own, expected, atol=2e-4)
    layers = mt.trace_layers(model, cases, layers=1, metric="kl")
    np.testing.assert_allclose(found["kl"].rescue[:, [1]], layers.effects, atol=2e-4)
    assert "nats" in repr(found["kl"])
    alone = mt.trace_paths(model, cases, pairs, metric="kl")
    np.testing.assert_allclose(alone.effects, found["kl"].effects, atol=1e-9)
    bare = [mt.Case(c.input_ids, c.subject, c.true_id, None, c.case_id) for c in cases]
    np.testing.assert_allclose(mt.trace_paths(model, bare, pairs, metric="kl").effects, alone.effects)
    with pytest.raises(errors.NoFoilError):
        mt.trace_paths(model, bare, pairs)


def test_a_run_folder_is_resumed(model, cases, tmp_path):
    call = {"pairs": [(0, 2), ("L01E003", "L03.router")], "noise": mt.SubjectNoise(draws=2)}
    call["metric"] = ["logit_diff", "prob"]
    plain = mt.trace_paths(model, cases, **call)

    class Stop(Exception):
        pass

    def stop(done, _total):
        if done >= 2:
            raise Stop

    out = tmp_path / "run"
    with pytest.raises(Stop):
        mt.trace_paths(model, cases, **call, out=out, progress=stop)
    assert len(list((out / "parts").glob("*.parquet"))) == 2
    seen = []
    again = mt.trace_paths(model, cases, **call, out=out, progress=lambda done, _total: seen.append(done))
    assert min(seen) >= 2
    for name, found in plain.items():
        np.testing.assert_array_equal(again[name].effects, found.effects)
        np.testing.assert_array_equal(again[name].by_draw, found.by_draw)
        pd.testing.assert_frame_equal(mt.load(out)[name].rows, found.rows)
        assert (found.variance_components().draws == 2).all()
    with pytest.raises(errors.RunFolderError, match="different: pairs"):
        mt.trace_paths(model, cases, **{**call, "pairs": [(0, 3)]}, out=out)


def test_in_float32(cases):
    pairs = [(0, 2), (1, "L03.router"), (0, "L02E003")]
    model = make_model("qwen3_moe").bfloat16()
    found = mt.trace_paths(model, cases, pairs, compute_dtype="float32")
    wide = mt.trace_paths(make_model("qwen3_moe").bfloat16().float(), cases, pairs)
    np.testing.assert_allclose(found.effects, wide.effects, atol=1e-5)
    assert found.provenance["compute_dtype"] == "float32"
    assert next(model.parameters()).dtype is torch.bfloat16
