"""The command line, mostly in this process, and as a user runs it where signals and exit codes count."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
import types
import warnings
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import moetrace as mt
from moetrace import progress as progress_module
from moetrace.cli import app
from moetrace.cli.options import GROUPS, read
from moetrace.protocol.settings import Settings

MODEL = str(resources.files("moetrace.demo") / "data")
SETTINGS = {name: own for group in GROUPS.values() for name, own in group.items()}


def invoke(*words: object) -> Any:
    found = CliRunner().invoke(app, [str(word) for word in words], prog_name="moetrace")
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def last_line(found: Any) -> str:
    return str(found.stderr.splitlines()[-1])


def shell(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moetrace", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: Any) -> Path:
    """Sixty records: fewer than are asked for, so that a run warns."""
    file: Path = tmp_path_factory.mktemp("records") / "facts.json"
    file.write_text(json.dumps(mt.demo_records()[:60]))
    return file


@pytest.fixture(scope="module")
def call(facts: Path, tmp_path_factory: Any) -> list[str]:
    out = tmp_path_factory.mktemp("runs") / "deep" / "run"
    words = ["run", MODEL, "--cases", facts, "--out", out, "--preset", "quick", "--dtype", "float32"]
    words += ["--n", "70", "--scales", "1,3", "--n-flips", "100", "--set", "n_resamples=100"]
    words += ["--no-shapley", "--set", "min-active=0.25", "--label", "7"]
    return list(map(str, words))


@pytest.fixture(scope="module")
def run(call: list[str]) -> tuple[Path, Any]:
    """A finished run and what it printed."""
    found = invoke(*call)
    assert found.exit_code == 0, found.output
    return Path(call[5]), found


def test_another_corruption(call, tmp_path):
    words = [*call[:5], str(tmp_path / "run"), *call[6:], "--n", "12", "--no-relaxed", "--corruption"]
    found = invoke(*words, "swop")
    assert found.exit_code == 2
    assert "did you mean 'swap'" in found.output
    found = invoke(*words, "mean", "--margin", "0.2", "--drop", "0.05")
    assert found.exit_code == 0, found.output
    report = mt.load(tmp_path / "run")
    assert report.settings.corruption == "mean"
    assert report.traces["layers"].provenance["corruption"]["name"] == "mean_embedding"
    report.html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mean embedding in the place of" in page


def test_demo_writes_table_and_picture(tmp_path):
    found = invoke("demo", "--out", tmp_path / "d", "--n", 24)
    assert found.exit_code == 0, found.output
    table = pd.read_csv(tmp_path / "d" / "layers.csv")
    assert table.layer.tolist() == list(range(8))
    assert set(table.n) == {12}
    assert (tmp_path / "d" / "layers.png").read_bytes().startswith(b"\x89PNG")
    discovery = mt.load(tmp_path / "d" / "discovery")
    assert f"L{discovery.best}" in found.output
    assert len(mt.CaseSet.load(tmp_path / "d" / "cases.json")) == 24
    # another number of cases is another run: refused, and what was there stays as it was
    kept = {file: file.read_bytes() for file in (tmp_path / "d").rglob("*") if file.is_file()}
    again = invoke("demo", "--out", tmp_path / "d", "--n", 20)
    assert again.exit_code == 1
    assert "another call" in last_line(again)
    assert {file: file.read_bytes() for file in (tmp_path / "d").rglob("*") if file.is_file()} == kept
    whole = invoke("show", tmp_path / "d")
    assert whole.exit_code == 1
    assert str(tmp_path / "d" / "validation") in last_line(whole)


def test_demo_without_matplotlib_ends_with_its_tables_and_says_how_to_get_the_picture(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from moetrace.cli import main\n"
        "sys.argv[1:] = ['demo', '--out', 'd', '--n', '8']\n"
        "main()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "rescue on 4 validation cases" in found.stdout
    assert "no picture" in found.stdout.splitlines()[-1]
    assert 'pip install "moetrace[plot]"' in found.stdout.splitlines()[-1]
    assert pd.read_csv(tmp_path / "d" / "layers.csv").layer.tolist() == list(range(8))
    assert not (tmp_path / "d" / "layers.png").exists()


@pytest.mark.parametrize("n", [-1, 0, 3])
def test_a_demo_of_too_few_cases_is_refused_with_the_reason(n, tmp_path):
    found = invoke("demo", "--n", n, "--out", tmp_path / "d")
    assert found.exit_code == 2
    assert f"n is {n}; expected" in last_line(found)
    assert n < 3 or "two halves" in last_line(found)
    assert not (tmp_path / "d").exists()


def test_plan_says_what_a_run_costs_from_a_config_and_a_tokenizer(facts, tmp_path):
    shape = tmp_path / "shape"
    shape.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (shape / name).write_bytes((Path(MODEL) / name).read_bytes())
    words = ["plan", shape, "--cases", facts, "--no-timed", "--dtype", "float32", "--n", 30]
    found = invoke(*words)
    assert found.exit_code == 0, found.output
    assert f"protocol of {shape}: not timed" in found.stdout
    told = json.loads(invoke(*words, "--json").stdout)
    assert [own["stage"] for own in told["stages"]][:3] == ["select", "layers", "experts_discovery"]
    cases = mt.make_cases(mt.demo_records()[:60], mt.load_demo()[1])
    model, _ = mt.load_demo()
    planned = mt.plan(model, cases, "protocol", settings={"n": 30}, timed=False)
    assert (told["rows"], told["flops"]) == (planned.rows, planned.flops)
    cases.save(tmp_path / "cases.json")
    words = ["plan", shape, "--cases", tmp_path / "cases.json", "--no-timed", "--what", "layers", "--json"]
    one = json.loads(invoke(*words, "--layers", "3,5", "--noise-draws", 2).stdout)
    expected = mt.plan(model, cases, layers=[3, 5], noise=mt.SubjectNoise(draws=2), timed=False)
    assert one["rows_by_layer"] == expected.rows_by_layer.tolist()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--what", "layer"], 2, "did you mean 'layers'"),
        (["--what", "layers", "--layers", "1,x"], 2, "layers is '1,x'"),
        (["--what", "layers", "--layers", "99"], 1, "layer 99 is out of range"),
        (["--usable", "0"], 1, "usable is 0.0"),
    ],
)
def test_a_plan_that_can_t_be_made_is_one_line(words, code, message, facts):
    found = invoke("plan", MODEL, "--cases", facts, "--no-timed", *words)
    assert found.exit_code == code
    assert message in last_line(found)
    assert "Traceback" not in found.output


def test_a_plan_of_records_without_a_tokenizer_says_what_serves(facts, tmp_path):
    (tmp_path / "config.json").write_bytes((Path(MODEL) / "config.json").read_bytes())
    found = invoke("plan", tmp_path, "--cases", facts, "--no-timed")
    assert found.exit_code == 1
    assert "no tokenizer" in last_line(found)
    assert "CaseSet.save" in last_line(found)
    found = invoke("plan", tmp_path / "nothing", "--cases", facts, "--no-timed")
    assert found.exit_code == 1
    assert "no config" in last_line(found)


def test_run_prints_the_paper_s_first_table_and_keeps_its_settings(run):
    out, found = run
    report = mt.load(out)
    assert report.markdown(1).rstrip() in found.stdout
    assert found.stdout.rstrip().endswith(str(out / "tables"))
    told = json.loads((out / "config.json").read_text())["settings"]
    asked = {"n": 70, "scales": [1, 3], "n_flips": 100, "n_resamples": 100, "shapley": False}
    asked |= {"min_active": 0.25, "label": "7", "preset": "quick"}
    assert {name: told[name] for name in asked} == asked


def test_run_reads_counterfact_and_another_model(shared, tmp_path):
    folder = shared / "models" / "factmoe"
    known = set(json.loads((folder / "known_case_ids.json").read_text()))
    records = json.loads((shared / "data" / "counterfact.json").read_text())
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([r for r in records if r["case_id"] in known][:60]))
    words = ["--preset", "quick", "--n", 20, "--dtype", "float32", "--min-active", 2, "--no-shapley"]
    found = invoke("run", folder, "--cases", file, "--out", tmp_path / "o", *words)
    assert found.exit_code == 0, found.output
    assert len(mt.load(tmp_path / "o").cases["validation"]) == 10


def test_a_warning_is_one_line_and_the_process_shows_its_own_again(run):
    _, found = run
    told = [line for line in found.stderr.splitlines() if "of the 70 cases asked for" in line]
    assert len(told) == 1
    assert told[0].startswith("moetrace: warning: only ")
    assert ".py:" not in found.stderr
    assert "warnings.warn" not in found.stderr
    assert warnings.showwarning.__module__ != "moetrace.cli.console"


def test_the_same_command_goes_on_and_another_is_refused(run, call):
    out, first = run
    stamps = {file: file.stat().st_mtime_ns for file in (out / "traces").rglob("*.parquet")}
    again = invoke(*call)
    assert again.exit_code == 0
    assert again.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]
    assert {file: file.stat().st_mtime_ns for file in (out / "traces").rglob("*.parquet")} == stamps
    other = invoke(*call, "--margin", "0.9")
    assert other.exit_code == 1
    assert "settings.margin is 1.0 there and 0.9 here" in last_line(other)


def test_cases_of_another_run_are_taken(run, call, tmp_path):
    out, _ = run
    words = [*call]
    words[3], words[5] = str(out / "usable.json"), str(tmp_path / "again")
    found = invoke(*words)
    assert found.exit_code == 0, found.output
    first, again = mt.load(out), mt.load(tmp_path / "again")
    assert set(again.cases["usable"].frame().case_id) == set(first.cases["usable"].frame().case_id)
    foils = invoke(*words, "--foil", "relation")
    assert foils.exit_code == 2
    assert "chosen already" in last_line(foils)


def test_a_damaged_case_file_is_refused_as_that(run, call, tmp_path):
    out, _ = run
    damaged = tmp_path / "cases.json"
    damaged.write_text(
        (out / "usable.json").read_text().replace("demo", "").replace('"true_id": [', '"true_id": [1, ')
    )
    words = [*call]
    words[3], words[5] = str(damaged), str(tmp_path / "o")
    found = invoke(*words)
    assert found.exit_code == 1
    assert "damaged" in last_line(found)
    assert not (tmp_path / "o").exists()


def test_parquet_cases_are_told_from_parquet_records(run, tmp_path):
    out, _ = run
    from moetrace.cases.case_files import holds_case_set

    mt.CaseSet.load(out / "usable.json").save(tmp_path / "cases.parquet")
    mt.load_records(mt.demo_records()[:3]).frame().to_parquet(tmp_path / "records.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    found = {file.name: holds_case_set(file) for file in tmp_path.iterdir()}
    assert found == {"cases.parquet": True, "records.parquet": False, "cut.parquet": False}
    assert not holds_case_set("no\0path")


def test_show_prints_a_run_a_table_of_it_and_a_trace(run):
    out, _ = run
    report = mt.load(out)
    whole = invoke("show", out)
    assert whole.stdout.startswith(repr(report))
    assert report.markdown(1).rstrip() in whole.stdout
    assert report.notes["cases"] in whole.stdout
    assert report.markdown(5).rstrip() in invoke("show", out, "--table", 5).stdout
    trace = invoke("show", out / "traces" / "layers")
    assert f"{mt.load(out / 'traces' / 'layers').effects.mean(axis=0)[0]:.4g}" in trace.stdout
    assert "p_adjusted" not in trace.stdout
    short = invoke("show", out / "traces" / "layers", "--rows", 3, "--correction", "holm")
    assert "p_adjusted" in short.stdout
    assert "… 5 more rows: --rows 8" in short.stdout
    scales = invoke("show", out / "traces" / "scales")
    assert scales.exit_code == 0, scales.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "17"], "17"),
        (["--correction", "holm"], "--correction is for a trace"),
    ],
)
def test_show_refuses_what_a_run_doesn_t_have(run, words, message):
    found = invoke("show", run[0], *words)
    assert found.exit_code == 1
    assert message in last_line(found)


def test_show_refuses_what_a_trace_doesn_t_have(run):
    found = invoke("show", run[0] / "traces" / "layers", "--table", "1")
    assert found.exit_code == 1
    assert "--table is for a run" in last_line(found)
    found = invoke("show", run[0] / "traces" / "layers", "--correction", "hlom")
    assert found.exit_code == 1
    assert "did you mean 'holm'" in last_line(found)


def test_report_writes_into_the_folder_or_where_it_is_told(run, tmp_path, monkeypatch):
    asked = []

    def write_html(report: Any, path: Path, *, compare: str | None = None) -> Path:
        asked.append((report.label, path, compare))
        return path

    package = types.ModuleType("moetrace.report")
    package.write_html = write_html  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moetrace.report", package)
    out, _ = run
    found = invoke("report", out)
    assert found.stdout == f"report: {out / 'report.html'}\n"
    invoke("report", out, "--out", tmp_path / "r.html", "--compare", "mixtral-8x7b")
    assert asked == [("7", out / "report.html", None), ("7", tmp_path / "r.html", "mixtral-8x7b")]
    single = invoke("report", out / "traces" / "layers")
    assert single.exit_code == 1
    assert "holds one trace" in last_line(single)


def test_report_without_its_packages_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "moetrace.report", None)
    found = invoke("report", run[0])
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert 'pip install "moetrace[report]"' in found.stderr


@pytest.mark.parametrize("command", ["show", "report"])
def test_a_folder_that_isn_t_there_is_one_line(command, tmp_path):
    found = invoke(command, tmp_path / "nothing")
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert "doesn't exist" in found.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "marign=1"], "there is no setting 'marign' (did you mean 'margin'?)"),
        (["--marign", "1"], "--margin"),
        (["--set", "margin"], "expected name=value"),
        (["--set", "preset=quick"], "there is no setting 'preset'"),
        (["--n", "5", "--set", "n=6"], "n is given twice"),
        (["--set", "n=5", "--set", "n=6"], "n is given twice"),
        (["--n", "3"], "n is 3"),
        (["--margin", "much"], "margin is 'much'"),
        (["--confidence", "1.5"], "confidence is 1.5"),
        (["--scales", "1,two"], "scales is 'two'"),
        (["--ci", "basc"], "did you mean 'basic'"),
        (["--preset", "papre"], "did you mean 'paper'"),
        (["--set", "shapley=maybe"], "shapley is 'maybe'"),
    ],
)
def test_a_wrong_setting_is_wrong_use(words, message, tmp_path):
    found = invoke("run", "no/model", "--cases", "none.json", "--out", tmp_path / "o", *words)
    assert found.exit_code == 2
    assert message in last_line(found)
    assert "Usage: moetrace run" in found.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("words", [[], ["run"], ["run", "m", "--out", "o"], ["demo", "x"], ["no"]])
def test_an_unfinished_command_is_wrong_use(words):
    found = invoke(*words)
    assert found.exit_code == (2 if words else found.exit_code)
    assert "Usage: moetrace" in found.output


def test_every_setting_has_an_option_of_its_kind():
    assert sorted(SETTINGS) == sorted(Settings.names())
    kinds = {field.name: str(field.type) for field in fields(Settings)}
    assert {name for name, (metavar, _) in SETTINGS.items() if not metavar} == {
        name for name, kind in kinds.items() if kind == "bool"
    }
    assert {name for name, (metavar, _) in SETTINGS.items() if metavar.endswith(",…")} == {
        name for name, kind in kinds.items() if kind.startswith("tuple")
    }
    text = invoke("run", "--help").stdout
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')} " in text


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (name, word)
        for name, (metavar, _) in SETTINGS.items()
        for word in metavar.split("|")
        if word.islower()
    ],
)
def test_every_word_of_the_help_is_taken(name, word):
    Settings.of(**{name: read(name, word)})


@pytest.mark.parametrize("name", Settings.names())
def test_a_setting_survives_its_text(name):
    value = getattr(Settings(), name)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    assert getattr(Settings.of(**{name: read(name, text)}), name) == value


@pytest.mark.parametrize("command", ["demo", "run", "report", "show"])
def test_help_has_examples(command):
    found = invoke(command, "--help")
    assert found.exit_code == 0
    assert f"\n    moetrace {command} " in found.stdout


def test_help_says_the_defaults_and_the_exit_codes():
    assert "[256; relaxed: 512; quick: 64]" in " ".join(invoke("run", "--help").stdout.split())
    assert "130 stopped with Ctrl-C" in invoke("--help").stdout


def hostile(kind: str, tmp_path: Path) -> Path:
    if kind == "a file":
        (tmp_path / "file").write_text("x")
        return tmp_path / "file"
    if kind == "below a file":
        (tmp_path / "file").write_text("x")
        return tmp_path / "file" / "o"
    if kind == "no folder can be made":
        return Path("/proc/moetrace/o")
    if kind == "a name too long":
        return tmp_path / ("o" * 300)
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "no folder can be made", "a name too long", "other files"]
)
def test_a_run_needs_a_folder_of_its_own(kind, facts, tmp_path):
    out = hostile(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = invoke(
        "run", MODEL, "--cases", facts, "--out", out, "--n", 8, "--preset", "quick", "--dtype", "float32"
    )
    assert found.exit_code == 1
    assert "Traceback" not in found.output
    assert last_line(found).startswith("moetrace: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["a file", "no folder can be made", "a name too long"])
def test_a_demo_needs_a_folder_of_its_own(kind, tmp_path):
    found = invoke("demo", "--out", hostile(kind, tmp_path), "--n", 4)
    assert found.exit_code == 1
    assert last_line(found).startswith("moetrace: ")


def test_a_folder_without_write_permission_is_seen_before_a_model_is_loaded(facts, tmp_path, monkeypatch):
    monkeypatch.setattr("moetrace.cli.inputs.os.access", lambda path, mode: False)  # root may write anywhere
    for words in (["run", "no/model", "--cases", facts], ["demo"]):
        found = invoke(*words, "--out", tmp_path / "o")
        assert found.exit_code == 1
        assert last_line(found) == (
            f"moetrace: {tmp_path} can't be written to (permission denied); give another folder as --out"
        )


def test_a_model_that_isn_t_there_is_one_line(facts, tmp_path):
    found = invoke("run", tmp_path / "model", "--cases", facts, "--out", tmp_path / "o")
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert "can't be loaded" in found.stderr


def raises(error: BaseException) -> Any:
    def work(*_: Any, **__: Any) -> None:
        raise error

    return work


def test_an_error_of_the_system_is_one_line(monkeypatch, tmp_path):
    full = raises(OSError(28, "No space left on device", "layers.csv"))
    monkeypatch.setattr("moetrace.protocol.layers.layer_protocol", full)
    found = invoke("demo", "--out", tmp_path / "d")
    assert found.exit_code == 1
    assert found.stderr == "moetrace: layers.csv: No space left on device\n"


def test_ctrl_c_says_the_exact_command(monkeypatch, tmp_path):
    monkeypatch.setattr("moetrace.protocol.layers.layer_protocol", raises(KeyboardInterrupt()))
    words = ["demo", "--out", str(tmp_path / "two words"), "--n", "12"]
    found = invoke(*words)
    assert found.exit_code == 130
    assert last_line(found).endswith(shlex.join(["moetrace", *words]))
    assert warnings.showwarning.__module__ != "moetrace.cli.console"


def test_ctrl_c_and_a_full_memory_say_how_a_run_goes_on(monkeypatch, facts, tmp_path):
    import torch

    words = ["run", MODEL, "--cases", str(facts), "--out", str(tmp_path / "o"), "--set", "scales=[1, 3]"]
    typed = shlex.join(["moetrace", *words])
    for error, code in (
        (KeyboardInterrupt(), 130),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"), 1),
        (MemoryError(), 1),
    ):
        monkeypatch.setattr("moetrace.protocol.run.run_protocol", raises(error))
        found = invoke(*words)
        assert found.exit_code == code
        assert last_line(found).endswith(f"to go on: {typed}")
        assert ("--batch-tokens" in last_line(found)) == (code == 1)


def test_an_error_that_nobody_expects_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("moetrace.protocol.layers.layer_protocol", raises(RuntimeError("a bug")))
    found = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "d")])
    assert isinstance(found.exception, RuntimeError)
    assert warnings.showwarning.__module__ != "moetrace.cli.console"


def test_ctrl_c_of_a_process_keeps_what_was_traced(tmp_path):
    words = ["demo", "--out", "d", "--n", "200"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits that it is ignored
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "moetrace", *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    parts = tmp_path / "d" / "discovery" / "parts"
    end = time.monotonic() + 300
    while not any(parts.glob("*.parquet")) and child.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "Traceback" not in errors
    told = errors.splitlines()[-1]
    assert told.endswith("goes on: python -m moetrace demo --out d --n 200")
    kept = {file: file.stat().st_mtime_ns for file in parts.glob("*.parquet")}
    assert kept
    again = shell(*shlex.split(told.partition("python -m moetrace ")[2]), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "rescue on 100 validation cases" in again.stdout


def test_the_module_and_its_version_need_no_core(tmp_path):
    found = shell("--version", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, f"moetrace {mt.__version__}\n")
    code = (
        "import sys; sys.argv[1:] = ['version']\n"
        "from moetrace.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'pandas', 'moetrace._core'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in found.stdout.splitlines()]
    assert names == ["moetrace", "python", "torch", "transformers", "numpy"]


def test_progress_is_lines_in_a_log_and_can_be_turned_off(monkeypatch, tmp_path):
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    found = invoke("demo", "--out", tmp_path / "a", "--n", 8)
    told = [line for line in found.stderr.splitlines() if line.startswith("usable cases: ")]
    assert told[-1].startswith("usable cases: 8 of 8 cases, ")
    assert told[-1].endswith("in all")
    assert "left" in told[0]
    assert "\r" not in found.stderr
    silent = invoke("demo", "--out", tmp_path / "b", "--n", 8, "--no-progress")
    assert silent.stderr == ""
