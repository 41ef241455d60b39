"""Several processes trace as one does, to the last bit, and stop together."""

from __future__ import annotations

import inspect
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import moetrace as mt
from moetrace.counts import counting
from moetrace.errors import EngineError
from moetrace.ranks import ALONE, call, here, on_all_ranks
from moetrace.ranks.call import dealt, spans_ranks
from moetrace.ranks.start import share_of
from tests.engines.tiny import make_model
from tests.ranks.launch import launch
from tests.ranks.worker import BUDGET, CASES, digest_of, everything


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What one process finds."""
    model = make_model("qwen3_moe")
    with counting() as counted:
        one = mt.trace_layers(model, CASES, batch_tokens=100_000)
    fresh = make_model("qwen3_moe")
    return {"digests": everything(fresh), "one batch": digest_of(one), "rows": counted.rows}


def whole(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for rank in found:
        assert rank["exit"] == 0, rank["text"]
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_every_call_gives_every_rank_what_one_process_finds(size: int, expected: Any, tmp_path: Path) -> None:
    found = whole(launch(size, "equal", tmp_path))
    for rank in found:
        assert rank["digests"] == expected["digests"]
        assert rank["ranks"] == size
        assert rank["alone"] == expected["digests"]["layers"]
    first, *others = found
    # One bar, of all ranks' cases; one warning.
    counts = [done for done, _ in first["told"]]
    assert counts == sorted(set(counts))
    assert first["told"][-1] == [len(CASES), len(CASES)]
    assert [text.split()[0] for text in first["warned"]] == ["position", "layer"]
    for rank in others:
        assert rank["told"] == rank["warned"] == []
    # One batch: the other ranks run no row of it, and have the whole result.
    for rank in others:
        assert rank["one batch"] == expected["one batch"]
        assert rank["rows"] == 0 < first["rows"]


def test_a_model_in_parts_on_all_ranks_is_traced_as_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    first, second = whole(launch(2, "parts", tmp_path))
    assert first["engine"] == "tree"
    assert max(first["apart"]) < 1e-5
    assert (first["told"], second["told"]) == ([[len(CASES), len(CASES)]], [])
    assert first["digest"] == second["digest"] == first["saved"] == second["saved"]


def test_every_public_call_is_one_of_all_ranks() -> None:
    calls = [name for name in mt.__all__ if name.startswith(("trace_", "select_", "run_"))]
    assert len(calls) >= 7
    for name in (*calls, "layer_protocol"):
        assert on_all_ranks.__name__ in inspect.getsource(getattr(mt, name)).split("def ")[0], name


def test_what_goes_wrong_on_one_rank_stops_all_and_says_why(expected: Any, tmp_path: Path) -> None:
    first, second = whole(launch(2, "wrong", tmp_path))
    for name, told in {
        "position": "position is 'last' on rank 0 and 'subject_last' on rank 1",
        "noise": "noise is {'scale': 1.0, 'seed': 0, 'draws': 1} on rank 0 and {'scale': 2.0",
        "cases": "cases is ",
        "budget": "batch_tokens is 60 on rank 0 and 61 on rank 1",
        "model": "model is ",
        "function": "don't make the same calls",
        "selection": "n is 3 on rank 0 and 4 on rank 1",
    }.items():
        for rank in (first, second):
            assert rank[name].startswith("RankError: ranks "), name
            assert told in rank[name], name
    # What is wrong with the call itself is said as ever, on each.
    assert first["argument"] == second["argument"]
    assert first["argument"].startswith("LayerRangeError: ")
    assert first["folder"].startswith("RunFolderError: ")
    assert second["folder"].startswith("RankError: rank 0 failed with RunFolderError: ")
    # What goes wrong on one is said there as ever, and by name on the other.
    assert second["one argument"].startswith("LayerRangeError: ")
    assert first["one argument"].startswith("RankError: rank 1 failed with LayerRangeError: ")
    assert second["error"] == "RuntimeError: boom"
    assert first["error"].startswith("RankError: rank 1 failed with RuntimeError: boom; the other ranks")
    assert second["stop"] == "KeyboardInterrupt: "
    assert first["stop"].startswith("RankError: rank 1 was stopped (Ctrl-C); the other ranks stopped too")
    for rank in (first, second):
        assert rank["after"] == expected["digests"]["layers"]
        assert rank["hooks"] == 0


def test_a_lost_rank_is_named_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    model = make_model("qwen3_moe")
    trace = partial(mt.trace_layers, model, CASES, batch_tokens=BUDGET, engine="tree")
    with counting() as counted:
        undisturbed = trace(out=tmp_path / "whole")
    *alive, lost = launch(3, "killed", tmp_path)
    assert lost["exit"] == -9
    for rank in alive:
        assert rank["error"].startswith("RankError: rank 2 is lost"), rank
    run, copy = tmp_path / "run", tmp_path / "copy"
    parts = {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}
    assert len(parts) > 1  # of the lost rank too
    shutil.copytree(run, copy)
    with counting() as rest:
        assert digest_of(trace(out=copy)) == digest_of(undisturbed)
    assert rest.rows < counted.rows
    for rank in whole(launch(2, "resumed", tmp_path)):
        assert rank["digest"] == digest_of(undisturbed)
    # What a rank had finished wasn't traced again.
    assert parts.items() <= {path.name: path.stat().st_mtime_ns for path in (run / "parts").iterdir()}.items()
    assert digest_of(mt.load(run)) == digest_of(mt.load(copy)) == digest_of(undisturbed)


def test_batches_are_dealt_by_their_cases() -> None:
    batches = [[0] * size for size in (5, 4, 3, 2, 2, 1)]
    hands = dealt(batches, 2)
    assert hands[0][0] is batches[0]
    assert sorted(map(len, hands[0] + hands[1])) == sorted(map(len, batches))
    assert [sum(map(len, hand)) for hand in hands] == [9, 8]
    assert dealt(batches[:1], 3) == [[batches[0]], [], []]
    assert dealt([], 2) == [[], []]


def test_a_model_in_parts_is_every_ranks_own() -> None:
    model = make_model("llama")
    assert not spans_ranks(model)
    model._tp_size = 2
    assert spans_ranks(model)


def test_gpus_of_a_machine_are_dealt_out() -> None:
    eight = [str(gpu) for gpu in range(8)]
    assert [share_of(eight, rank, 4) for rank in range(4)] == [eight[i : i + 2] for i in (0, 2, 4, 6)]
    assert [share_of(["3"], rank, 2) for rank in range(2)] == [["3"], ["3"]]
    assert share_of([], 0, 2) == []


def test_a_second_thread_of_a_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "_several", lambda: True)
    with call._lock, pytest.raises(EngineError, match="one call after another"):
        mt.trace_layers(make_model("llama"), CASES)


def test_a_process_by_itself_is_alone() -> None:
    assert here() is ALONE
    assert ALONE.share("x", 1) == [1]
    assert torch.distributed.is_available()
