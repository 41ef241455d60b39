"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

import moetrace as mt
from moetrace.cli import app


def test_demo_writes_table_and_picture(tmp_path):
    found = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "d"), "--n", "24"])
    assert found.exit_code == 0, found.output
    table = pd.read_csv(tmp_path / "d" / "layers.csv")
    assert table.layer.tolist() == list(range(8))
    assert set(table.n) == {12}
    assert (tmp_path / "d" / "layers.png").read_bytes().startswith(b"\x89PNG")
    discovery = mt.load(tmp_path / "d" / "discovery")
    assert f"L{discovery.best}" in found.output
    assert len(mt.CaseSet.load(tmp_path / "d" / "cases.json")) == 24


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


def test_run_is_the_whole_protocol_and_resumes(shared, tmp_path):
    folder = shared / "models" / "factmoe"
    known = set(json.loads((folder / "known_case_ids.json").read_text()))
    records = json.loads((shared / "data" / "counterfact.json").read_text())
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([r for r in records if r["case_id"] in known][:60]))
    out = tmp_path / "o"
    call = ["run", str(folder), "--cases", str(file), "--out", str(out), "--n", "20", "--dtype", "float32"]
    call += ["--preset", "quick", "--set", "min_active=0.25", "--set", "scales=[3.0]", "--set", "folds=2"]
    first = CliRunner().invoke(app, call)
    assert first.exit_code == 0, first.output
    report = mt.load(out)
    assert (report.settings.min_active, report.settings.scales) == (0.25, (3.0,))
    assert report.markdown(1) in first.output
    assert f"expert selected on 10 discovery cases: {report.star}" in first.output
    stamps = {p: p.stat().st_mtime_ns for p in sorted(out.rglob("*.parquet"))}
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 0, again.output
    assert {p: p.stat().st_mtime_ns for p in sorted(out.rglob("*.parquet"))} == stamps
    assert report.markdown(1) in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "no/such/model", "--cases", "no.json", "--out", "o"], "no.json"),
        (["demo", "--n", "0"], "n is 0"),
        (["run", "m", "--cases", "no.json", "--out", "o", "--set", "marign=1"], "did you mean 'margin'?"),
        (["run", "m", "--cases", "no.json", "--out", "o", "--preset", "papr"], "did you mean 'paper'?"),
    ],
)
def test_an_expected_error_is_one_line(words, message, tmp_path):
    command = [sys.executable, "-c", "from moetrace.cli import main; main()", *words]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert message in found.stderr.splitlines()[-1]
