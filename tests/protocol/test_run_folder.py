"""A run's folder: resumed, refused, locked, killed, full."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError, EngineWarning, RunFolderError
from tests.protocol.conftest import SMALL

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
import moetrace as mt
from tests.protocol.conftest import SMALL
print("begin", flush=True)
mt.run_protocol(*mt.load_demo(), mt.demo_records()[:300], out=sys.argv[1], echo=lambda line: None, **SMALL)
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same_tables(report: Any, other: Any) -> None:
    for number, table in report.tables.items():
        pd.testing.assert_frame_equal(table, other.tables[number], check_exact=True)


@pytest.fixture
def copied(run: Any, tmp_path: Path) -> Path:
    """A folder of one's own with the finished run."""
    return Path(shutil.copytree(run[1], tmp_path / "run"))


def call(demo: Any, records: Any, out: Any, **changed: Any) -> Any:
    return mt.run_protocol(*demo, records, out=out, **{**SMALL, **changed})


def test_loading_gives_the_same_report(run: Any) -> None:
    report, out = run
    loaded = mt.load(out)
    same_tables(report, loaded)
    assert (loaded.layer, loaded.star, loaded.settings) == (report.layer, report.star, report.settings)
    assert loaded.texts == report.texts
    assert loaded.provenance == json.loads(json.dumps(report.provenance))
    assert {name: list(cases) for name, cases in loaded.cases.items()} == {
        name: list(cases) for name, cases in report.cases.items()
    }
    assert loaded.counts == report.counts
    assert set(loaded.traces) == set(report.traces)
    for name, trace in report.traces.items():
        pd.testing.assert_frame_equal(loaded.traces[name].rows, trace.rows, check_exact=True)
    assert set(loaded.beyond) == {"map", "shapley", "clustered", "floor", "direct", "stability"}
    assert loaded.notes == report.notes


def test_a_finished_run_computes_nothing_again(demo: Any, records: Any, copied: Path, run: Any) -> None:
    before = files_of(copied)
    from moetrace.counts import counting

    with counting() as counted:
        again = call(demo, records, copied)
    assert counted.forwards == 0
    same_tables(again, run[0])
    after = files_of(copied)
    before.pop(".lock")
    after.pop(".lock")
    assert after == before


def test_without_a_folder_the_numbers_are_the_same(demo: Any, records: Any, run: Any) -> None:
    report = call(demo, records, None)
    same_tables(report, run[0])
    assert report.folder is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"margin": 0.5}, r"settings\.margin is 1.0 there and 0.5 here"),
        ({"n": 30}, r"settings\.n is 40 there and 30 here"),
        ({"engine": "reference"}, r"settings\.engine"),
        ({"noise": 2.0}, r"settings\.noise_scale"),
    ],
)
def test_another_run_changes_nothing(
    demo: Any, records: Any, copied: Path, changed: dict[str, Any], told: str
) -> None:
    before = files_of(copied)
    with pytest.raises(RunFolderError, match=told):
        call(demo, records, copied, **changed)
    assert files_of(copied) == before


def test_another_model_attention_or_other_records_change_nothing(records: Any, copied: Path) -> None:
    before = files_of(copied)
    model, tokenizer = mt.load_demo()
    with pytest.raises(RunFolderError, match=r"cases\.count is \d+ there and \d+ here"):
        call((model, tokenizer), records[:200], copied)
    model.set_attn_implementation("eager")
    with pytest.raises(RunFolderError, match="attention is 'sdpa' there and 'eager' here"):
        call((model, tokenizer), records, copied)
    model, tokenizer = mt.load_demo()
    model.model.embed_tokens.weight.data[0] += 1.0
    with pytest.raises(RunFolderError, match=r"model\.weights"):
        call((model, tokenizer), records, copied)
    assert files_of(copied) == before


def edit(path: Path, change: Any) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_what_was_edited_is_refused_by_name(demo: Any, records: Any, copied: Path) -> None:
    for name, change, told in (
        ("config.json", lambda found: {**found, "format": 99}, "format is 99"),
        ("config.json", lambda found: {**found, "moetrace": "9"}, r"config\.json isn't what was written"),
        ("stages.json", lambda found: {**found, "more": 1}, r"stages\.json isn't what was written"),
        ("config.json", lambda _: [1], r"config\.json holds a JSON list"),
    ):
        place = copied / name
        kept = place.read_bytes()
        edit(place, change)
        for read in (mt.load, lambda out: call(demo, records, out)):
            with pytest.raises(RunFolderError, match=told):
                read(copied)
        place.write_bytes(kept)
    for name in ("config.json", "stages.json", "usable.json", "texts.json", "traces/layers/rows.parquet"):
        place = copied / name
        kept = place.read_bytes()
        place.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(RunFolderError, match=Path(name).name):
            mt.load(copied)
        place.write_bytes(kept)
    mt.load(copied)


def test_of_another_version(demo: Any, records: Any, copied: Path) -> None:
    from moetrace.protocol.folder import read_sealed, write_sealed

    config = read_sealed(copied / "config.json")
    write_sealed(copied / "config.json", {**config, "moetrace": "0.0.9"})
    with pytest.raises(RunFolderError, match=r"moetrace is '0\.0\.9' there and"):
        call(demo, records, copied)
    unknown = {**config, "settings": {**config["settings"], "future": 1}}
    write_sealed(copied / "config.json", unknown)
    with pytest.raises(RunFolderError, match=r"of another version of moetrace .*future"):
        mt.load(copied)


def test_a_folder_with_other_files_and_a_file(demo: Any, records: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(RunFolderError, match=r"isn't empty \(thesis\.tex\) and holds no config\.json"):
        call(demo, records, tmp_path / "mine")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"mine"}
    for out in (tmp_path / "mine" / "thesis.tex", tmp_path / "mine" / "thesis.tex" / "below"):
        with pytest.raises(ArgumentError, match="is a file; expected a folder"):
            call(demo, records, out)
    for out in (3, "", "a\0b"):
        with pytest.raises(ArgumentError, match="out is"):
            call(demo, records, out)
    with pytest.raises(RunFolderError, match=r"/proc.*can't be written"):
        call(demo, records, "/proc/moetrace")


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(demo: Any, records: Any, copied: Path) -> None:
    code = (
        "import fcntl, os, sys, time\n"
        "handle = os.open(sys.argv[1], os.O_RDWR)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "os.truncate(handle, 0)\n"
        "os.write(handle, str(os.getpid()).encode())\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(copied / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    other.stdout.readline()
    try:
        with pytest.raises(RunFolderError, match=rf"another process \(id {other.pid}\) writes to"):
            call(demo, records, copied)
    finally:
        other.kill()
        other.wait()
    call(demo, records, copied)


def test_a_disk_without_room(demo: Any, records: Any, tmp_path: Path, run: Any) -> None:
    """A limit on the size of files does what a full disk does; what was written stays readable."""
    code = SCRIPT.format(root=str(ROOT)) .replace(
        "print(", "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\nprint(", 1
    )  # fmt: skip
    code = code.replace("mt.run_protocol(", "try:\n    mt.run_protocol(") + (
        "except mt.errors.RunFolderError as failure:\n    print(failure)\n    sys.exit(3)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "full")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 3, found.stderr
    last = found.stdout.splitlines()[-1]
    assert "can't be written" in last
    assert "again" in last
    assert not list((tmp_path / "full").rglob("*.part"))
    same_tables(call(demo, records, tmp_path / "full"), run[0])


def killed(out: Path, delay: float) -> bool:
    """Start the run, and end it at once after some time; whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT)), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_and_resume(out: Path, run: Any, kills: int, seed: int) -> None:
    """The tables of a run that was killed ``kills`` times at random moments are those of one that wasn't."""
    chance = random.Random(seed)
    count = 0
    for _ in range(4 * kills):
        count += killed(out, chance.uniform(0.5, 2.5))
        if count == kills or (out / "texts.json").exists():
            break
        time.sleep(0.01)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=str(ROOT)), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    same_tables(mt.load(out), run[0])
    assert count


def test_killed_and_resumed(tmp_path: Path, run: Any) -> None:
    kill_and_resume(tmp_path / "run", run, kills=4, seed=1)


@pytest.mark.slow
def test_killed_at_twenty_moments(tmp_path: Path, run: Any) -> None:
    for seed in range(5):
        kill_and_resume(tmp_path / f"run{seed}", run, kills=4, seed=seed)


def test_killed_at_each_stage(demo: Any, records: Any, tmp_path: Path, run: Any, monkeypatch: Any) -> None:
    """The same without chance: the run ends after each write of its stages, and at each finished batch."""
    from moetrace.trace import run_folder

    class Killed(BaseException):
        pass

    appended = run_folder.RunFolder.append
    moments = [0]

    def append(self: Any, parts: Any) -> None:
        appended(self, parts)
        moments[0] += 1
        if moments[0] % 3 == 0:
            raise Killed

    monkeypatch.setattr(run_folder.RunFolder, "append", append)
    ended = 0
    for _ in range(200):
        try:
            report = call(demo, records, tmp_path / "run")
            break
        except Killed:
            ended += 1
    assert ended > 5
    same_tables(report, run[0])
    assert not list((tmp_path / "run").rglob("parts"))


def test_an_unfinished_run_says_so(demo: Any, records: Any, tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("expert selected"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mt.run_protocol(*demo, records, out=tmp_path / "run", echo=stop, **SMALL)
    with pytest.raises(RunFolderError, match=r"isn't finished \(stages done: usable, layers, experts_disc"):
        mt.load(tmp_path / "run")


def test_a_trace_folder_still_loads(demo: Any, tmp_path: Path, run: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        trace = mt.trace_layers(demo[0], run[0].cases["usable"][:4], out=tmp_path / "trace")
    assert mt.load(tmp_path / "trace").rows.equals(trace.rows)
