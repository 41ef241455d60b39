from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace.errors import NoEffectWarning
from moetrace.results.display import result_html
from moetrace.results.layers import Sharpness
from tests.engines import oracle
from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def cases():
    return make_cases(7)


@pytest.fixture(scope="module")
def result(model, cases):
    return mt.trace_layers(model, cases)


def test_two_arguments_give_the_definition(model, cases, result):
    expected = np.stack([oracle.rescue(model, case, [0, 1, 2, 3]) for case in cases])
    np.testing.assert_allclose(result.effects, expected, atol=2e-4)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_numbers_do_not_depend_on_the_batch(model, cases, result, batch_tokens):
    other = mt.trace_layers(model, cases, batch_tokens=batch_tokens)
    np.testing.assert_allclose(other.effects, result.effects, atol=1e-4)


def test_numbers_do_not_depend_on_the_order(model, cases, result):
    other = mt.trace_layers(model, cases[::-1])
    np.testing.assert_allclose(other.effects[::-1], result.effects, atol=1e-4)


def test_scale_zero_leaves_nothing_to_rescue(model, cases):
    with pytest.warns(NoEffectWarning, match="nothing to rescue"):
        nothing = mt.trace_layers(model, cases, noise=mt.SubjectNoise(scale=0.0))
    np.testing.assert_allclose(nothing.effects, 0.0, atol=1e-4)
    np.testing.assert_allclose(nothing.cases.clean, nothing.cases.noised, atol=1e-4)


def test_draws_are_averaged_and_the_first_is_the_only_one(model, cases):
    case = cases[2]
    one = mt.SubjectNoise(draws=1).sample(case, 32)
    three = mt.SubjectNoise(draws=3).sample(case, 32)
    torch.testing.assert_close(three[0], one[0], rtol=0, atol=0)
    tree = mt.trace_layers(model, cases, noise=mt.SubjectNoise(draws=3))
    plain = mt.trace_layers(model, cases, noise=mt.SubjectNoise(draws=3), engine="reference")
    np.testing.assert_allclose(tree.effects, plain.effects, atol=2e-4)


def test_noise_seed_and_scale_change_the_draw(model, cases, result):
    assert (
        np.abs(mt.trace_layers(model, cases, noise=mt.SubjectNoise(seed=1)).effects - result.effects).max()
        > 1e-2
    )


def test_rows_are_tidy(cases, result):
    rows = result.rows
    logits = ["clean", "noised", "patched", "rescue", "direct", "indirect", "direct_linear"]
    assert list(rows.columns) == ["case_id", "relation_id", "layer", *logits]
    assert len(rows) == 7 * 4
    np.testing.assert_allclose(rows.patched - rows.noised, rows.rescue, atol=1e-9)
    wide = rows.pivot(index="case_id", columns="layer", values="rescue")
    np.testing.assert_array_equal(wide.loc[[c.case_id for c in cases]].to_numpy(), result.effects)


def test_best_and_sharpness(result):
    means = result.effects.mean(axis=0)
    order = np.argsort(-means)
    assert result.best == order[0]
    sharp = result.sharpness()
    assert isinstance(sharp, Sharpness)
    assert (sharp.top_layer, sharp.next_layer) == (order[0], order[1])
    assert sharp.gap == pytest.approx(means[order[0]] - means[order[1]])


def test_one_layer_has_no_next(model, cases):
    sharp = mt.trace_layers(model, cases, layers=2).sharpness()
    assert sharp.top_layer == 2
    assert sharp.next_layer is None
    assert np.isnan(sharp.gap)


def test_by_relation(result):
    table = result.by("relation_id")
    rows = result.rows
    for line in table.itertuples():
        chosen = rows[(rows.relation_id == line.relation_id) & (rows.layer == line.layer)].rescue
        assert (line.n, line.mean) == (len(chosen), pytest.approx(chosen.mean()))
        assert line.positive_fraction == pytest.approx((chosen > 0).mean())


def test_summary_is_the_papers(result):
    table = result.summary(correction="holm")
    np.testing.assert_allclose(table["mean"], result.effects.mean(axis=0))
    assert (table.ci_low <= table["mean"]).all()
    assert (table["mean"] <= table.ci_high).all()
    assert (table.p_value > 0).all()
    assert (table.p_adjusted >= table.p_value).all()
    assert set(table.n) == {7}
    by = result.summary(by="relation_id")
    assert list(by.columns[:2]) == ["relation_id", "layer"]
    for bad in ({"ci": "normal"}, {"correction": "fdr"}, {"by": "layer"}, {"cluster": "subject"}):
        with pytest.raises(mt.errors.ArgumentError, match=next(iter(bad.values()))):
            result.summary(**bad)


def test_save_and_load(result, tmp_path):
    result.save(tmp_path / "r")
    again = mt.load(tmp_path / "r")
    np.testing.assert_array_equal(again.effects, result.effects)
    pd.testing.assert_frame_equal(again.rows, result.rows)
    assert again.provenance == result.provenance
    assert again.noise_floor == result.noise_floor
    assert not list((tmp_path / "r").glob(".*"))
    with pytest.raises(mt.errors.RunFolderError, match="no saved result"):
        mt.load(tmp_path)
    (tmp_path / "r" / "rows.parquet").write_bytes(b"PAR1 truncated")
    with pytest.raises(mt.errors.RunFolderError, match="can't be read"):
        mt.load(tmp_path / "r")


def test_provenance_is_json_and_names_the_cases(cases, result):
    text = json.dumps(result.provenance)
    assert json.loads(text)["case_ids"] == [case.case_id for case in cases]
    assert result.provenance["noise"]["embedding_std"] > 0
    assert result.provenance["versions"]["torch"] == torch.__version__


def test_floor_is_small_and_reported(result):
    assert 0 <= result.noise_floor < 2e-4
    assert f"{result.noise_floor:.1e}" in repr(result)


def test_plot_marks_what_survives(result):
    axes = result.plot(n_resamples=200, n_flips=200)
    assert axes.get_xlabel() == "layer"
    drawn = axes.lines[1].get_ydata()
    np.testing.assert_allclose(drawn, result.effects.mean(axis=0))
    axes.figure.clf()


def test_notebook_display_escapes(result):
    html = result._repr_html_()
    for mean in result.effects.mean(axis=0):
        assert f"<td>{mean:.4g}</td>" in html
    assert "left out" not in html
    evil = "<script>alert('&')</script>"
    failed = pd.DataFrame({"case_id": [evil]})
    html = result_html(evil, pd.DataFrame({evil: [evil]}), failed)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(") == 4  # title, column, cell and what was left out
    assert "1 cases left out" in html


def test_progress_counts_cases(model, cases):
    seen: list[tuple[int, int]] = []
    mt.trace_layers(model, cases, batch_tokens=60, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_run_folder_resumes_after_an_interrupt(model, cases, result, tmp_path):
    def stop(done: int, total: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    call = {"batch_tokens": 1, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        mt.trace_layers(model, cases, progress=stop, **call)
    parts = sorted((tmp_path / "run" / "parts").glob("*.parquet"))
    assert len(parts) == 3
    stamps = [part.stat().st_mtime_ns for part in parts]
    seen: list[int] = []
    again = mt.trace_layers(model, cases, progress=lambda done, _: seen.append(done), **call)
    assert seen == [3, 4, 5, 6, 7]
    assert [part.stat().st_mtime_ns for part in parts] == stamps
    np.testing.assert_allclose(again.effects, result.effects, atol=1e-4)
    np.testing.assert_array_equal(mt.load(tmp_path / "run").effects, again.effects)


def test_run_folder_of_another_call_is_refused(model, cases, tmp_path):
    mt.trace_layers(model, cases[:2], out=tmp_path / "run", layers=[1])
    with pytest.raises(mt.errors.RunFolderError, match="different: noise"):
        mt.trace_layers(model, cases[:2], out=tmp_path / "run", layers=[1], noise=mt.SubjectNoise(seed=4))
    with pytest.raises(mt.errors.RunFolderError, match="layers or experts that are patched"):
        mt.trace_layers(model, cases[:2], out=tmp_path / "run", layers=[2])
    with pytest.raises(mt.errors.RunFolderError, match="cases"):
        mt.trace_layers(model, cases[:3], out=tmp_path / "run", layers=[1])
    with pytest.raises(mt.errors.RunFolderError, match="model"):
        mt.trace_layers(make_model("qwen3_moe", seed=1), cases[:2], out=tmp_path / "run", layers=[1])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(mt.errors.RunFolderError, match="isn't empty"):
        mt.trace_layers(model, cases[:2], out=tmp_path / "other")


def test_cases_with_infinite_logits_are_named_and_the_rest_goes_on(cases, result):
    broken = make_model("qwen3_moe")
    broken.lm_head.weight.data[cases[3].true_id] = float("inf")
    with pytest.warns(mt.errors.NonFiniteWarning, match=str(cases[3].case_id)):
        found = mt.trace_layers(broken, cases, batch_tokens=60)
    assert found.failed.case_id.tolist() == [cases[3].case_id]
    assert found.provenance["failed_case_ids"] == [cases[3].case_id]
    kept = [i for i in range(7) if i != 3]
    assert found.cases.case_id.tolist() == [cases[i].case_id for i in kept]
    np.testing.assert_allclose(found.effects, result.effects[kept], atol=1e-4)


def test_no_finite_case_is_an_error(cases):
    broken = make_model("qwen3_moe")
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(mt.errors.NonFiniteError, match="all 7 cases"):
        mt.trace_layers(broken, cases)


def test_an_embedding_with_nan_has_no_noise_scale(cases):
    broken = make_model("qwen3_moe")
    broken.model.embed_tokens.weight.data[90] = float("nan")
    with pytest.raises(mt.errors.ModelError, match="standard deviation"):
        mt.trace_layers(broken, cases)


def test_select_cases_by_the_tree_engine(model, cases):
    chosen = mt.select_cases(model, mt.CaseSet(cases), n=7, margin=-1e9, drop=-1e9, seed=None, progress=False)
    assert [case.case_id for case in chosen] == [case.case_id for case in cases]
    with pytest.warns(mt.errors.MoetraceWarning):
        few = mt.select_cases(model, mt.CaseSet(cases), n=7, margin=0.0, drop=0.0, progress=False)
    scores = mt.trace_layers(model, cases).cases
    good = scores[(scores.clean >= 0) & (scores.clean - scores.noised >= 0)]
    assert {case.case_id for case in few} == set(good.case_id)
