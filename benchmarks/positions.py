"""What the whole map of layers and tokens costs, in token rows and in processor time.

```
python -m benchmarks.positions --cases 1 --repeats 2
```

The yardstick is the clean and noised forward that no method can avoid. A fork at position p of a prompt of n
tokens has n - p rows in every layer above its own; tokens before the subject are the same in both runs and
need none. Plain hooks run a whole prompt for each layer and token that isn't before the subject. Kept as
``benchmarks/results/positions.json``.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import moetrace as mt
from benchmarks import baselines, ours, report
from benchmarks.model import PROMPT_TOKENS, SUBJECT, build_cases, build_model, draw_noise, twin


def by_rows(model: Any, cases: list[Any], layers: int) -> dict[str, float]:
    """Token rows over those of the clean and the noised forward, counted layer by layer from the plan."""
    forwards = 2 * PROMPT_TOKENS * layers * len(cases)
    plan = mt.plan(model, cases, what="layers", position="all", timed=False)
    last = mt.plan(model, cases, what="layers", timed=False)
    every = range(layers - 1, -1, -4)[::-1]  # every fourth layer, the last included
    sparse = mt.plan(model, cases, what="layers", position="all", layers=list(every), timed=False)
    tokens = PROMPT_TOKENS - SUBJECT[0]
    plain = 1 + tokens * layers / 2
    return {
        "map": plan.rows / forwards,
        "every_fourth_layer": sparse.rows / forwards,
        "last": last.rows / forwards,
        "plain_hooks": plain,
    }


def processor_seconds(run: Callable[[], object]) -> float:
    """Processor time of a call: what else runs on the machine changes it little."""
    gc.collect()
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows, and processor time in turn with the forwards alone, on one thread."""
    machine = report.environment()
    model = build_model(options.layers)
    given = build_cases(options.cases)
    cases = ours.traced(given)
    noise = draw_noise(model, given)
    forwards = baselines.prepare_together(twin(model))

    def run_map() -> Any:
        return mt.trace_layers(model, cases, position="all", progress=False)

    found = run_map()
    last = mt.trace_layers(model, cases, progress=False)
    own = found.at(PROMPT_TOKENS - 1)
    forwards(given, noise)
    runs: dict[str, Callable[[], Any]] = {
        "forwards": lambda: forwards(given, noise),
        "map": run_map,
        "last": lambda: mt.trace_layers(model, cases, progress=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            seconds[name].append(processor_seconds(run) / len(cases))
    ratios = {
        name: [own / base for own, base in zip(seconds[name], seconds["forwards"], strict=True)]
        for name in ("map", "last")
    }
    return {
        "environment": machine,
        "settings": {key: value for key, value in vars(options).items() if key != "name"},
        "rows": by_rows(model, cases, options.layers),
        "time": {
            name: {"ratio": statistics.median(own), "range": [min(own), max(own)]}
            for name, own in ratios.items()
        },
        "processor_seconds_per_case": seconds,
        "last_token_apart": float(np.abs(own.effects - last.effects).max()),
    }


def main() -> None:
    """Measure, print, keep, and fail if the map's last token isn't the layer sweep."""
    parser = argparse.ArgumentParser(description="the whole map of layers and tokens")
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="positions", help="of the JSON file in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(result["rows"], {name: own["ratio"] for name, own in result["time"].items()})
    print(f"kept as {report.write(options.name, result).name}")
    if result["last_token_apart"] > 1e-4:
        raise SystemExit(f"the map's last token differs from the sweep by {result['last_token_apart']:.1e}")


if __name__ == "__main__":
    main()
