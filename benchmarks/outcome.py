"""From samples and rescue matrices to the lines of the layer table, its text and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.timing import Timed

TOLERANCE = 1e-4  # largest difference of a rescue between two methods that still passes for rounding
FORWARDS_GOAL = 1.6  # the sweep's cost over that of the clean and noised forwards, at most
FORWARDS_LABELS = {
    "separate": "clean and noised forwards alone, two batches",
    "together": "clean and noised forwards alone, one batch",
}


def summarise(
    timed: Mapping[str, Timed],
    rescues: Mapping[str, np.ndarray],
    labels: Mapping[str, str],
    goals: Mapping[str, float],
    yardstick: str,
) -> dict[str, Any]:
    """Lines in order: moetrace, the peers, the forwards alone; a method that isn't there keeps its line."""
    truths = {name: rescues[name] for name in dict.fromkeys([yardstick, "hf_loop"])}
    lines = []
    for key, label in {"moetrace": "moetrace", **labels, **FORWARDS_LABELS}.items():
        line: dict[str, Any] = {"key": key, "label": label, "installed": key in timed}
        if key in timed:
            line |= costs(timed[key])
        if key in rescues:
            line["max_difference"] = {
                name: float(np.abs(rescues[key] - truth).max()) for name, truth in truths.items()
            }
        if yardstick == "moetrace" and key in goals and key in timed:
            line |= {"goal": goals[key], "reached": line["ratio"] >= goals[key]}
        lines.append(line)
    over = sweep_over_forwards(timed) if yardstick == "moetrace" else None
    return {"yardstick": yardstick, "rows": lines, "sweep_over_forwards": over}


def costs(timed: Timed) -> dict[str, Any]:
    """Medians and every sample; the yardstick itself has no ratio."""
    ratios = timed.ratios
    return {
        "cases_timed": timed.cases,
        "seconds_per_case": timed.median_seconds,
        "ratio": timed.median_ratio if ratios else None,
        "ratio_range": [min(ratios), max(ratios)] if ratios else None,
        "samples": {"seconds_per_case": timed.seconds, "ratio": ratios},
    }


def sweep_over_forwards(timed: Mapping[str, Timed]) -> dict[str, Any]:
    """The sweep's cost over that of the faster of the two ways to run the forwards alone."""
    factor = max(1 / timed[key].median_ratio for key in FORWARDS_LABELS)
    return {"factor": factor, "goal": FORWARDS_GOAL, "reached": factor <= FORWARDS_GOAL}


def verdict(reached: bool) -> str:
    """How a goal is shown."""
    return "reached" if reached else "MISSED"


def cells(line: Mapping[str, Any], yardstick: str) -> list[str]:
    """One line of the printed table."""
    if not line["installed"]:
        return [line["label"], "not installed", "", "", "", ""]
    ratio, span, goal, difference = "1", "", "", ""
    if line["ratio"] is not None:
        ratio = f"{line['ratio']:.3g}"
        span = "{:.3g} to {:.3g}".format(*line["ratio_range"])
    if "goal" in line:
        goal = f">= {line['goal']:g}: {verdict(line['reached'])}"
    if "max_difference" in line and line["key"] != yardstick:
        difference = f"{line['max_difference'][yardstick]:.1e}"
    return [line["label"], f"{line['seconds_per_case']:.4f}", ratio, span, goal, difference]


def text(result: Mapping[str, Any]) -> str:
    """The table and the lines below it."""
    yardstick = result["yardstick"]
    head = ["method", "s / case", f"cost / {yardstick}", "range", "goal", f"max difference from {yardstick}"]
    below = [
        f"differences are of rescue, whose mean magnitude is {result['mean_rescue_magnitude']:.2e}",
        f"load of the machine at the start: {result['environment']['load']}",
    ]
    over = result["sweep_over_forwards"]
    if over is not None:
        goal = f"<= {over['goal']}: {verdict(over['reached'])}"
        below.append(f"whole sweep / clean and noised forwards alone: {over['factor']:.2f} ({goal})")
    return "\n".join([report.table(head, [cells(line, yardstick) for line in result["rows"]]), "", *below])


def require_agreement(result: Mapping[str, Any]) -> None:
    """Times of methods that disagree mean nothing: stop with an error that names the first such method."""
    for line in result["rows"]:
        for name, difference in line.get("max_difference", {}).items():
            if not difference <= TOLERANCE:  # also true of NaN
                raise SystemExit(
                    f"{line['label']}: rescue differs from {name} by {difference:.1e}, "
                    f"expected at most {TOLERANCE:.0e}; don't use these times"
                )
