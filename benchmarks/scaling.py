"""How the sweeps' cost grows with cases and with layers, and the layer sweep's peak memory at 256 cases.

```
python -m benchmarks.scaling --repeats 3
```

prints tables and keeps them as ``benchmarks/results/scaling.json``. Memory is measured by
``benchmarks.memory`` in a process of its own. The exponents are of power laws: of seconds over cases or
layers, and beside it of the token rows, summed over layers, that the passes hold.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours, report
from benchmarks.model import PROMPT_TOKENS, SUBJECT, build_cases, build_model
from benchmarks.outcome import verdict
from benchmarks.timing import Timed, seconds_per_case

MEMORY_GOAL_MB = 500
TOP_K = 8
LINEAR_EXPONENT = 1.05  # of the power law fitted to the seconds; 1 is linear


def exponent(seconds: Mapping[int, float]) -> float:
    """Slope of log(seconds) over log(cases), by least squares: 1 where cost is linear, 2 where quadratic."""
    x = [math.log(count) for count in seconds]
    y = [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def peak_memory(cases: int, options: argparse.Namespace) -> dict[str, Any]:
    """The JSON of ``benchmarks.memory``, from a fresh process."""
    arguments = ["--cases", str(cases), "--layers", str(options.layers), "--threads", str(options.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    memory: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return memory | {"goal_mb": MEMORY_GOAL_MB, "reached": memory["peak_above_model_mb"] < MEMORY_GOAL_MB}


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds per case at each count, the counts interleaved."""
    model, cases = build_model(options.layers), build_cases(max(options.counts))
    timed = [
        Timed(str(count), count, lambda repetition, count=count: ours.rescue(model, cases[:count]))
        for count in sorted(options.counts)
    ]
    ours.rescue(model, cases[: min(options.counts)])
    for repetition in range(options.repeats):
        for entry in timed:
            entry.seconds.append(seconds_per_case(entry, repetition))
    power = exponent({entry.cases: entry.median_seconds * entry.cases for entry in timed})
    return {
        "seconds_per_case": {entry.key: entry.median_seconds for entry in timed},
        "samples": {entry.key: entry.seconds for entry in timed},
        "exponent": power,
        "goal_exponent": LINEAR_EXPONENT,
        "reached": power <= LINEAR_EXPONENT,
    }


def layer_growth(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both sweeps at top-8 in models of more and more layers, the models interleaved."""
    cases = build_cases(options.layer_cases)
    models = {layers: build_model(layers, top_k=TOP_K) for layers in sorted(options.layer_counts)}
    sweeps = {"layers": ours.rescue, "experts": ours.every_expert}
    result: dict[str, Any] = {}
    for name, run in sweeps.items():
        timed = {
            layers: Timed(str(layers), len(cases), lambda _, model=model, run=run: run(model, cases))
            for layers, model in models.items()
        }
        for layers in models:
            timed[layers].run(0)
        for repetition in range(options.repeats):
            for entry in timed.values():
                entry.seconds.append(seconds_per_case(entry, repetition))
        seconds = {layers: entry.median_seconds * len(cases) for layers, entry in timed.items()}
        rows = {layers: row_layers(name, layers) for layers in models}
        result[name] = {
            "seconds": seconds,
            "samples": {layers: entry.seconds for layers, entry in timed.items()},
            "exponent": exponent(seconds),
            "row_exponent": exponent(rows),
        }
    return result


def row_layers(sweep: str, layers: int) -> float:
    """Token rows of a case, summed over the layers: both prompts, and each fork from its layer on."""
    start, _ = SUBJECT
    prompts = start + 2 * (PROMPT_TOKENS - start)
    forks = (1 if sweep == "layers" else TOP_K) * layers * (layers - 1) / 2
    return prompts * layers + forks


def text(result: Mapping[str, Any]) -> str:
    """The table and the lines below it."""
    cost, memory = result["growth"], result["memory"]
    first = next(iter(cost["seconds_per_case"].values()))
    rows = [
        [count, f"{value * int(count):.3f}", f"{value:.4f}", f"{value / first:.3f}"]
        for count, value in cost["seconds_per_case"].items()
    ]
    table = report.table(["cases", "s", "s / case", "s / case over the first line's"], rows)
    above, goal = memory["peak_above_model_mb"], memory["goal_mb"]
    linear = f"<= {cost['goal_exponent']}: {verdict(cost['reached'])}"
    return "\n".join(
        [
            table,
            "",
            *(
                f"{name} sweep, top-{TOP_K}: cost grows as layers^{found['exponent']:.2f}, its token rows as "
                f"layers^{found['row_exponent']:.2f}"
                for name, found in result["layer_growth"].items()
            ),
            f"cost grows as cases^{cost['exponent']:.3f} ({linear})",
            f"peak at {memory['cases']} cases, above the model's own {memory['model_weights_mb']:.0f} MB: "
            f"{above:.0f} MB (< {goal}: {verdict(memory['reached'])}; {memory['method']})",
            f"load of the machine at the start: {result['environment']['load']}",
        ]
    )


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="cost and memory of the sweep as cases grow")
    parser.add_argument("--counts", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--memory-cases", type=int, default=256)
    parser.add_argument("--layer-counts", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--layer-cases", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="scaling", help="of the JSON file in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "environment": report.environment(),
        "settings": {key: value for key, value in vars(options).items() if key != "name"},
        "memory": peak_memory(options.memory_cases, options),
        "growth": growth(options),
        "layer_growth": layer_growth(options),
    }
    print(text(result))
    print(f"kept as {report.write(options.name, result).name}")


if __name__ == "__main__":
    main()
