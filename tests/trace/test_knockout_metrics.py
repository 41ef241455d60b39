"""Knock-outs and their curves in every metric, and curves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.cli.reading import told
from moetrace.counts import counting
from moetrace.trace.run_folder import RunFolder
from tests.engines.tiny import make_cases, make_model
from tests.trace.test_trace_knockout import logits_by_hand, scaled_tokens

NAMES = ["logit_diff", "logprob", "prob", "prob_ratio", "kl", "rank", "twice"]


def twice(logits: torch.Tensor, case: mt.Case) -> torch.Tensor:
    return 2 * logits[:, case.true_id]


METRICS = [*NAMES[:-1], twice]


def values_by_hand(logits: torch.Tensor, clean: torch.Tensor, case: mt.Case) -> list[float]:
    """The metrics as their definitions say, from (vocabulary,) logits in float64."""
    p, q = torch.softmax(clean, 0), torch.softmax(logits, 0)
    true, foil = case.true_id, case.foil_id
    found = [
        logits[true] - logits[foil],
        q[true].log(),
        q[true],
        q[true] / q[foil],
        (p * (p / q).log()).sum(),
        1 + (logits > logits[true]).sum(),
        2 * logits[true],
    ]
    return [float(value) for value in found]


@pytest.fixture(scope="module")
def cases():
    return mt.CaseSet(make_cases(4))


@pytest.fixture(scope="module")
def traces(model, cases):
    return mt.trace_knockout(model, cases, metric=METRICS, engine="tree")


@pytest.fixture(scope="module")
def knock(traces):
    return traces["logit_diff"]


def assert_near(name: str, found: float, expected: float) -> None:
    # A rank is a whole number, which rounding changes where logits are as good as the same.
    assert found == pytest.approx(expected, rel=3e-4, abs=2e-4 if name != "rank" else 1.0), name


def test_every_metric_is_that_of_hooks_by_hand(traces, model, cases):
    assert isinstance(traces, mt.MetricTraces)
    assert list(traces) == NAMES
    knock = traces["logit_diff"]
    checked = 0
    for index, case in enumerate(cases):
        clean = logits_by_hand(model, case, set())
        active = np.flatnonzero(knock.clean_active[index])
        for column in active[::2].tolist():
            logits = logits_by_hand(model, case, {column})
            own, without = values_by_hand(logits, clean, case), values_by_hand(clean, clean, case)
            for name, ablated, whole in zip(NAMES, own, without, strict=True):
                rows = traces[name].rows
                row = rows[(rows.case_id == case.case_id)].iloc[column]
                assert_near(name, row.ablated, ablated)
                assert_near(name, row.clean, whole)
                assert row.effect == pytest.approx(row.ablated - row.clean, abs=1e-9)
                checked += abs(ablated - whole) > 1e-3
    assert checked > 60
    for name in NAMES:
        assert (traces[name].effects[~knock.clean_active] == 0).all()
        assert traces[name].provenance["metric"] == name
        assert 0 <= traces[name].noise_floor < 1e-2 or name == "rank"


def test_both_engines_give_the_same(traces, model, cases):
    plain = mt.trace_knockout(model, cases, layers=[0, 3], metric=METRICS, engine="reference")
    for name in NAMES:
        tree = traces[name].effects[:, [*range(8), *range(24, 32)]]
        atol = 1.0 if name == "rank" else 2e-4
        np.testing.assert_allclose(plain[name].effects, tree, rtol=1e-3, atol=atol)


def test_what_takes_furthest_away_comes_first(traces):
    for name in NAMES:
        mean = traces[name].effects.mean(axis=0)
        first = traces[name].order()[0]
        assert mean[first] == (mean.max() if name in ("kl", "rank") else mean.min()), name
        assert traces[name].important(1)[0] == traces[name].experts[first]
        top = [traces[name].experts[column] for column in traces[name].order()[:3]]
        assert traces[name].auroc(top) > 0.99  # of ranks several may be the same
    assert traces["kl"].effects.max() > 1e-3
    assert "mean effect (nats)" in traces["kl"].plot(n_flips=50, n_resamples=50).get_ylabel()


def test_a_trace_of_one_metric(traces, model, cases):
    found = mt.trace_knockout(model, cases, "L02E001", metric="prob")
    assert isinstance(found, mt.KnockoutTrace)
    np.testing.assert_allclose(found.effects[:, 0], traces["prob"].effects[:, 17], atol=1e-6)


def test_where_experts_are_given_scaled_tokens():
    """Plain forwards, which compare with the clean run too."""
    model, cases = scaled_tokens(), make_cases(3)
    for position in ("last", "all"):
        options = {"layers": 1, "position": position}
        several = mt.trace_knockout(model, cases, metric=["kl", "logit_diff", twice], **options)
        alone = mt.trace_knockout(model, cases, **options)
        np.testing.assert_allclose(several["logit_diff"].effects, alone.effects, atol=1e-9)
        assert (several["kl"].effects >= -1e-9).all()
        assert several["kl"].effects.max() > 1e-3
        clean = several["twice"].cases.clean
        for index, case in enumerate(cases):
            with torch.no_grad():
                logits = model(torch.tensor([case.input_ids]), use_cache=False).logits[0, -1].double()
            assert clean[index] == pytest.approx(2 * float(logits[case.true_id]), abs=1e-3)


def test_cases_without_a_foil(model, cases):
    without = [mt.Case(c.input_ids, c.subject, c.true_id, None, c.case_id) for c in cases]
    with pytest.raises(errors.NoFoilError, match="have none"):
        mt.trace_knockout(model, without)
    found = mt.trace_knockout(model, without, metric="logprob")
    curves = found.greedy(2, draws=1, shares=[0.5])
    assert curves.metric == "logprob"
    assert curves.rows.accuracy.isna().all()
    assert curves.rows.logprob.notna().all()
    with pytest.raises(errors.NoFoilError, match="have none"):
        found.greedy(2, metric="logit_diff")


OPTIONS: dict[str, Any] = {"draws": 1, "shares": [0.25]}


@pytest.fixture(scope="module")
def curves(knock):
    return knock.greedy(3, metric=METRICS, **OPTIONS)


def test_curves_in_every_metric_are_those_of_hooks_by_hand(curves, knock, model, cases):
    assert isinstance(curves, mt.MetricCurves)
    assert list(curves) == NAMES
    first = curves["logit_diff"]
    assert not set(NAMES) & set(curves["prob"].rows) - {"prob"}
    for at in range(0, len(first.rows), 3):
        row, own = first.rows.iloc[at], first.sets[at]
        off = set(own) if row.curve == "off" else set(range(32)) - set(own)
        above, best = [], []
        for index, case in enumerate(cases):
            clean, logits = (logits_by_hand(model, case, set(which)) for which in ((), off))
            for name, expected in zip(NAMES, values_by_hand(logits, clean, case), strict=True):
                assert_near(name, curves[name].values[at, index], expected)
            above.append(bool(logits[case.true_id] > logits[case.foil_id]))
            best.append(int(logits.argmax()) == case.true_id)
        for name in NAMES:
            own_row = curves[name].rows.iloc[at]
            assert own_row[name] == pytest.approx(curves[name].values[at].mean())
            assert (own_row.accuracy, own_row.top_1) == (np.mean(above), np.mean(best))
            facts = curves[name].provenance
            span = facts["full"] - facts["empty"]
            assert own_row.faithfulness == pytest.approx((own_row[name] - facts["empty"]) / span)


def test_curves_by_default_in_the_traces_own_metric(traces, curves):
    own = traces["kl"].greedy(2, **OPTIONS)
    assert (own.metric, own.unit) == ("kl", "nats")
    assert own.rows.columns.tolist()[-2:] == ["kl", "faithfulness"]
    off = own.rows[(own.rows.curve == "off") & (own.rows.order == "importance")]
    assert off.kl.iloc[0] == pytest.approx(0, abs=1e-9)
    assert off.kl.iloc[1] > 0
    kept = own.rows[(own.rows.curve == "keep") & (own.rows.order == "importance")]
    assert kept.faithfulness.iloc[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-9)
    assert own.plot().get_ylabel() == "mean kl (nats)"
    twice_, ranked = traces["twice"].greedy(1, **OPTIONS), traces["twice"].order()[0]
    assert twice_.metric == "twice"
    assert twice_.sets[1] == (ranked,)
    assert set(curves.areas().metric) == set(NAMES)
    assert len(curves.plot().figure.axes) == len(NAMES)


def test_the_axis_fits_the_values(knock):
    """Curves far from 0 aren't pressed against an edge; lines to compare with are drawn where they fit."""
    curves = knock.greedy(3, draws=1)
    values = curves.rows[curves.rows.curve == "off"].logit_diff
    low, high = curves.plot().get_ylim()
    assert low < values.min() <= values.max() < high
    assert high - low < 1.5 * np.ptp(values)
    low, high = curves.plot("keep", "faithfulness").get_ylim()
    assert low < 0 < 1 < high


def test_names_of_columns_are_refused(knock):
    def accuracy(logits: torch.Tensor, case: mt.Case) -> torch.Tensor:
        return logits[:, 0]

    with pytest.raises(errors.ArgumentError, match="'accuracy' has the name of another column"):
        knock.greedy(1, metric=accuracy)


def assert_same(a: mt.KnockoutCurves, b: mt.KnockoutCurves) -> None:
    pd.testing.assert_frame_equal(a.rows, b.rows)
    assert a.sets == b.sets
    np.testing.assert_array_equal(a.values, b.values)
    assert a.provenance == json.loads(json.dumps(b.provenance))
    assert (a.cpr, a.experts, a.metric) == (b.cpr, b.experts, b.metric)


def test_saved_and_loaded(curves, knock, tmp_path):
    one = knock.greedy(2, **OPTIONS)
    one.save(tmp_path / "one")
    found = mt.load(tmp_path / "one")
    assert isinstance(found, mt.KnockoutCurves)
    assert_same(found, one)
    assert found.plot().get_ylabel() == "mean logit difference"
    curves.save(tmp_path / "several")
    several = mt.load(tmp_path / "several")
    assert isinstance(several, mt.MetricCurves)
    for name in NAMES:
        assert_same(several[name], curves[name])
    pd.testing.assert_frame_equal(several.rows, curves.rows)


def test_what_was_changed_on_disk_is_refused(knock, tmp_path):
    knock.greedy(1, **OPTIONS).save(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["provenance"]["ablation"] = "mean"
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(errors.RunFolderError, match=r"provenance\.ablation was changed"):
        mt.load(tmp_path)


def test_traces_of_several_metrics_are_saved_too(traces, tmp_path):
    traces.save(tmp_path)
    found = mt.load(tmp_path)
    for name in NAMES:
        np.testing.assert_array_equal(found[name].effects, traces[name].effects)
        np.testing.assert_array_equal(found[name].clean_active, traces[name].clean_active)


def test_a_run_folder_keeps_finished_sets(knock, tmp_path, monkeypatch):
    out, expected = tmp_path / "curves", knock.greedy(3, **OPTIONS)
    stop_after(10, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        knock.greedy(3, out=out, **OPTIONS)
    monkeypatch.undo()
    kept = len(list((out / "parts").glob("*.parquet")))
    assert kept >= 8
    with pytest.raises(errors.RunFolderError, match="isn't finished"):
        mt.load(out)
    with counting() as whole:
        knock.greedy(3, **OPTIONS)
    with counting() as rest:
        found = knock.greedy(3, out=out, **OPTIONS)
    assert 0 < rest.rows < whole.rows
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert_same(mt.load(out), found)
    with counting() as none:
        again = knock.greedy(3, out=out, **OPTIONS)
    assert none.rows == 0
    assert_same(again, found)
    with counting() as more:
        wider = knock.greedy(4, out=out, **OPTIONS)
    assert 0 < more.rows < whole.rows / 2
    np.testing.assert_allclose(wider.values, knock.greedy(4, **OPTIONS).values, atol=1e-5)
    with pytest.raises(errors.RunFolderError, match="different: metric"):
        knock.greedy(3, metric="prob", out=out, **OPTIONS)


def stop_after(forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from moetrace.engines import switches

    run, calls = switches._Forward.run, []

    def counted(self: Any) -> Any:
        calls.append(1)
        if len(calls) > forwards:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(switches._Forward, "run", counted)


def test_plain_forwards_go_on_where_they_were(tmp_path, monkeypatch):
    """Rerouting at every token where a router doesn't renormalise."""
    own, many = make_model("qwen2_moe"), mt.CaseSet(make_cases(10))
    options: dict[str, Any] = {
        "layers": 1,
        "ablation": "reroute",
        "position": "all",
        "metric": ["prob", "kl"],
    }
    with counting() as whole:
        expected = mt.trace_knockout(own, many, **options)
    assert "plain forwards" in expected.provenance["engine_reason"]
    append = RunFolder.append

    def stop(folder: Any, parts: Any) -> None:
        append(folder, parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        mt.trace_knockout(own, many, out=tmp_path, **options)
    monkeypatch.undo()
    assert len(list((tmp_path / "parts").glob("*.parquet"))) == 1
    with counting() as rest:
        found = mt.trace_knockout(own, many, out=tmp_path, **options)
    assert rest.rows < 0.6 * whole.rows
    for name in ("prob", "kl"):
        np.testing.assert_allclose(found[name].effects, expected[name].effects, atol=1e-6)
        np.testing.assert_array_equal(mt.load(tmp_path)[name].effects, found[name].effects)
    with pytest.raises(errors.RunFolderError, match="different: experts"):
        mt.trace_knockout(own, many, out=tmp_path, **{**options, "layers": 2})


def test_a_part_of_another_set_is_refused(knock, tmp_path):
    knock.greedy(1, out=tmp_path / "a", **OPTIONS)
    first, second = sorted((tmp_path / "a" / "parts").glob("*.parquet"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(errors.RunFolderError, match=f"{first.name} can't be used: it is another set's"):
        knock.greedy(1, out=tmp_path / "a", **OPTIONS)


def test_knockout_curves_of_a_loaded_trace(traces, model, cases, tmp_path):
    for name in ("kl", "twice"):
        traces[name].save(tmp_path / name)
    loaded = mt.load(tmp_path / "kl")
    found = mt.knockout_curves(loaded, model, cases, 1, out=tmp_path / "curves", **OPTIONS)
    np.testing.assert_allclose(found.values, traces["kl"].greedy(1, **OPTIONS).values, atol=1e-7)
    loaded = mt.load(tmp_path / "twice")
    with pytest.raises(errors.ArgumentError, match="measured by a function, 'twice'"):
        mt.knockout_curves(loaded, model, cases, 1)
    found = mt.knockout_curves(loaded, model, cases, 1, metric=twice, **OPTIONS)
    assert found.metric == "twice"


def test_a_position_that_is_a_function(model, cases, tmp_path):
    def two(case: mt.Case) -> list[int]:
        return [case.subject[0], -1]

    trace = mt.trace_knockout(model, cases, layers=1, position=two)
    trace.save(tmp_path)
    loaded = mt.load(tmp_path)
    with pytest.raises(errors.ArgumentError, match="position is a function, 'two'"):
        mt.knockout_curves(loaded, model, cases, 1)
    with pytest.raises(errors.ArgumentError, match="position is 'last' and the trace's is 'two'"):
        mt.knockout_curves(loaded, model, cases, 1, position="last")
    found = mt.knockout_curves(loaded, model, cases, 1, position=two, **OPTIONS)
    np.testing.assert_allclose(found.values, trace.greedy(1, **OPTIONS).values, atol=1e-6)


def test_arguments_in_another_order(traces, knock, model, cases):
    order = r"The order is knockout_curves\(trace, model, cases, n=8\)"
    with pytest.raises(
        errors.ArgumentError, match=rf"trace is a Qwen3Moe.*the second argument is one.*{order}"
    ):
        mt.knockout_curves(model, knock, cases)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match=rf"model is a CaseSet.*{order}"):
        mt.knockout_curves(knock, cases, model)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match=rf"trace is a CaseSet.*{order}"):
        mt.knockout_curves(cases, model, knock)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match=r"several metrics.*traces\['logit_diff'\]"):
        mt.knockout_curves(traces, model, cases)  # type: ignore[arg-type]


def test_a_trace_without_cases_ranks_nobody(knock):
    empty = knock.subset([])
    assert "0 cases" in repr(empty)
    for call in (empty.order, empty.important, lambda: empty.greedy(1), lambda: empty.auroc(["L01E001"])):
        with pytest.raises(errors.NoCasesError, match="holds no cases, so that no site is better"):
            call()


def test_shown_by_the_command_line(knock, tmp_path):
    knock.greedy(1, **OPTIONS).save(tmp_path)
    text = told(tmp_path, None, 5, {})
    assert "KnockoutCurves(1 of 32 experts" in text
    assert "faithfulness" in text


def test_folders_hold_one_kind(knock, tmp_path: Path):
    knock.save(tmp_path / "trace")
    with pytest.raises(errors.RunFolderError, match="of kind 'knockout'"):
        knock.greedy(1, **OPTIONS).save(tmp_path / "trace")
