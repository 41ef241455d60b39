"""The page as a file: numbers as in the traces, nothing from data that acts, and nothing half-written."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import sys
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.report import embed, parts, write_folder, write_html
from moetrace.report.source import Source
from tests.report.stand_in import HOSTILE, StandIn, demo_report, wide_report, without


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_html(demo_report(), path) == path
    return path.read_text(encoding="utf-8")


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def markup(page: str) -> str:
    """The page without its scripts, data and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


def data_of(page: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


def unpack(packed: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), "<" + packed["dtype"])


# ---------------------------------------------------------------- numbers


def test_layer_means_of_all_cases_and_of_a_relation(page):
    trace = demo_report().traces["layers_validation"]
    data = data_of(page)["layers"]
    own = data["groups"][""]
    assert own["layer"] == list(trace.layers)
    np.testing.assert_allclose(own["mean"], trace.effects.mean(axis=0), rtol=1e-5)
    relations = trace.cases.relation_id
    for name in relations.unique():
        inside = (relations == name).to_numpy()
        np.testing.assert_allclose(
            data["groups"][name]["mean"], trace.effects[inside].mean(axis=0), rtol=1e-5
        )
        assert data["groups"][name]["n"] == inside.sum()
    assert set(data["groups"]) == {"", *relations}
    np.testing.assert_allclose(
        data["discovery"]["mean"], demo_report().traces["layers"].effects.mean(axis=0), rtol=1e-5
    )


def test_map_holds_every_rescue(page):
    trace = demo_report().traces["experts_validation"]
    data = data_of(page)["experts"]
    single = data["single"]
    rows = np.repeat(np.arange(len(trace)), unpack(single["per_case"]))
    found = np.zeros(trace.effects.shape, np.float32)
    found[rows, unpack(single["site"])] = unpack(single["rescue"])
    np.testing.assert_array_equal(found, trace.effects.astype(np.float32))
    active = trace.arrays.clean_active.sum(axis=0)
    site = unpack(data["site"])
    assert site.tolist() == np.flatnonzero(active).tolist()
    np.testing.assert_array_equal(unpack(data["active"]), active[site])
    np.testing.assert_allclose(unpack(data["mean"]), trace.effects.mean(axis=0)[site], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(unpack(data["sites"]["expert"]), trace.sites.expert)


def test_survivors_are_those_of_the_corrected_summary():
    report = wide_report(cases=32, layers=6, experts=24, k=4)
    trace = report.traces["experts_validation"]
    found = trace.summary(correction="max_t")
    kept = set(np.flatnonzero(found.p_adjusted < 0.05))
    from moetrace.report.experts import expert_table

    table = expert_table(trace, {})
    assert set(table.site[table.p_adjusted < 0.05]) == kept
    assert len(kept) == 1
    assert trace.sites.loc[kept.pop()].tolist() == [2, 21]


def test_pairs_are_the_specificity(page):
    report = demo_report()
    rows = report.traces["experts_validation"].specificity(report.star).rows
    data = data_of(page)["controls"]
    assert data["case"] == rows.case_id.tolist()
    np.testing.assert_allclose(data["rescue"], rows.star_rescue, rtol=1e-5)
    np.testing.assert_allclose(data["control"], rows.control_rescue, rtol=1e-5)
    assert data["active"] == rows.clean_active.tolist()


def test_shares_add_up_to_the_whole_coalition(page):
    trace = demo_report().traces["coalitions"]
    shares = data_of(page)["coalitions"]["shares"]
    assert len(shares["expert"]) == 16
    assert sum(shares["mean"]) == pytest.approx(trace.values()[:, -1].mean(), rel=1e-4)
    line = data_of(page)["coalitions"]["line"]
    sizes = np.array(data_of(page)["coalitions"]["size"])
    for size, mean in zip(line["size"], line["mean"], strict=True):
        assert mean == pytest.approx(trace.effects[:, sizes == size].mean(), rel=1e-5)


def test_a_case_has_its_own_rescues_and_experts(page):
    report = demo_report()
    cases = {case["id"]: case for case in data_of(page)["explorer"]["cases"]}
    assert set(cases) == {case.case_id for case in report.cases["usable"]}
    for half, suffix in (("discovery", ""), ("validation", "_validation")):
        layers, experts = report.traces[f"layers{suffix}"], report.traces[f"experts{suffix}"]
        for place, case_id in enumerate(layers.cases.case_id):
            own = cases[case_id]
            assert own["half"] == half
            np.testing.assert_allclose(own["rescue"], layers.effects[place], rtol=1e-4, atol=1e-9)
            assert own["clean"] == pytest.approx(layers.cases.clean[place], rel=1e-5)
            best = experts.effects[place].argmax()
            name = mt.Expert(*experts.sites.loc[best].tolist())
            assert own["experts"][0][:2] == [str(name), pytest.approx(experts.effects[place, best], rel=1e-4)]


def test_captions_name_test_and_correction(page):
    text = markup(page)
    assert "two-sided sign-flip test, adjusted p &lt; 0.05, max-T over 8 layers" in text
    assert re.search(r"adjusted p &lt; 0.05, max-T over \d+ ever clean-active experts", text)
    assert text.count("95 % percentile interval") >= 6
    assert "(logits" in page


# ---------------------------------------------------------------- safety


@pytest.mark.parametrize("text", [HOSTILE, "<!--", "]]>", "\u2028", "&lt;", "\ud800", '"', "${1}"])
def test_data_is_the_same_after_the_browser_and_can_end_nothing(text):
    made = embed.script_json({text: [text, float("nan"), np.float32(1), np.arange(2)]})
    assert not set("<>&") & set(made)
    assert made.isascii()
    assert json.loads(made) == {text: [text, None, 1.0, [0, 1]]}


def test_text_from_data_is_never_markup(page):
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page  # in a cell of a table
    assert HOSTILE in data_of(page)["explorer"]["cases"][0]["prompt"] + "".join(
        case["prompt"] for case in data_of(page)["explorer"]["cases"]
    )


def test_hostile_names_everywhere(tmp_path):
    tables = {HOSTILE: demo_report().tables["1"].rename(columns={"mean": HOSTILE})}
    report = without(
        settings={HOSTILE: HOSTILE},
        counts={HOSTILE: HOSTILE},
        tables=tables,
        provenance={"model": {"name": HOSTILE}, "versions": {HOSTILE: HOSTILE}, "noise": HOSTILE},
    )
    text = write_html(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert len(scripts(text)) == 5


def test_only_its_own_scripts_may_run_and_nothing_is_fetched(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    packed = re.search(r'<script type="application/gzip" id="library">(.*?)</script>', page)[1]
    library = gzip.decompress(base64.b64decode(packed)).decode()
    assert "plotly.js" in library[:100]
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in (*scripts(page), library)
    ]
    assert re.findall(r"sha256-([^']*)", policy) == digests
    assert "unsafe-inline' " not in policy.split("style-src")[0]
    assert not re.search(r'\ssrc=|<iframe|<object|<embed|href="(?!#|data:,)', markup(page))


# ---------------------------------------------------------------- what is missing


def test_an_empty_report_says_so_in_every_section(tmp_path):
    text = write_html(StandIn(), tmp_path / "empty.html").read_text(encoding="utf-8")
    told = re.findall(r'<p class="absent">(.*?)</p>', text)
    reasons = (
        "no cases", "no layer sweep", "no expert trace", "selected no expert", "no coalitions",
        "noise scales", "none of the paper&#39;s models", "no tables", "neither settings",
    )  # fmt: skip
    for reason in reasons:
        assert any(reason in line for line in told), reason
    assert '<section id="cite"' in text


@pytest.mark.parametrize("name", [*sorted(set(StandIn.__dataclass_fields__) - {"traces"}), "compare"])
def test_any_attribute_may_be_missing(name, tmp_path):
    whole = {key: getattr(demo_report(), key) for key in (*StandIn.__dataclass_fields__, "compare")}
    none = write_html(SimpleNamespace(**{**whole, name: None}), tmp_path / "none.html")
    del whole[name]
    absent = write_html(SimpleNamespace(**whole), tmp_path / "absent.html")
    assert absent.read_bytes() == none.read_bytes()


@pytest.mark.parametrize("name", list(demo_report().traces))
def test_any_trace_may_be_missing(name, tmp_path):
    traces = {key: None if key == name else trace for key, trace in demo_report().traces.items()}
    text = write_html(without(traces=traces), tmp_path / "r.html").read_text(encoding="utf-8")
    del traces[name]
    assert write_html(without(traces=traces), tmp_path / "s.html").read_text(encoding="utf-8") == text


def test_named_coalitions_have_no_shares(tmp_path):
    model, _ = mt.load_demo()
    report = demo_report()
    named = mt.trace_coalitions(
        model, report.cases["validation"], layer=report.layer, sets=("clean", "union"), progress=False
    )
    text = write_html(without(traces={"coalitions": named}), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Shapley values need the rescue of every subset" in text
    assert data_of(text)["coalitions"]["name"] == named.sites.coalition.tolist()


def test_direct_effects_are_shown_where_there_are_some(tmp_path):
    held, sweep = (copy(demo_report().traces[f"{kind}_validation"]) for kind in ("experts", "layers"))
    held.arrays = copy(held.arrays)
    object.__setattr__(held.arrays, "direct", held.arrays.rescue / 4)  # frozen, and so is what it is made of
    sweep.direct = sweep.effects / 2
    traces = {**demo_report().traces, "experts_validation": held, "layers_validation": sweep}
    text = write_html(without(traces=traces), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "goes straight to the logits (direct)" in text
    own = next(case for case in data_of(text)["explorer"]["cases"] if case["half"] == "validation")
    assert own["experts"][0][4] == pytest.approx(own["experts"][0][1] / 4, rel=1e-3)
    layers = data_of(text)["layers"]
    assert layers["direct"] == pytest.approx(np.array(layers["groups"][""]["mean"]) / 2, rel=1e-4)
    sweep.direct = sweep.direct * np.nan  # where a model doesn't allow them
    object.__setattr__(held.arrays, "direct", held.arrays.rescue * np.nan)
    assert "(direct)" not in write_html(without(traces=traces), tmp_path / "r.html").read_text(
        encoding="utf-8"
    )


# ---------------------------------------------------------------- files and arguments


def test_a_whole_model_stays_small(tmp_path):
    path = write_html(wide_report(), tmp_path / "wide.html")
    assert path.stat().st_size < 3_500_000


def test_a_failed_write_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_html(StandIn(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_a_folder_is_loaded_and_the_page_written_into_it(tmp_path, monkeypatch):
    monkeypatch.setattr(mt, "load", lambda folder: StandIn() if folder == tmp_path else None, raising=False)
    assert write_folder(tmp_path) == tmp_path / "report.html"
    assert write_folder(str(tmp_path), tmp_path / "other.html").exists()


def test_arguments(tmp_path):
    with pytest.raises(mt.errors.ArgumentError, match="a folder; expected the path of a file"):
        write_html(StandIn(), tmp_path)
    with pytest.raises(mt.errors.ArgumentError, match="did you mean 'mixtral-8x7b'"):
        write_html(StandIn(), tmp_path / "r.html", compare="mixtral-8x7")
    with pytest.raises(TypeError, match="the report of a run"):
        write_html(None, tmp_path / "r.html")
    with pytest.raises(TypeError, match=r"report\.traces is"):
        write_html(StandIn(traces=[1]), tmp_path / "r.html")
    with pytest.raises(TypeError, match="path"):
        write_html(StandIn(), 7)


@pytest.mark.parametrize("package", ["plotly.offline", "jinja2"])
def test_a_missing_package_is_named_with_its_remedy(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(mt.errors.MissingPackageError, match=r'pip install "moetrace\[report\]"'):
        write_html(StandIn(), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_the_paper_is_found_by_the_models_name(tmp_path):
    report = without(provenance={"model": {"name": "Qwen/Qwen3-30B-A3B-Base"}})
    text = write_html(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert data_of(text)["paper"]["printed"] == [0.901, 0.4, 0.515]
    text = write_html(demo_report(), tmp_path / "r.html", compare="mixtral-8x7b").read_text(encoding="utf-8")
    assert "Mixtral-8x7B-v0.1" in text


# ---------------------------------------------------------------- parts


def test_numbers_as_text():
    assert parts.number(-0.5, sign=True) == "\u22120.500"
    assert parts.number(float("nan")) == "\u2013"
    assert parts.p_text(1 / 10001) == "p\u00a0=\u00a00.0001"
    assert parts.p_number(float("nan")) == "\u2013"
    assert parts.p_number(2e-6) == "2.0\u00a0×\u00a010⁻⁶"
    assert [parts.cell(v) for v in (True, np.int64(-3), 0.123456, None, (1, 2), {"a": 1})] == [
        "yes", "\u22123", "0.1235", "\u2013", "1, 2", "a 1",
    ]  # fmt: skip


def test_a_models_folder_is_no_title():
    name = {"model": {"name": str(Path("/home/someone/models/factmoe"))}}
    assert Source(StandIn(provenance=name)).model_name == "models/factmoe"


# ---------------------------------------------------------------- what a run of the protocol has beyond that


def test_intervals_and_tests_are_those_of_the_settings(tmp_path):
    statistics = {"ci": "bca", "confidence": 0.9, "n_resamples": 500, "n_flips": 200, "seed": 3}
    settings = SimpleNamespace(statistics=statistics, controls=2, controls_seed=5, seed=0)
    report = without(settings=settings)
    text = write_html(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "90 % bca interval" in text
    assert "95 %" not in markup(text)
    assert data_of(text)["level"] == "90 %"
    trace = report.traces["layers_validation"]
    found = trace.summary(**statistics, correction="max_t")
    own = data_of(text)["layers"]["groups"][""]
    np.testing.assert_allclose(own["low"], found.ci_low, rtol=1e-5)
    np.testing.assert_allclose(own["p"], found.p_adjusted, rtol=1e-5)
    rows = report.traces["experts_validation"].specificity(report.star, controls=2, seed=5).rows
    np.testing.assert_allclose(data_of(text)["controls"]["control"], rows.control_rescue, rtol=1e-5)


def test_the_trace_of_all_layers_makes_the_map_where_the_halves_have_one(tmp_path):
    whole = demo_report().traces
    model, _ = mt.load_demo()
    layer = demo_report().layer
    one = {
        name: mt.trace_experts(model, demo_report().cases[half], layer=layer, progress=False)
        for name, half in (("experts", "discovery"), ("experts_validation", "validation"))
    }
    report = without(traces={**whole, **one, "map": whole["experts_validation"]})
    data = data_of(write_html(report, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(unpack(data["experts"]["sites"]["layer"])) == 8 * 16
    assert data["explorer"]["scope"] == {"validation": "of 8 layers", "discovery": f"of layer {layer}"}
    case = next(case for case in data["explorer"]["cases"] if case["half"] == "discovery")
    assert {name[:3] for name, *_ in case["experts"]} == {f"L{layer:02d}"}


def test_sets_by_routing_beside_all_subsets(tmp_path):
    model, _ = mt.load_demo()
    report = demo_report()
    named = mt.trace_coalitions(
        model, report.cases["validation"], layer=report.layer, sets=("clean", "union"), progress=False
    )
    traces = {**report.traces, "coalitions": named, "shapley": report.traces["coalitions"]}
    text = write_html(without(traces=traces), tmp_path / "r.html").read_text(encoding="utf-8")
    data = data_of(text)["coalitions"]
    assert [own["mean"] for own in data["named"]] == pytest.approx(named.effects.mean(axis=0), rel=1e-5)
    assert len(data["name"]) == 15
    assert (
        data["shares"] == data_of(write_html(report, tmp_path / "s.html").read_text())["coalitions"]["shares"]
    )


def test_notes_captions_and_what_a_table_lacks(tmp_path):
    empty = pd.DataFrame({"expert": []})
    empty.attrs = {"caption": f"Of a pair {HOSTILE}.", "note": "Only where two are routed."}
    report = SimpleNamespace(
        **{key: getattr(demo_report(), key) for key in (*StandIn.__dataclass_fields__, "compare")},
        notes={"expert": f"No expert {HOSTILE}"},
        beyond={"floor": pd.DataFrame({"trace": ["layers"], "floor": [1e-6]})},
        stages=pd.DataFrame({"stage": ["layers"], "forwards": [3]}),
    )
    report.tables = {**report.tables, "11": empty}
    text = write_html(report, tmp_path / "r.html").read_text(encoding="utf-8")
    escaped = HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert f"<li>No expert {escaped}</li>" in text
    assert f"Table 11. Of a pair {escaped}" in text
    assert "Only where two are routed." in text
    assert "Beyond the paper: the numerical floor of each trace" in text
    assert "What each stage cost" in text
    order = re.findall(r"<summary>Table (\d+)\.", text)
    assert order == sorted(order, key=int)
