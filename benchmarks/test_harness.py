"""The harness on made-up costs: pairs, ratios, goals, growth, agreement and memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import outcome, report, timing
from benchmarks.memory import PeakMemory
from benchmarks.scaling import exponent
from benchmarks.timing import Timed, interleave


class Clock:
    """Time that passes only when a run says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def costing(clock: Clock, key: str, cases: int, seconds: list[float]) -> Timed:
    """A run whose n-th call takes ``seconds[n]``."""
    remaining = iter(seconds)

    def run(repetition: int) -> None:
        clock.now += next(remaining)

    return Timed(key, cases, run)


def test_a_ratio_is_taken_within_its_pair(clock: Clock) -> None:
    ours = costing(clock, "moetrace", 4, [4.0, 8.0, 40.0])  # the machine gets slower ...
    peer = costing(clock, "peer", 1, [10.0, 20.0, 100.0])  # ... for both
    interleave(ours, [peer], repeats=3)
    assert ours.seconds == [1.0, 2.0, 10.0]
    assert peer.ratios == [10.0, 10.0, 10.0]
    assert peer.median_seconds == 20.0


def summary(clock: Clock, difference: float = 0.0) -> dict[str, Any]:
    ours = costing(clock, "moetrace", 2, [2.0] * 3)
    others = [
        costing(clock, "hf_loop", 1, [50.0]),
        costing(clock, "separate", 2, [1.0]),
        costing(clock, "together", 2, [1.25]),
    ]
    interleave(ours, others, repeats=1)
    timed = {entry.key: entry for entry in [ours, *others]}
    rescues = {"moetrace": np.ones((2, 3)), "hf_loop": np.ones((2, 3)) + difference}
    labels = {"hf_loop": "(a)", "absent": "(x) absent"}
    result = outcome.summarise(timed, rescues, labels, {"hf_loop": 40, "absent": 40}, "moetrace")
    return result | {"mean_rescue_magnitude": 1.0, "environment": {"load": 0.0}}


def test_goals_are_judged_by_the_faster_forwards(clock: Clock) -> None:
    result = summary(clock)
    lines = {line["key"]: line for line in result["rows"]}
    assert lines["hf_loop"]["ratio"] == 50.0
    assert lines["hf_loop"]["reached"]
    assert result["sweep_over_forwards"] == {"factor": 2.0, "goal": 1.6, "reached": False}


def test_an_absent_peer_keeps_its_line(clock: Clock) -> None:
    lines = outcome.text(summary(clock)).splitlines()
    assert any("(x) absent" in line and "not installed" in line for line in lines)
    assert any("MISSED" in line for line in lines)


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_methods_that_disagree_are_an_error(clock: Clock, difference: float) -> None:
    outcome.require_agreement(summary(clock))
    with pytest.raises(SystemExit, match="moetrace: rescue differs from hf_loop"):
        outcome.require_agreement(summary(clock, difference))


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_growth_finds_the_exponent_of_a_power_law(power: float) -> None:
    assert exponent({count: 0.3 * count**power for count in (16, 32, 64, 128, 256)}) == pytest.approx(power)


def test_peak_memory_sees_what_is_freed_again() -> None:
    with PeakMemory() as peak:
        block = np.ones(8_000_000)  # 64 MB, touched
        del block
    assert 60e6 < peak.above < 90e6


def test_a_table_is_aligned() -> None:
    lines = report.table(["a", "bb"], [["long", "1"]]).splitlines()
    assert lines == ["| a    | bb |", "| ---- | -- |", "| long | 1  |"]
