"""``torchrun --nproc-per-node 2 -m moetrace run``: as one process, but faster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest

import moetrace as mt
from tests.ranks.launch import ROOT, environment, free_port, torchrun

MODEL = str(resources.files("moetrace.demo") / "data")
SETTINGS = (
    "--preset", "quick", "--dtype", "float32", "--batch-tokens", "300", "--no-shapley", "--n-flips", "100",
    "--set", "n=12", "--set", "n_resamples=100",
)  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("records") / "facts.json"
    file.write_text(json.dumps(mt.demo_records()[:40]))
    return file


def one_process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moetrace", *words]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def tables(folder: Path) -> dict[str, bytes]:
    """Of a finished run, byte by byte."""
    found = {path.name: path.read_bytes() for path in (folder / "tables").iterdir()}
    assert len(found) > 20
    return found


def test_two_ranks_end_what_three_began_and_find_what_one_process_does(facts: Path, tmp_path: Path) -> None:
    words = ("run", MODEL, "--cases", str(facts), *SETTINGS)
    one = one_process(*words, "--out", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    killed(3, *words, "--out", "two", cwd=tmp_path)
    assert not (tmp_path / "two" / "tables").exists()
    two = torchrun(2, *words, "--out", "two", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert two.stdout == one.stdout.replace("one/", "two/")  # said by one rank
    assert tables(tmp_path / "two") == tables(tmp_path / "one")
    kept = {path.name for path in (tmp_path / "two" / "traces").iterdir()}
    assert kept == {path.name for path in (tmp_path / "one" / "traces").iterdir()}


def killed(size: int, *words: str, cwd: Path) -> None:
    """A run whose last rank is killed once the run has begun to trace."""
    port = str(free_port())
    ranks = []
    for rank in range(size):
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-m", "moetrace", *words]
        ranks.append(subprocess.Popen(command, cwd=cwd, env=environment(**place), stderr=subprocess.PIPE))
    folder = cwd / words[-1] / "traces" / "layers"
    try:
        while not folder.exists():
            assert ranks[-1].poll() is None
            time.sleep(0.01)
        ranks[-1].send_signal(signal.SIGKILL)
        time.sleep(0.3)
    finally:
        for process in ranks:  # as torchrun does
            process.kill()
            process.communicate()


def test_errors_are_said_once_and_exit_codes_are_right(facts: Path, tmp_path: Path) -> None:
    missing = torchrun(2, "run", "./nowhere", "--cases", str(facts), "--out", "run", cwd=tmp_path)
    assert missing.returncode == 1
    assert [line[:20] for line in missing.stderr.splitlines() if line.startswith("moetrace: ")] == [
        "moetrace: './nowhere"
    ]
    assert "exitcode  : 1 " in missing.stderr
    unknown = torchrun(
        2, "run", MODEL, "--cases", str(facts), "--out", "run", "--sharpness", "3", cwd=tmp_path
    )
    assert unknown.stderr.count("No such option") == 1
    assert "exitcode  : 2 " in unknown.stderr


def test_processes_that_cannot_be_joined() -> None:
    words = ["run", MODEL, "--cases", "facts.json", "--out", "run"]
    command = [sys.executable, "-m", "moetrace", *words]
    own = environment(WORLD_SIZE="2", RANK="0")
    own.pop("MASTER_ADDR", None)
    own.pop("MASTER_PORT", None)
    found = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "MASTER_ADDR, MASTER_PORT are not set" in found.stderr
