from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.planted import KINDS, plant
from moetrace.results.screen import NotVerifiedError
from moetrace.results.settings import SettingsMismatchError
from tests.engines.tiny import make_cases, make_model
from tests.trace.test_model_is_left_alone import assert_same, fail_in, snapshot

COLUMNS = [
    "case_id", "relation_id", "layer", "expert", "clean_active", "clean", "noised", "estimate", "rescue",
]  # fmt: skip


@pytest.fixture(scope="module")
def exact(model, cases):
    return mt.trace_experts(model, cases)


@pytest.fixture(scope="module")
def screen(model, cases):
    return mt.screen_experts(model, cases, top=5)


@pytest.fixture(scope="module")
def whole(model, cases):
    return mt.screen_experts(model, cases, verify="all")


@pytest.mark.parametrize("kind", KINDS)
def test_planted_models_are_linear_but_for_the_pair(kind):
    planted = plant(kind, n=8)
    found = mt.screen_experts(planted.model, planted.cases, verify=False)
    expected = planted.truth.experts.copy()
    expected[:, planted.layer] = np.where(planted.truth.clean_active, planted.truth.linear, 0.0)
    np.testing.assert_allclose(found.effects.reshape(expected.shape), expected, atol=1e-4)
    if kind != "pair":  # whose two experts rescue together what neither does alone
        assert found.top(1).star[0] == str(planted.star) or kind == "rare"


def test_verified_columns_are_the_exact_sweep(screen, exact, model, cases):
    assert list(screen.rows.columns) == COLUMNS
    assert len(screen.rows) == len(cases) * 4 * 8
    assert (screen.clean_active == exact.arrays.clean_active).all()
    best = screen.top()
    assert len(best) == 5
    assert (np.diff(best.estimate) <= 0).all()
    assert screen.verified.sum() == 5
    np.testing.assert_allclose(
        screen.rescue[:, screen.verified], exact.effects[:, screen.verified], atol=2e-4
    )
    assert np.isnan(screen.rescue[:, ~screen.verified]).all()
    assert (screen.rescue[:, screen.verified][~screen.clean_active[:, screen.verified]] == 0).all()
    assert 0 < screen.noise_floor < 1e-3
    assert screen.provenance["engine"] == "gradient"
    assert screen.provenance["verified_by"] == "tree"
    reference = mt.screen_experts(model, cases, top=5, engine="reference")
    np.testing.assert_allclose(reference.rescue, screen.rescue, atol=2e-4)
    assert reference.provenance["verified_by"] == "reference"


def test_rank_by_magnitude(model, cases):
    found = mt.screen_experts(model, cases, verify=False, rank="abs")
    scores = np.abs(found.effects).mean(axis=0)
    assert found.top(1).star[0] == str(mt.Expert(*found.sites.iloc[int(scores.argmax())]))
    assert found.top(4, by="mean").estimate.is_monotonic_decreasing


def test_recall_and_correlation_against_the_exact_sweep(whole, screen, exact):
    np.testing.assert_allclose(whole.rescue, exact.effects, atol=2e-4)
    ever = exact.arrays.clean_active.any(axis=0)
    estimate, rescue = whole.effects.mean(axis=0), exact.effects.mean(axis=0)
    for k in (1, 4, 10):
        mine = set(np.argsort(np.where(ever, -estimate, np.inf))[:k])
        best = set(np.argsort(np.where(ever, -rescue, np.inf))[:k])
        assert whole.recall(k) == len(mine & best) / k == screen.recall(k, exact)
    order = pd.DataFrame({"estimate": estimate[ever], "rescue": rescue[ever]})
    spearman = order.rank().corr().iloc[0, 1]
    assert whole.correlation() == pytest.approx(spearman)
    assert screen.correlation(exact) == pytest.approx(spearman, abs=1e-9)
    assert whole.correlation(method="pearson") == pytest.approx(order.corr().iloc[0, 1], abs=1e-4)
    assert 0.3 < whole.correlation(over="cases") < 1
    assert f"recall@20 {whole.recall(20):.2f}" in repr(whole)
    with pytest.raises(NotVerifiedError, match=r"5 of .* verified"):
        screen.recall(3)


def test_every_token_and_its_exact_patches(model, cases):
    found = mt.screen_experts(model, cases, layers=[1, 2], position="all", top=8)
    sites, columns = found.sites, np.flatnonzero(found.verified)
    assert len(columns) == 8
    assert list(found.rows.columns) == [*COLUMNS[:4], "position", *COLUMNS[4:]]
    assert found.rows.clean_active.all()
    for column in columns:
        layer, expert, position = sites.iloc[column]
        there = [case for case in cases if case.subject[0] <= position < len(case.input_ids)]
        alone = mt.trace_experts(model, there, layer=int(layer), position=int(position))
        expected = pd.Series(alone.effects[:, expert], index=alone.cases.case_id)
        expected = expected.reindex(found.cases.case_id).fillna(0.0)
        np.testing.assert_allclose(found.rescue[:, column], expected, atol=2e-4)
    assert len(set(sites.position[columns])) > 1
    everywhere = mt.trace_experts(model, cases, layer=[1, 2], position="all")
    assert 0 <= found.recall(8, everywhere) <= 1
    assert found.correlation(everywhere) > 0.3
    whole = mt.screen_experts(model, cases, layers=[1, 2], position="all", verify="all")
    assert whole.recall(8) == found.recall(8, everywhere)


@pytest.mark.parametrize("position", ["last", "all"])
def test_saved_and_read_back(model, cases, tmp_path, position):
    found = mt.screen_experts(model, cases, layers=[1, 3], position=position, top=4)
    found.save(tmp_path / "screen")
    again = mt.load(tmp_path / "screen")
    assert isinstance(again, mt.ScreenTrace)
    np.testing.assert_array_equal(again.effects, found.effects)
    np.testing.assert_array_equal(again.rescue, found.rescue)
    np.testing.assert_array_equal(again.clean_active, found.clean_active)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    pd.testing.assert_frame_equal(again.top(), found.top())
    assert repr(again) == repr(found)


def test_parts_join_to_the_whole(whole):
    ids = whole.cases.case_id.tolist()
    joined = mt.concat([whole.subset(ids[:2]), whole.subset(ids[2:])])
    pd.testing.assert_frame_equal(joined.rows, whole.rows)


def test_summary_pictures_and_display(screen, whole, model, cases):
    table = screen.summary(3, correction="max_t")
    assert table.star.tolist() == screen.top(3).star.tolist()
    np.testing.assert_allclose(table["mean"], screen.top(3).estimate)
    np.testing.assert_allclose(table.rescue, screen.top(3).rescue)
    assert {"ci_low", "p_value", "p_adjusted"} <= set(table)
    assert "verified" in screen._repr_html_()
    pytest.importorskip("matplotlib").use("Agg")
    axes = screen.plot(limit=5)
    assert [label.get_text() for label in axes.get_xticklabels()] == screen.top().star.tolist()
    dots = whole.plot(kind="agreement").get_lines()[1]
    assert len(dots.get_xdata()) == int(whole.clean_active.sum())
    bare = mt.screen_experts(model, cases[:1], verify=False)
    assert "0 verified" in bare._repr_html_()
    with pytest.raises(NotVerifiedError, match="no expert"):
        bare.plot(kind="agreement")
    bare.plot(limit=4)


@pytest.mark.parametrize("verify", [False, True])
def test_the_model_comes_back_as_it_was(verify):
    model = make_model("qwen3_moe").train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.experts.gate_up_proj.requires_grad_(False)
    before = snapshot(model)
    mt.screen_experts(model, make_cases(3), verify=verify, top=2)
    assert_same(before, snapshot(model))
    assert all(weight.grad is None for weight in model.parameters())
    for failure, after in ((RuntimeError("boom"), 0), (KeyboardInterrupt(), 1), (RuntimeError("boom"), 2)):
        handle = fail_in(model, failure, after)
        with pytest.raises(type(failure)):
            mt.screen_experts(model, make_cases(3), verify=verify, top=2)
        handle.remove()
        assert_same(before, snapshot(model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around(model, cases, mode, screen):
    with mode():
        found = mt.screen_experts(model, cases, verify=False)
    np.testing.assert_allclose(found.effects, screen.effects, atol=1e-6)


def test_a_case_whose_numbers_are_not_finite_is_reported(cases):
    model = make_model("qwen3_moe")
    token = cases[2].input_ids[cases[2].subject[0]]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = 1e38
    noise = mt.SubjectNoise(scale=0.0)
    with pytest.warns(errors.MoetraceWarning):
        found = mt.screen_experts(model, cases, noise=noise, top=2)
    assert cases[2].case_id in found.failed.case_id.tolist()
    assert len(found) + len(found.failed) == len(cases)
    assert np.isfinite(found.effects).all()


def test_refused_by_name(model, cases, exact, screen, tmp_path):
    with pytest.raises(errors.ArgumentError, match="verify"):
        mt.screen_experts(model, cases, verify="some")
    with pytest.raises(errors.ArgumentError, match="top"):
        mt.screen_experts(model, cases, top=0)
    with pytest.raises(errors.ArgumentTypeError, match="no argument 'mode'"):
        mt.screen_experts(model, cases, mode="noise")
    with pytest.raises(errors.LayerRangeError, match="layer 9"):
        mt.screen_experts(model, cases, layers=[9])
    with pytest.raises(errors.LayoutError, match="no layers with routed experts"):
        mt.screen_experts(make_model("llama"), cases)
    with pytest.raises(SettingsMismatchError, match="noise"):
        screen.recall(2, mt.trace_experts(model, cases, noise=1.0))
    with pytest.raises(errors.ArgumentError, match="other experts"):
        screen.recall(2, mt.trace_experts(model, cases, layer=1))
    model.save_pretrained(tmp_path / "checkpoint")
    streamed, _ = mt.load_model(tmp_path / "checkpoint", stream=True)
    with pytest.raises(errors.ModelError, match="streamed"):
        mt.screen_experts(streamed, cases)
    with pytest.raises(errors.ArgumentError, match="expected one token"):
        mt.screen_experts(model, cases, position="subject")
    with torch.inference_mode():
        made = make_model("qwen3_moe")
    with pytest.raises(errors.ModelError, match="inference_mode"):
        mt.screen_experts(made, cases)


def test_offloaded_and_quantised_weights_are_refused(cases):
    accelerate = pytest.importorskip("accelerate")
    offloaded = accelerate.cpu_offload(make_model("qwen3_moe"), execution_device="cpu")
    with pytest.raises(errors.ModelError, match="offloaded"):
        mt.screen_experts(offloaded, cases)
    coded = make_model("qwen3_moe")
    weight = coded.lm_head.weight
    coded.lm_head.weight = torch.nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(errors.ModelError, match=r"lm_head.weight is .*float8.*quantised"):
        mt.screen_experts(coded, cases)
