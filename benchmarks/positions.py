"""What the whole map of layers and tokens costs, by rows and by the clock.

```
python -m benchmarks.positions --cases 4 --repeats 3
```

The yardstick is the clean and noised forward that no method can avoid. A fork at position p of a prompt of n
tokens has n - p rows in every layer above its own; tokens before the subject are the same in both runs and
need none. Plain hooks run a whole prompt for each layer and token that isn't before the subject. Kept as
``benchmarks/results/positions.json``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import moetrace as mt
from benchmarks import baselines, ours, report
from benchmarks.model import PROMPT_TOKENS, SUBJECT, build_cases, build_model, draw_noise, twin
from benchmarks.timing import Timed, interleave


def by_rows(model: Any, cases: list[Any], layers: int) -> dict[str, float]:
    """Token rows over those of the clean and the noised forward, counted layer by layer from the plan."""
    forwards = 2 * PROMPT_TOKENS * layers * len(cases)
    plan = mt.plan(model, cases, what="layers", position="all", timed=False)
    last = mt.plan(model, cases, what="layers", timed=False)
    tokens = PROMPT_TOKENS - SUBJECT[0]
    plain = 1 + tokens * layers / 2
    return {"map": plan.rows / forwards, "last": last.rows / forwards, "plain_hooks": plain}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows, and times interleaved with the forwards alone."""
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
    timed = {
        "forwards": Timed("forwards", len(cases), lambda _: forwards(given, noise)),
        "map": Timed("map", len(cases), lambda _: run_map()),
        "last": Timed("last", len(cases), lambda _: mt.trace_layers(model, cases, progress=False)),
    }
    interleave(timed["forwards"], [timed["map"], timed["last"]], options.repeats)
    return {
        "environment": machine,
        "settings": {key: value for key, value in vars(options).items() if key != "name"},
        "rows": by_rows(model, cases, options.layers),
        "time": {
            name: {
                "ratio": own_time.median_ratio,
                "range": [min(own_time.ratios), max(own_time.ratios)],
                "seconds_per_case": own_time.median_seconds,
                "samples": own_time.seconds,
            }
            for name, own_time in timed.items()
            if own_time.ratios
        },
        "forward_seconds_per_case": timed["forwards"].median_seconds,
        "last_token_apart": float(np.abs(own.effects - last.effects).max()),
    }


def main() -> None:
    """Measure, print, keep, and fail if the map's last token isn't the layer sweep."""
    parser = argparse.ArgumentParser(description="the whole map of layers and tokens")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
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
