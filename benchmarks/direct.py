"""What direct effects cost: layer and expert sweeps with them against the same without.

```
python -m benchmarks.direct --cases 16 --repeats 9
```

Model and cases of the other tables. Prints the median of the ratios of neighbouring measurements and keeps it
as ``benchmarks/results/direct.json``.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from benchmarks import report
from benchmarks.experts import as_moetrace, every_patch
from benchmarks.model import build_cases, build_model
from benchmarks.timing import Timed, interleave
from moetrace.engines.job import Patch, Sweep
from moetrace.models.anatomy import find_anatomy
from moetrace.trace.options import checked
from moetrace.trace.session import trace

GOALS = {"layers": 1.03, "experts": 1.05}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios with over without direct effects, of layers and of all experts."""
    model = build_model(options.layers)
    cases = as_moetrace(build_cases(options.cases))
    top_k = model.config.num_experts_per_tok
    every = every_patch(options.layers, top_k)
    common = checked({"progress": False}, trace)
    what = {
        "layers": {"patches": every["patches"]},
        "experts": {
            "patches": [Patch.null(0)],
            "sweeps": [Sweep(layer, top_k) for layer in range(options.layers)],
        },
    }
    found = {}
    for name, jobs in what.items():
        run = partial(trace, model, cases, anatomy=find_anatomy(model), **jobs, **common)
        timed = {
            direct: Timed(name, len(cases), lambda _, call=run, direct=direct: call(direct=direct))
            for direct in (False, True)
        }
        for own in timed.values():
            own.run(0)
        interleave(timed[False], [timed[True]], options.repeats)
        found[name] = {
            "ratio": timed[True].median_ratio,
            "samples": timed[True].ratios,
            "seconds_per_case": timed[True].median_seconds,
            "seconds_per_case_without": timed[False].median_seconds,
        }
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="what direct effects cost")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = report.environment()
    found = measure(options)
    rows = [[name, f"{own['ratio']:.3f}", f"at most {GOALS[name]}"] for name, own in found.items()]
    print(report.table(["sweep", "with over without direct effects", "goal"], rows))
    content = {"environment": machine, "settings": vars(options), "goals": GOALS, **found}
    print(f"kept as {report.write('direct', content).name}")


if __name__ == "__main__":
    main()
