"""The tables of README.md hold what is in results/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf-8")


def result(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def layer_rows() -> Iterator[str]:
    for row in result("layers")["rows"]:
        if row["installed"] and "moetrace" in row.get("max_difference", {}) and row["ratio"]:
            goal = f">= {row['goal']} " if "goal" in row else ""
            low, high = row["ratio_range"]
            yield (
                f"| {row['label']} | {row['ratio']:.1f} | {low:.1f} to {high:.1f} | {goal}| "
                f"{row['max_difference']['moetrace']:.1e} |"
            )


def figures() -> Iterator[tuple[str, str]]:
    """Where a row begins, and the figure that follows."""
    experts, scaling, grid = result("experts"), result("scaling"), result("stats")["expert grid"]
    yield "whole sweep over the clean", f"{result('layers')['sweep_over_forwards']['factor']:.2f}"
    yield "sweep and every clean-active expert", f"{experts['full']['factor']:.2f}"
    yield "one forward per patch over that", f"{experts['one_forward_per_patch']['ratio']:.0f}"
    for layer, found in experts["coalitions"].items():
        yield f"255 coalitions of layer {layer} of 24", f"{found['factor']:.2f}"
    positions = result("positions")
    yield "layer x token map over the same, token rows", f"{positions['rows']['map']:.1f}"
    yield "layer x token map over the same, processor time", f"{positions['time']['map']['ratio']:.1f}"
    yield "two processes over one", f"{result('ranks')['speedup']:.2f}"
    sweeps = [found["sweeps"] for found in result("protocol")["protocol"].values()]
    yield "the paper's strict protocol", f"{sweeps[0]:.2f}"
    yield "the same with Shapley values", f"{sweeps[1]:.2f}"
    yield "the same with the experts of every layer", f"{sweeps[2]:.2f}"
    yield "growth from 16 to 256", f"{scaling['growth']['exponent']:.2f}"
    peak = result("peak")
    yield "part of the bf16 matrix peak: layer sweep", f"{peak['layers']['sweep']['part']:.2f}"
    yield "part of the bf16 matrix peak: every expert", f"{peak['experts']['sweep']['part']:.2f}"
    yield "memory above the model's own", f"{scaling['memory']['peak_above_model_mb']:.0f} MB"
    yield "full grid (128 x 6,144): step-down max-T", f"{grid['max_t'] / grid['gemm']:.2f}"
    yield "full grid: BCa bootstrap over the bare", f"{grid['bootstrap'] / grid['gemm']:.2f}"
    yield "full grid: scipy's BCa over ours", f"{grid['scipy_bca'] / grid['bootstrap']:.1f}"
    yield "full grid: vectorised numpy over ours, max-T", f"{grid['numpy_max_t'] / grid['max_t']:.1f}"
    yield "full grid: vectorised numpy over ours, BCa", f"{grid['numpy_bootstrap'] / grid['bootstrap']:.1f}"


def streaming_rows() -> Iterator[str]:
    found = result("streaming")
    disk, product = found["disk"], found["products"]["rows_24"]
    for own in found["traces"]:
        bound = max(own["bytes_read"] / disk, own["flops"] / product)
        yield (
            f"| {own['what']}, {own['cases']} cases | {own['seconds']:.0f} | {own['whole']['seconds']:.0f} | "
            f"{own['read_over_checkpoint']:.3f} | {own['peak_bytes'] / 1e9:.2f} | {own['gflops']:.0f} | "
            f"{own['seconds'] / bound:.2f} |"
        )


def hybrid_rows() -> Iterator[str]:
    for own in result("hybrids")["rows"]:
        low, high = own["range"]
        yield (
            f"| {own['family']} | {own['hooks_over_moetrace']:.1f} | {low:.1f} to {high:.1f} | "
            f"{own['moetrace_over_forwards']:.1f} | {own['max_difference']:.1e} |"
        )


def capture_rows() -> Iterator[str]:
    for name, own in result("capture")["ways"].items():
        yield f"| {name} | {own['ratio']:.3f} |"


def screen_rows() -> Iterator[str]:
    found = result("screen")
    named = {
        "screen": "estimates, last",
        "exact": "exact sweep, last",
        "screen_all_tokens": "estimates, every",
    }
    for name, head in named.items():
        yield f"| {head} token | {found['cost'][name]:.1f} |"
    yield f"| exact sweep, every token (extrapolated) | {found['cost']['exact_all_tokens']:.1f} |"
    for own in found["quality"].values():
        figures = [own["spearman_experts"], own["spearman_cases"], own["recall"]]
        yield f" | {own['cases']} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |"


@pytest.mark.parametrize(
    "row", [*layer_rows(), *streaming_rows(), *hybrid_rows(), *capture_rows(), *screen_rows()]
)
def test_tables(row: str) -> None:
    assert row in README


@pytest.mark.parametrize(("head", "figure"), list(figures()))
def test_figure(head: str, figure: str) -> None:
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {head}"))
    assert line.split("|")[2].strip() == figure
