"""More memory asked for than there is: refused before a trace, with what would do."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import find_anatomy
from moetrace.trace import memory
from moetrace.trace.memory import BatchRows, available_memory, batch_bytes, hidden_bytes, shown_bytes
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(12)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


def free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _device="cpu": count)


@pytest.mark.parametrize("call", [mt.trace_layers, mt.trace_experts, mt.select_cases])
def test_a_trace_that_doesn_t_fit_is_refused_before_it_runs(
    model: Any, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a selection that finds few
        call(model, CASES[:1])  # the engine's check is behind us
    free(monkeypatch, 200_000)
    with pytest.raises(
        errors.MemoryBudgetError, match=r"needs about .*B beside the model, and 200 kB are free"
    ):
        call(model, CASES, batch_tokens=10_000)


def test_the_budget_that_would_do_does(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mt.trace_layers(model, CASES, batch_tokens=10_000)
    free(monkeypatch, 600_000)
    with pytest.raises(errors.MemoryBudgetError) as caught:
        mt.trace_layers(model, CASES, batch_tokens=10_000)
    found = re.search(r"batch_tokens=(\d+) would do", str(caught.value))
    assert found is not None, caught.value
    fitting = mt.trace_layers(model, CASES, batch_tokens=int(found[1]))
    assert abs(fitting.effects - whole.effects).max() < 1e-4
    free(monkeypatch, 1000)
    with pytest.raises(errors.MemoryBudgetError, match="fewer cases"):
        mt.trace_layers(model, CASES)


def test_close_is_a_warning_and_unknown_is_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = find_anatomy(model)
    (case,) = CASES[:1]
    start, length = case.subject[0], len(case.input_ids)
    rows = start + 2 * (length - start) + 5
    needed = batch_bytes(anatomy, BatchRows(1, rows, 7)) + hidden_bytes(anatomy, rows)
    free(monkeypatch, int(needed / 0.9))
    with pytest.warns(errors.MemoryBudgetWarning, match="if it runs out"):
        mt.trace_layers(model, [case])
    free(monkeypatch, None)
    mt.trace_layers(model, [case])


def test_what_the_machine_says(tmp_path: Path) -> None:
    found = available_memory()
    assert found is None or 1 << 20 < found < 1 << 50
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 8 kB\nMemAvailable:    1234 kB\n")
    assert memory._of_machine(file) == 1234 * 1024
    assert memory._of_machine(tmp_path / "absent") is None


def test_limits_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("9:name=systemd:/\n4:cpu,memory:/outer/inner\n0::/user/run\n")
    first, second = tmp_path / "fs/memory/outer", tmp_path / "fs/user/run"
    for place in (first / "inner", second):
        place.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text("5000\n")
    (first / "memory.usage_in_bytes").write_text("4000\n")
    (first / "memory.stat").write_text("cache 9\ntotal_inactive_file 500\n")
    (first / "inner/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")  # none
    (first / "inner/memory.usage_in_bytes").write_text("4000\n")
    (second / "memory.max").write_text("3000\n")
    (second / "memory.current").write_text("1000\n")
    (second.parent / "memory.max").write_text("max\n")
    (second.parent / "memory.current").write_text("1000\n")
    assert sorted(memory._of_groups(tmp_path / "fs", own)) == [1500, 2000]
    assert list(memory._of_groups(tmp_path / "fs", tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 bytes"), (1500, "1.5 kB"), (4.9e9, "4.9 GB"), (61e9, "61.0 GB"), (3e14, "300 TB")],
)
def test_sizes_as_text(count: float, text: str) -> None:
    assert shown_bytes(count) == text
