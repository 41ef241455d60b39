from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace import errors
from tests.engines.tiny import make_model

COLUMNS = [
    "case_id", "relation_id", "layer", "expert", "clean_active", "noised_active", "clean_weight",
    "noised_weight", "delta_norm", "clean", "noised", "patched", "rescue",
    "direct", "indirect", "direct_linear",
]  # fmt: skip


@pytest.fixture(scope="module")
def everywhere(model, cases):
    return mt.trace_experts(model, cases)


@pytest.fixture(scope="module")
def star(everywhere):
    """The expert that most cases route to."""
    active = everywhere.rows.groupby(["layer", "expert"]).clean_active.sum()
    return mt.Expert(*map(int, active.idxmax()))


def assert_same(found, expected, atol=2e-4):
    np.testing.assert_allclose(found.effects, expected.effects, atol=atol)
    left, right = found.rows, expected.rows
    assert list(left.columns) == list(right.columns)
    for name in left:
        if left[name].dtype.kind == "f":
            np.testing.assert_allclose(left[name], right[name], atol=5e-4, err_msg=name)
        else:
            assert (left[name] == right[name]).all(), name


def test_columns_and_rows_of_inactive_experts(everywhere, cases):
    rows = everywhere.rows
    assert list(rows.columns) == COLUMNS
    assert len(rows) == len(cases) * 4 * 8
    assert rows.groupby(["case_id", "layer"]).clean_active.sum().eq(2).all()
    idle = rows[~rows.clean_active]
    assert (idle.rescue == 0).all()
    assert (idle.delta_norm == 0).all()
    assert (idle.patched == idle.noised).all()
    active = rows[rows.clean_active]
    assert (active.delta_norm > 0).all()
    np.testing.assert_allclose(active.patched - active.noised, active.rescue, atol=1e-9)
    weights = rows.groupby(["case_id", "layer"]).clean_weight.sum()
    np.testing.assert_allclose(weights, 1.0, atol=1e-5)  # norm_topk_prob


def test_every_layer_in_one_pass_equals_layer_by_layer(model, cases, everywhere):
    for layer in (0, 3):
        alone = mt.trace_experts(model, cases, layer=layer)
        here = everywhere.sites.layer == layer
        np.testing.assert_allclose(everywhere.effects[:, here], alone.effects, atol=1e-4)


@pytest.mark.parametrize("union", [False, True])
def test_engines_agree(model, cases, union):
    tree = mt.trace_experts(model, cases, layer=[1, 2], union=union)
    plain = mt.trace_experts(model, cases, layer=[1, 2], union=union, engine="reference")
    assert_same(tree, plain)


def test_draws_are_averaged(model, cases):
    noise = mt.SubjectNoise(draws=2)
    tree = mt.trace_experts(model, cases, layer=2, union=True, noise=noise)
    assert_same(tree, mt.trace_experts(model, cases, layer=2, union=True, noise=noise, engine="reference"))


def test_union_adds_noised_only_experts(model, cases):
    plain = mt.trace_experts(model, cases, layer=2)
    union = mt.trace_experts(model, cases, layer=2, union=True)
    np.testing.assert_allclose(union.effects, plain.effects, atol=1e-5)
    rows = union.rows
    extra = rows[rows.noised_active & ~rows.clean_active]
    assert len(extra) > 0
    assert extra.rescue.abs().max() > 1e-3


def test_router_logits_explain_the_weights(everywhere, tmp_path):
    table = everywhere.routing
    for run in ("clean", "noised"):
        sums = table.groupby(["case_id", "layer"])[f"{run}_probability"].sum()
        np.testing.assert_allclose(sums, 1.0, atol=1e-9)
        routed = table[table[f"{run}_active"]].copy()
        total = routed.groupby(["case_id", "layer"])[f"{run}_probability"].transform("sum")
        np.testing.assert_allclose(routed[f"{run}_probability"] / total, routed[f"{run}_weight"], atol=1e-5)
    assert everywhere.close_calls(margin=1e9) == 6 * 4
    assert everywhere.close_calls() <= everywhere.close_calls(margin=0.5) <= 24
    everywhere.save(tmp_path / "e")
    pd.testing.assert_frame_equal(mt.load(tmp_path / "e").routing, table)


def test_one_expert_of_top_two_sums_with_the_other(model, cases):
    """D_top2 is the sum of the two patch vectors, so at the last layer rescues nearly add up."""
    pair = mt.trace_coalitions(model, cases, layer=3, sets="all")
    singles = mt.trace_experts(model, cases, layer=3)
    np.testing.assert_allclose(pair.additivity().singles, singles.effects.sum(axis=1), atol=1e-4)


def test_save_load_and_resume(model, cases, everywhere, tmp_path):
    found = mt.trace_experts(model, cases, out=tmp_path / "run", batch_tokens=100)
    again = mt.load(tmp_path / "run")
    assert isinstance(again, mt.ExpertTrace)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    resumed = mt.trace_experts(model, cases, out=tmp_path / "run", progress=lambda done, total: done == total)
    np.testing.assert_allclose(resumed.effects, everywhere.effects, atol=1e-4)
    with pytest.raises(errors.RunFolderError, match="different: union"):
        mt.trace_experts(model, cases, out=tmp_path / "run", union=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window", "deepseek_v3"])
def test_matched_engines_agree(family, cases):
    model = make_model(family)
    rows = mt.trace_experts(model, cases, layer=2).rows
    active = rows.groupby("expert").clean_active.sum()
    name = mt.Expert(2, int(active.idxmax()))
    tree = mt.trace_matched(model, cases, name)
    plain = mt.trace_matched(model, cases, str(name), engine="reference")
    np.testing.assert_allclose(tree.effects, plain.effects, atol=2e-4)
    assert (tree.cases.control == plain.cases.control).all()
    assert len(tree) == active.max()
    assert list(tree.table().quantity) == ["selected", "matched", "specificity"] * 2
    table = tree.table()
    for offset, scaling in ((0, "raw"), (3, "equal_norm")):
        assert set(table.scaling[offset : offset + 3]) == {scaling}
        assert table["mean"][offset + 2] == pytest.approx(table["mean"][offset] - table["mean"][offset + 1])


def test_matched_takes_the_closest_weight(model, cases, everywhere, star):
    pairs = mt.trace_matched(model, cases, star)
    rows = everywhere.rows
    for line in pairs.cases.itertuples():
        here = rows[(rows.case_id == line.case_id) & (rows.layer == star.layer) & rows.clean_active]
        own = here[here.expert == star.expert].clean_weight.iloc[0]
        others = here[here.expert != star.expert].copy()
        others["distance"] = (others.clean_weight - own).abs()
        assert line.control == others.sort_values(["distance", "expert"]).expert.iloc[0]
    assert "raw" in repr(pairs)


def test_matched_saves_and_loads(model, cases, star, tmp_path):
    pairs = mt.trace_matched(model, cases, star, out=tmp_path / "m")
    again = mt.load(tmp_path / "m")
    pd.testing.assert_frame_equal(again.table(n_resamples=50), pairs.table(n_resamples=50))
    assert again.star == str(star)


def test_noise_scales_share_the_clean_run_and_equal_single_traces(model, cases, star, tmp_path):
    scales = (1.0, 3.0)
    found = mt.trace_noise_scales(model, cases, star, scales, out=tmp_path / "s")
    for index, scale in enumerate(scales):
        alone = mt.trace_experts(model, cases, layer=star.layer, noise=mt.SubjectNoise(scale=scale))
        column = alone.sites.expert.tolist().index(star.expert)
        np.testing.assert_allclose(found.effects[:, index], alone.effects[:, column], atol=1e-4)
        layers = mt.trace_layers(model, cases, layers=star.layer, noise=mt.SubjectNoise(scale=scale))
        np.testing.assert_allclose(found.effects[:, 2 + index], layers.effects[:, 0], atol=1e-4)
        np.testing.assert_allclose(found.cases[f"noised_{scale:g}"], layers.cases.noised, atol=1e-4)
    table = found.table(n_resamples=50, n_flips=50)
    assert table.scale.tolist() == list(scales)
    assert (table.active == found.cases.clean_active.sum()).all()
    rows = found.rows
    np.testing.assert_allclose(rows.patched - rows.noised, rows.rescue, atol=1e-9)
    np.testing.assert_array_equal(mt.load(tmp_path / "s").effects, found.effects)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, c: mt.trace_experts(m, c, layer=9), errors.LayerRangeError, "layers 0 to 3"),
        (lambda m, c: mt.trace_experts(m, c, layer=1, layers=[2]), errors.ArgumentError, "both"),
        (lambda m, c: mt.trace_matched(m, c, "L02E008"), errors.ArgumentError, "experts 0 to 7"),
        (lambda m, c: mt.trace_matched(m, c, "expert 8"), errors.ArgumentError, "L44E069"),
        (lambda m, c: mt.trace_matched(m, c, (9, 0)), errors.LayerRangeError, "layers 0 to 3"),
        (lambda m, c: mt.trace_noise_scales(m, c, "L02E001", ()), errors.ArgumentError, "empty"),
        (lambda m, c: mt.trace_coalitions(m, c, 2, sets="some"), errors.ArgumentError, "'some'"),
        (lambda m, c: mt.trace_coalitions(m, c, 2, sets=[[1, 1]]), errors.ArgumentError, "more than once"),
        (lambda m, c: mt.trace_coalitions(m, c, 2, sets=[[1, 88]]), errors.ArgumentError, "experts 0 to 7"),
        (lambda m, c: mt.trace_coalitions(m, c, 2, sets=[[]]), errors.ArgumentError, "empty"),
        (lambda m, c: mt.trace_coalitions(m, c, 2, sets="all", limit=2), errors.ArgumentError, "sampled"),
        (
            lambda m, c: mt.trace_coalitions(m, c, 2, sets="sampled", sampled_players="x"),
            errors.ArgumentError,
            "x",
        ),
        (lambda m, c: mt.trace_coalitions(m, c, 2).shapley(), errors.ArgumentError, "sets='all'"),
        (lambda m, c: mt.trace_coalitions(m, c, 2).additivity(), errors.ArgumentError, "sets='all'"),
    ],
)
def test_bad_input(model, cases, call, error, words):
    with pytest.raises(error, match=words):
        call(model, cases[:2])


def test_an_expert_that_is_never_active(model, cases, everywhere):
    active = everywhere.rows.groupby(["layer", "expert"]).clean_active.sum()
    idle = mt.Expert(*map(int, active[active == 0].index[0]))
    with pytest.raises(mt.MoetraceError, match=str(idle)):
        mt.trace_matched(model, cases, idle)


def test_layers_without_experts_are_named(cases):
    with pytest.raises(errors.LayerRangeError, match="is dense"):
        mt.trace_experts(make_model("deepseek_v3"), cases[:2], layer=0)
    with pytest.raises(errors.LayoutError, match="no layers with routed experts"):
        mt.trace_experts(make_model("llama"), cases[:2])
