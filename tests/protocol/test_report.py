"""What a report tells beside its tables: counts, notes, pictures, the comparison; and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import transformers

import moetrace as mt
from moetrace.errors import ArgumentError, NoCasesError
from moetrace.protocol.compare import published
from moetrace.protocol.scan import TooFewCasesError
from moetrace.trace.select_cases import FewCasesWarning
from tests.engines import tiny
from tests.engines.tiny import make_cases, make_model
from tests.protocol.conftest import SMALL

matplotlib.use("agg")


def test_passes_rows_bytes_and_seconds(run: Any, demo: Any) -> None:
    report, _ = run
    size = sum(weight.numel() * weight.element_size() for weight in demo[0].parameters())
    stages = report.stages.set_index("stage")
    assert list(stages.index) == [
        "usable", "layers", "experts_discovery", "around", "scales", "map", "relaxed", "relaxed_layers",
        "relaxed_experts",
    ]  # fmt: skip
    assert (stages.forwards > 0).all()
    assert report.counts["forwards"] == stages.forwards.sum()
    assert report.counts["rows"] == stages.rows.sum()
    assert report.counts["bytes"] == size * stages.forwards.sum()
    cases = report.cases["usable"]
    base = sum(2 * len(case.input_ids) - case.subject[0] for case in cases)
    assert stages.rows["layers"] >= base + 9 * len(cases)  # eight layers and the null patch


def test_the_strict_cases_of_the_relaxed_set_are_traced_once(run: Any) -> None:
    report, folder = run
    traced = pd.read_parquet(folder / "traces" / "relaxed_layers" / "cases.parquet").case_id
    strict = {case.case_id for case in report.cases["usable"]}
    assert not strict & set(traced)
    both = {case.case_id for case in report.cases["relaxed"]}
    assert set(traced) == both - strict


def test_texts_are_the_prompts(run: Any, demo: Any) -> None:
    report, _ = run
    for case in report.cases["all"]:
        text = report.texts[case.case_id]
        assert "".join(text["tokens"]) == text["prompt"] == case.prompt
        assert text["subject"] in case.prompt
        assert text["true"] == demo[1].decode([case.true_id])


def test_the_figure_shows_the_tables(run: Any) -> None:
    report, folder = run
    left, middle, right = report.figure().axes
    means = report.layers("layers_validation").effects.mean(axis=0)
    np.testing.assert_allclose(left.lines[0].get_ydata(), means)
    one = report.tables["1"].iloc[0]
    heights = [bar.get_height() for bar in middle.patches[:3]]
    assert heights[0] == pytest.approx(one.expert_rescue)
    assert heights[2] == pytest.approx(one.spec)
    assert [bar.get_height() for bar in right.patches[1:3]] == pytest.approx(
        report.tables["16"].rescue.tolist()
    )
    assert any(np.allclose(line.get_ydata(), one.layer_rescue) for line in right.lines)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparison_says_what_is_covered(run: Any) -> None:
    report, _ = run
    found = report.compare("qwen3-30b-a3b")
    rows = found.rows.set_index(["table", "row", "figure"])
    own = rows.loc[("1", "", "layer_rescue")]
    one = report.tables["1"].iloc[0]
    assert (own.printed, own.printed_low, own.printed_high) == (0.901, 0.752, 1.053)
    assert (own.run, own.run_low, own.run_high) == (
        one.layer_rescue,
        one.layer_rescue_low,
        one.layer_rescue_high,
    )
    assert bool(own.covers) == (one.layer_rescue_low <= 0.901 <= one.layer_rescue_high)
    known = found.rows.dropna(subset=["covers"])
    assert found.covered == (int(known.covers.sum()), len(known))
    assert rows.loc[("1", "", "expert")].run_text == str(report.star)
    assert rows.loc[("4", "relation P17", "n")].run == sum(
        c.relation_id == "P17" for c in report.cases["usable"]
    )
    assert "512" in rows.loc[("14", "", "layer_rescue")].note
    assert "116" in rows.loc[("10", "metric Ranked validation cases", "value")].note
    assert "137" in rows.loc[("15", "subset All relaxed val.", "n_expert")].note
    assert found.shared_cases["discovery"][1] == 128
    ax = found.plot()
    assert len(ax.get_yticklabels()) == len(found.rows.dropna(subset=["printed_low", "run_low"]))
    with pytest.raises(ArgumentError, match="did you mean 'mixtral-8x7b'"):
        report.compare("mixtral-8x7")


def test_the_printed_figures_are_the_papers(shared: Path) -> None:
    import json

    paper = json.loads((shared / "paper" / "published.json").read_text())
    for key, name in (("qwen3", "qwen3-30b-a3b"), ("mixtral", "mixtral-8x7b")):
        own = published()["models"][name]
        assert own["case_ids"] == paper["table8"][key]
        found = {(f["table"], *f["row"].values(), f["figure"]): f for f in own["figures"]}
        assert len(found) == len(own["figures"])
        one = paper["table1"][key]["spec"]
        spec = found["1", "spec"]
        assert (spec["value"], [spec["low"], spec["high"]]) == (one["mean"], one["ci95"])
        for row in paper["table5"][key]:
            names = ("n", "expert_rescue", "specificity", "positive_fraction")
            assert [found["5", row[0], name]["value"] for name in names] == row[1:]
        for model, subset, n, layer, n_expert, _, spec in paper["table15"]["rows"]:
            if model == key:
                label = "All relaxed val." if subset == "all" else "Relaxed-new val."
                assert found["15", label, "n_layer"]["value"] == n
                assert found["15", label, "layer_rescue"]["value"] == layer["mean"]
                assert found["15", label, "n_expert"]["value"] == n_expert
                assert found["15", label, "spec"]["low"] == spec["ci95"][0]


def test_a_case_set_needs_no_tokenizer_and_top_2_has_table_11(monkeypatch: Any) -> None:
    top_2 = transformers.MixtralConfig(**{**tiny.MOE, "num_experts_per_tok": 2}, num_local_experts=8)
    monkeypatch.setitem(tiny.FAMILIES, "top_2", lambda: top_2)
    model = make_model("top_2")
    cases = mt.CaseSet(make_cases(24))
    report = mt.run_protocol(
        model, None, cases, "quick", n=16, margin=-99, drop=-99, min_active=0.1, n_resamples=50, n_flips=50
    )
    assert report.top_k == 2
    eleven = report.tables["11"].set_index("metric")
    matched = report.traces["matched"]
    assert eleven.n.unique().tolist() == [len(matched)]
    gap = matched.effects[:, 2] - matched.effects[:, 3]
    assert eleven["mean"]["Equal-norm active-pair specificity"] == pytest.approx(gap.mean())
    assert report.tables["9"].empty
    assert "Table 11" in report.tables["9"].attrs["note"]
    assert "relaxed=True" in report.tables["14"].attrs["note"]
    assert report.texts[cases[0].case_id]["tokens"][0] == f"<{cases[0].input_ids[0]}>"


def test_a_model_without_experts_has_the_layers_tables() -> None:
    report = mt.run_protocol(
        make_model("llama"), None, mt.CaseSet(make_cases(12)), "quick", n=12, margin=-99, drop=-99,
        n_resamples=50, n_flips=50,
    )  # fmt: skip
    assert report.star is None
    assert "no routed experts" in report.notes["expert"]
    assert len(report.tables["6"]) == 1
    assert report.tables["10"].empty
    assert len(report.figure().axes) == 3


def test_no_recurrent_expert_is_a_note_not_an_error(demo: Any, records: Any) -> None:
    report = mt.run_protocol(*demo, records, "quick", n=30, min_active=1.0, n_resamples=50, n_flips=50)
    assert report.star is None
    assert "Lower min_active" in report.notes["expert"]
    assert report.tables["16"].empty
    assert "Lower min_active" in report.tables["16"].attrs["note"]
    assert "–" in report.markdown(1)


def test_the_relaxed_preset_counts_its_overlap_with_the_strict_set(demo: Any, records: Any) -> None:
    options = {**SMALL, "relaxed_n": 52}
    report = mt.run_protocol(*demo, records, "relaxed", **options)
    scores = report.layers("layers_usable").cases
    strict = set(scores.case_id[(scores.clean >= 1) & (scores.clean - scores.noised >= 0.5)][:256])
    half = [case.case_id for case in report.cases["usable"]][20:]
    assert [case.case_id for case in report.cases["validation"]] == half
    assert report.scale_up.overlap == len(strict & set(half))
    assert report.tables["15"].n_layer.tolist() == [20, 20 - report.scale_up.overlap]


def test_too_few_cases_say_where_the_others_fell(demo: Any, records: Any) -> None:
    with pytest.raises(TooFewCasesError) as caught:
        mt.run_protocol(*demo, records[:60], margin=25.0, n=20)
    told = str(caught.value)
    assert "of the 20 cases asked for are usable" in told
    assert "at clean_margin" in told
    assert "margin=12.5 would admit" in told
    with pytest.warns(FewCasesWarning, match=r"only \d+ of the 90 cases .* give more records") as caught_all:
        report = mt.run_protocol(*demo, records[:60], "quick", n=90, n_resamples=50, n_flips=50)
    assert len(caught_all)
    assert "of 90 asked for" in report.notes["cases"]
    with pytest.raises(NoCasesError):
        mt.run_protocol(demo[0], demo[1], mt.CaseSet([]))


def test_reprs(run: Any) -> None:
    report, _ = run
    assert str(report.star) in repr(report)
    assert "<table>" in report._repr_html_()
    assert "printed means" in report.compare("mixtral-8x7b")._repr_html_()
