"""Several metrics of one trace: tables, files, run folders, pictures; normalised rescue."""

from __future__ import annotations

import json

import matplotlib as mpl
import numpy as np
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError, RunFolderError
from tests.engines.tiny import make_cases, make_model

mpl.use("agg")
CASES = make_cases(5)
ASKED = ["logit_diff", "prob", "kl"]


@pytest.fixture(scope="module")
def model():
    return make_model("qwen3_moe")


@pytest.fixture(scope="module")
def layers(model):
    return mt.trace_layers(model, CASES, metric=ASKED, noise=mt.SubjectNoise(draws=3))


@pytest.fixture(scope="module")
def experts(model):
    return mt.trace_experts(model, CASES, layer=1, metric=ASKED, noise=mt.SubjectNoise(draws=3))


def assert_same(a: mt.MetricTraces, b: mt.MetricTraces) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name].effects, b[name].effects)
        np.testing.assert_array_equal(a[name].by_draw, b[name].by_draw)
        assert a[name].rows.equals(b[name].rows)
        assert a[name].provenance == b[name].provenance
        assert a[name].noise_floor == b[name].noise_floor


def test_tables_name_the_metric(layers, experts):
    for traces, sites in ((layers, 4), (experts, 8)):
        rows = traces.rows
        assert rows.groupby("metric", sort=False).size().to_dict() == dict.fromkeys(ASKED, len(CASES) * sites)
        assert list(rows.columns).index("metric") + 1 == list(rows.columns).index("clean")
        own = rows[rows.metric == "prob"]
        np.testing.assert_array_equal(own.rescue, traces["prob"].rows.rescue)
        assert own.direct.isna().all()
        assert traces.summary().metric.tolist() == [name for name in ASKED for _ in range(sites)]
    assert isinstance(repr(layers), str)
    assert "prob" in layers._repr_html_()
    with pytest.raises(ArgumentError, match="did you mean 'prob'"):
        layers["probs"]
    assert "probs" not in layers


def test_files_give_back_every_metric(layers, experts, tmp_path):
    for name, traces in (("layers", layers), ("experts", experts)):
        traces.save(tmp_path / name)
        assert_same(mt.load(tmp_path / name), traces)
    prob = mt.load(tmp_path / "layers")["prob"]
    prob.save(tmp_path / "alone")
    assert mt.load(tmp_path / "alone").metric == "prob"
    path = tmp_path / "layers" / "meta.json"
    meta = json.loads(path.read_text())
    meta["provenance"]["by_metric"]["prob"]["null_floor"] = 9.0
    path.write_text(json.dumps(meta))
    with pytest.raises(RunFolderError, match="by_metric"):
        mt.load(tmp_path / "layers")


@pytest.mark.parametrize("kind", ["layers", "experts"])
def test_a_run_that_was_interrupted_goes_on_with_every_metric(model, tmp_path, kind):
    def trace(cases, **more):
        options = {"metric": ASKED, "noise": mt.SubjectNoise(draws=2), "batch_tokens": 40, **more}
        if kind == "layers":
            return mt.trace_layers(model, cases, **options)
        return mt.trace_experts(model, cases, layer=1, **options)

    whole = trace(CASES)

    class Stopped(Exception):
        pass

    def stop(done, total):
        if done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        trace(CASES, out=tmp_path / "run", progress=stop)
    assert len(list((tmp_path / "run" / "parts").glob("*.parquet")))
    found = trace(CASES, out=tmp_path / "run")
    assert_same_values(found, whole)
    assert_same_values(mt.load(tmp_path / "run"), whole)
    for other in (["logit_diff", "prob"], ["prob", "logit_diff", "kl"], "logit_diff"):
        with pytest.raises(RunFolderError, match=r"another call \(different: .*metric"):
            trace(CASES, out=tmp_path / "run", metric=other)


def assert_same_values(a: mt.MetricTraces, b: mt.MetricTraces) -> None:
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_allclose(a[name].effects, b[name].effects, atol=1e-6)
        np.testing.assert_allclose(a[name].by_draw, b[name].by_draw, atol=1e-6)


def test_subset_and_concat_keep_metrics_and_draws(layers, experts):
    for traces in (layers, experts):
        ids = traces["prob"].cases.case_id.tolist()
        parts = [traces.subset(ids[:2]), traces.subset(ids[2:])]
        joined = mt.concat(parts)
        assert_same_values(joined, traces)
        assert joined["prob"].by_draw.shape == traces["prob"].by_draw.shape
        with pytest.raises(ArgumentError, match="same metrics"):
            mt.concat([traces, mt.MetricTraces({"prob": traces["prob"]})])
        with pytest.raises(ArgumentError, match="differ in metric"):
            mt.concat([parts[0]["prob"], parts[1]["kl"]])


def test_pictures_have_a_panel_for_each_metric(layers, experts):
    for traces in (layers, experts):
        first = traces.plot(n_resamples=50, n_flips=50)
        panels = first.figure.axes
        assert sum("rescue" in (own.get_xlabel() + own.get_ylabel()).lower() for own in panels) >= 3
        titles = [own.get_title() for own in panels if own.get_title()]
        assert [title.split(": ")[0] for title in titles] == list(traces)
    text = mt.LayerTrace.plot(layers["prob"], n_resamples=50, n_flips=50).get_ylabel()
    assert "probability" in text
    assert "logits" not in text


def test_normalised_rescue_is_a_ratio_of_means(layers):
    for name in layers:
        own = layers[name]
        table = own.normalised(n_resamples=200)
        taken = (own.cases.clean - own.cases.noised).mean()
        np.testing.assert_allclose(table.ratio, own.effects.mean(axis=0) / taken, rtol=1e-12)
        assert (table.ci_low <= table.ratio).all()
        assert (table.ratio <= table.ci_high).all()
        assert (table.n == len(CASES)).all()
    both = layers.normalised(n_resamples=50)
    assert both.metric.tolist() == [name for name in ASKED for _ in range(4)]
    with pytest.raises(ArgumentError, match="cluster"):
        layers["prob"].normalised(cluster="prompt")


def test_a_full_patch_gives_all_back():
    """The last layer's block at the last token of a one-layer contrast: all of what noise took."""
    planted = mt.planted.plant("single", n=6)
    found = mt.trace_layers(planted.model, planted.cases, metric=["logit_diff", "logprob"])
    for name in found:
        own = found[name]
        ratio = own.normalised(n_resamples=50).ratio
        best = own.layers.index(own.best)
        np.testing.assert_allclose(
            ratio[best], own.effects[:, best].mean() / (own.cases.clean - own.cases.noised).mean()
        )
        assert ratio[best] > 0.5
