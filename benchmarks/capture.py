"""What capture and patch cost a forward of the user's own: the same forward with them over without.

```
python -m benchmarks.capture --repeats 40
```

Model and prompts of the other tables, one batch of them, every layer. Rounds of one plain forward and one in
each way; prints the ratios of lower quartiles, which other work on the machine moves least, and keeps them as
``benchmarks/results/capture.json``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import moetrace as mt
from benchmarks import report
from benchmarks.model import build_cases, build_model
from benchmarks.timing import Timed, seconds_per_case

GOAL = 1.05
LIGHT = ("block", "routing", "router_logits", "residual", "attention")  # all kinds but contributions


def ways(model: torch.nn.Module) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """By name what a forward is run in; of heavy ones much is copied, and GOAL doesn't hold."""
    expert, width = mt.Expert(3, 17), model.config.hidden_size
    return {
        "capture: block outputs": lambda: mt.capture(model, what=("block",)),
        "capture: block outputs and routing": lambda: mt.capture(model, what=("block", "routing")),
        "capture: router logits": lambda: mt.capture(model, what=("router_logits",)),
        "capture: all but contributions, last token": lambda: mt.capture(model, what=LIGHT, tokens=[-1]),
        "patch: one block": lambda: mt.patch(model, {mt.Block(3): torch.zeros(width)}, tokens=[-1]),
        "patch: one expert, last token": lambda: mt.patch(model, {expert: mt.Ablate("zero")}, tokens=[-1]),
        "patch: one expert, every token": lambda: mt.patch(model, {expert: mt.Ablate("zero")}),
        "patch: one router's logits": lambda: mt.patch(model, {mt.Router(3): lambda now: now + 1.0}),
        "capture: all but contributions, every token (heavy)": lambda: mt.capture(model, what=LIGHT),
        "capture: contributions, last token (heavy)": lambda: mt.capture(
            model, what=("contributions",), tokens=[-1]
        ),
        "capture: contributions, every token (heavy)": lambda: mt.capture(model, what=("contributions",)),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios with over without, by name."""
    model = build_model(options.layers)
    ids = torch.tensor([case.input_ids for case in build_cases(options.cases)])

    def forward(way: Callable[[], AbstractContextManager[Any]]) -> Callable[[int], None]:
        def run(_: int) -> None:
            with torch.no_grad(), way():
                model(input_ids=ids, use_cache=False)

        return run

    plain = Timed("plain", len(ids), forward(nullcontext))
    others = [Timed(name, len(ids), forward(way)) for name, way in ways(model).items()]
    for own in (plain, *others):
        own.run(0)
    for repetition in range(options.repeats):
        for own in (plain, *others):
            own.seconds.append(seconds_per_case(own, repetition))
    base = lower_quartile(plain)
    return {own.key: {"ratio": lower_quartile(own) / base, "seconds": own.seconds} for own in others}


def lower_quartile(own: Timed) -> float:
    """Of its seconds."""
    return statistics.quantiles(own.seconds, n=4)[0]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="what capture and patch cost a forward")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = report.environment()
    found = measure(options)
    rows = [[name, f"{own['ratio']:.3f}"] for name, own in found.items()]
    print(report.table(["forward with", "over without"], rows))
    content = {"environment": machine, "settings": vars(options), "goal": GOAL, "ways": found}
    print(f"kept as {report.write('capture', content).name}")


if __name__ == "__main__":
    main()
