"""What the strict protocol costs, in its own layer sweeps: the paper's stages, and those beyond it.

```
python -m benchmarks.protocol --cases 96
```

Processor time, for it is one process and the machine may be shared. Cases are random, and all of those that
are scanned count as usable: with fewer usable ones the scan costs more, and every other stage the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import moetrace as mt
from benchmarks import report
from benchmarks.model import build_cases, build_model

BEYOND: dict[str, dict[str, bool]] = {
    "paper": {"shapley": False, "expert_map": False},
    "with Shapley values": {"shapley": True, "expert_map": False},
    "with the experts of every layer": {"shapley": True, "expert_map": True},
}


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure(cases: int, repeats: int) -> dict[str, Any]:
    """Least of some repetitions of each, in seconds and in layer sweeps."""
    model = build_model()
    own = mt.CaseSet(
        mt.Case(c.input_ids, c.subject, c.true_id, c.foil_id, c.case_id, f"P{c.case_id % 7}")
        for c in build_cases(cases)
    )
    usable = {"n": cases, "margin": -1e9, "drop": -1e9, "min_active": 1, "relaxed": False}

    def protocol(name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mt.run_protocol(model, None, own, out=Path(folder) / "run", **usable, **BEYOND[name])

    protocol("with the experts of every layer")  # what is found out about a model once
    sweep = min(seconds(lambda: mt.trace_layers(model, own)) for _ in range(repeats))
    found = {name: min(seconds(partial(protocol, name)) for _ in range(repeats)) for name in BEYOND}
    return {
        "cases": cases,
        "layer_sweep_seconds": sweep,
        "protocol": {name: {"seconds": took, "sweeps": took / sweep} for name, took in found.items()},
    }


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="the protocol in its own layer sweeps")
    parser.add_argument("--cases", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="protocol", help="of the JSON file in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"environment": report.environment(), **measure(options.cases, options.repeats)}
    for name, own in result["protocol"].items():
        print(f"{name}: {own['seconds']:.1f} s, {own['sweeps']:.2f} layer sweeps")
    print(f"kept as {report.write(options.name, result).name}")


if __name__ == "__main__":
    main()
