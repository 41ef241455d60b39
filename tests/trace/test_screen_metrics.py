"""Screening by other metrics, into a run folder, and in float32, against gradients written by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.counts import counting
from moetrace.metrics import METRICS
from moetrace.models import float32
from tests.engines import oracle
from tests.engines.test_gradients import contributions, noise_of, precise_model
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(4)
SMOOTH = ["logit_diff", "logprob", "prob", "prob_ratio", "kl"]


def centred(logits, case):
    return logits[:, case.true_id] - logits.mean(dim=1)


def by_hand(metric, logits, clean, case):
    """The metric from its definition, of logits (vocabulary,)."""
    if metric is centred:
        return logits[case.true_id] - logits.mean()
    logs, clean = logits.log_softmax(0), clean.log_softmax(0)
    true, foil = case.true_id, case.foil_id
    return {
        "logit_diff": logits[true] - logits[foil],
        "logprob": logs[true],
        "prob": logs[true].exp(),
        "prob_ratio": (logs[true] - logs[foil]).exp(),
        "kl": (clean.exp() * (clean - logs)).sum(),
    }[metric]


def gradients(model, case, metric, noise, at):
    """By layer: the metric's gradient at the block's output at a token of the noised run."""
    outputs, handles = {}, []
    start, stop = case.subject
    clean = oracle.final_logits(model, case)

    def corrupt(_module, _args, out):
        out = out.detach().clone()
        out[0, start:stop] += noise
        return out.requires_grad_()

    handles.append(model.get_input_embeddings().register_forward_hook(corrupt))
    for number, layer in enumerate(oracle.layers_of(model)):

        def keep(_module, _args, out, number=number):
            outputs[number] = out[0] if isinstance(out, tuple) else out
            outputs[number].retain_grad()

        handles.append(oracle.block_of(layer).register_forward_hook(keep))
    try:
        logits = model(input_ids=torch.tensor([case.input_ids]), use_cache=False).logits[0, -1]
        by_hand(metric, logits, clean, case).backward()
    finally:
        for handle in handles:
            handle.remove()
    return {number: out.grad.reshape(-1, out.shape[-1])[at] for number, out in outputs.items()}


@pytest.mark.parametrize("position", [-1, -3])
def test_estimates_by_hand_written_gradients(position):
    model = precise_model("qwen3_moe")
    metrics = [*SMOOTH, centred]
    found = mt.screen_experts(model, CASES[:2], metric=metrics, position=position, verify=False)
    assert list(found) == [*SMOOTH, "centred"]
    for case in CASES[:2]:
        noise, at = noise_of(model, case), position % len(case.input_ids)
        clean, noised = contributions(model, case, None, at), contributions(model, case, noise, at)
        for metric, name in zip(metrics, found, strict=True):
            slope = gradients(model, case, metric, noise, at)
            rows = found[name].rows
            own = rows[rows.case_id == case.case_id].set_index(["layer", "expert"]).estimate
            for layer, experts in clean.items():
                for expert, value in experts.items():
                    delta = value - noised[layer].get(expert, torch.zeros_like(value))
                    expected = float(slope[layer] @ delta)
                    assert own[layer, expert] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    for name in found:
        assert np.abs(found[name].effects).max() > 1e-5
        assert found[name].unit == ("centred" if name == "centred" else METRICS[name].unit)


def test_a_list_is_the_single_calls_and_verified_in_each_metric():
    model = make_model("qwen3_moe")
    both = mt.screen_experts(model, CASES, metric=["prob", "kl"], top=3)
    for name in ("prob", "kl"):
        alone = mt.screen_experts(model, CASES, metric=name, top=3)
        exact = mt.trace_experts(model, CASES, metric=name)
        assert isinstance(alone, mt.ScreenTrace)
        pd.testing.assert_frame_equal(both[name].top(), alone.top(), rtol=1e-4)
        shown = both[name].verified
        assert shown.sum() == 3
        np.testing.assert_allclose(both[name].rescue[:, shown], exact.effects[:, shown], atol=1e-5)
        assert both[name].recall(3, exact) == alone.recall(3, exact)
        assert both[name].correlation(exact) > 0.3
        np.testing.assert_allclose(both[name].cases.noised, exact.cases.noised, atol=1e-6)
    best = both["kl"].top()
    assert best.estimate.is_monotonic_increasing  # the lowest is the nearest to the clean run
    assert best.estimate[0] < 0
    assert "nats" in both["kl"].plot(kind="agreement").get_xlabel()


def test_kl_is_zero_in_the_clean_run_and_a_foil_is_not_needed():
    cases = [mt.Case(c.input_ids, c.subject, c.true_id, None, c.case_id) for c in CASES]
    found = mt.screen_experts(make_model("qwen3_moe"), cases, metric="kl", verify=False)
    assert (np.abs(found.cases.clean) < 1e-9).all()
    assert (found.cases.noised > 1e-3).all()
    with pytest.raises(errors.NoFoilError):
        mt.screen_experts(make_model("qwen3_moe"), cases, verify=False)


def test_by_the_models_own_head():
    model, metrics = make_model("qwen3_moe"), ["prob", "kl", centred]
    exact = mt.screen_experts(model, CASES, metric=metrics, verify=False)
    own = mt.screen_experts(model, CASES, metric=metrics, verify=False, readout="model")
    for name in exact:
        np.testing.assert_allclose(own[name].effects, exact[name].effects, atol=1e-5)
        assert own[name].provenance["readout_by"] == "own head"


def leaves_torch(logits, case):
    return logits.detach().numpy()[:, case.true_id]


def in_numpy(logits, case):
    return logits.numpy()[:, case.true_id]


def steps(logits, case):
    return (logits > 0).double().sum(dim=1)


def flat(logits, case):
    return logits.round().sum(dim=1)


@pytest.mark.parametrize(
    ("metric", "match"),
    [
        ("rank", "metric 'rank' changes in steps.*trace_experts"),
        (["prob", "rank"], "metric 'rank' changes in steps"),
        (leaves_torch, "'leaves_torch' gives numbers without a gradient"),
        (in_numpy, "'in_numpy' failed.*stays in torch"),
        (steps, "'steps' gives numbers without a gradient"),
        (flat, "'flat' has a gradient of zero in every case"),
    ],
)
def test_metrics_without_a_gradient(metric, match):
    model = make_model("qwen3_moe")
    with pytest.raises(errors.MetricError, match=match):
        mt.screen_experts(model, CASES, metric=metric)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("position", ["last", "all"])
def test_a_run_folder_is_resumed(tmp_path, position):
    model, noise = make_model("qwen3_moe"), mt.SubjectNoise(draws=2)
    call = {"metric": ["logit_diff", "kl"], "noise": noise, "top": 3, "batch_tokens": 30, "layers": [1, 2]}
    call["position"] = position
    plain = mt.screen_experts(model, CASES, **call)

    class Stop(Exception):
        pass

    def stop(done, _total):
        if done >= 2:
            raise Stop

    out = tmp_path / "run"
    with pytest.raises(Stop):
        mt.screen_experts(model, CASES, **call, out=out, progress=stop)
    assert list((out / "parts").glob("*.parquet"))
    found = mt.screen_experts(model, CASES, **call, out=out)
    with counting() as counts:
        again = mt.screen_experts(model, CASES, **call, out=out)
    for name in found:
        np.testing.assert_array_equal(found[name].effects, plain[name].effects)
        np.testing.assert_array_equal(again[name].rescue, found[name].rescue)
        pd.testing.assert_frame_equal(mt.load(out)[name].rows, found[name].rows)
        if position == "last":
            np.testing.assert_array_equal(mt.load(out)[name].by_draw, plain[name].by_draw)
    with counting() as fresh:
        mt.screen_experts(model, CASES, **call)
    assert counts.forwards < fresh.forwards / 2  # the engine's checks alone
    with pytest.raises(errors.RunFolderError, match="different: top"):
        mt.screen_experts(model, CASES, **{**call, "top": 4}, out=out)
    with pytest.raises(errors.RunFolderError, match="different: metric"):
        mt.screen_experts(model, CASES, **{**call, "metric": ["logit_diff", "prob"]}, out=out)


def test_draws_are_kept():
    model = make_model("qwen3_moe")
    found = mt.screen_experts(model, CASES, noise=mt.SubjectNoise(draws=3), verify=False)
    assert found.by_draw.shape == (len(CASES), 32, 3)
    np.testing.assert_allclose(found.by_draw.mean(axis=2), found.effects)
    first = mt.screen_experts(model, CASES, verify=False)
    np.testing.assert_allclose(found.by_draw[:, :, 0], first.effects, atol=1e-5)
    assert (found.variance_components().draws == 3).all()


def test_in_float32_layers_do_not_share_their_copies(monkeypatch):
    """A backward reads every layer's weights again, when others' copies would long be in their place."""
    monkeypatch.setattr(float32, "_LARGE", 1)
    model = make_model("qwen3_moe").bfloat16()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = mt.screen_experts(model, CASES, compute_dtype="float32", top=3)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert all(weight.dtype is torch.bfloat16 for weight in model.parameters())
    wide = mt.screen_experts(make_model("qwen3_moe").bfloat16().float(), CASES, top=3)
    np.testing.assert_allclose(found.effects, wide.effects, atol=2e-5)
    np.testing.assert_allclose(found.rescue, wide.rescue, atol=2e-5)
    assert found.provenance["compute_dtype"] == "float32"
    assert found.noise_floor < 1e-4
    rough = mt.screen_experts(model, CASES, verify=False)
    assert np.abs(rough.effects - wide.effects).max() > 1e-4
