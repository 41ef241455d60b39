"""What screening by gradient costs beside the exact expert sweep, and how well it ranks experts.

```
python -m benchmarks.screen --repeats 2 --facts FACTMOE COUNTERFACT
```

Processor time on one thread, for it is one process and the machine may be shared.

Cost: the model and cases of the other tables, each next to the clean and noised forwards alone in one batch:
estimates of every expert of every layer at the last token, and at every token; the exact
sweep of them at the last token, and at one in the middle, times the tokens from the subject on
(extrapolated).
Quality: rank correlation with the exact sweep and recall of its best 20, on the random model, the bundled one
and, where it is given, a trained model with the records that it knows. Kept as
``benchmarks/results/screen.json``.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

import moetrace as mt
from benchmarks import report
from benchmarks.baselines import prepare_together
from benchmarks.model import PROMPT_TOKENS, SUBJECT, build_cases, build_model, draw_noise, twin
from benchmarks.ours import traced
from benchmarks.protocol import seconds

K = 20
MIDDLE = -5  # about as many tokens behind it as a token from the subject on has in the mean


def costs(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Over the clean and noised forwards alone; exact at every token is extrapolated."""
    cases = build_cases(options.cases)
    own, noise, forwards = traced(cases), draw_noise(model, cases), prepare_together(twin(model))
    runs = {
        "screen": partial(mt.screen_experts, model, own, verify=False, progress=False),
        "screen_all_tokens": partial(
            mt.screen_experts, model, own, position="all", verify=False, progress=False
        ),
        "exact": partial(mt.trace_experts, model, own, progress=False),
        "exact_middle": partial(mt.trace_experts, model, own, position=MIDDLE, progress=False),
    }
    for warm in (runs["screen"], runs["exact"]):  # what is found out about a model once
        warm()
    base = min(seconds(lambda: forwards(cases, noise)) for _ in range(1 + options.repeats))
    found = {name: min(seconds(run) for _ in range(options.repeats)) / base for name, run in runs.items()}
    found["exact_all_tokens"] = found["exact_middle"] * (PROMPT_TOKENS - SUBJECT[0])
    return found


def quality(model: Any, cases: Any) -> dict[str, Any]:
    """Of the estimates at the last token against the exact sweep."""
    screen = mt.screen_experts(model, cases, verify="all", progress=False)
    return {
        "cases": len(screen),
        "experts": int(screen.clean_active.any(axis=0).sum()),
        "spearman_experts": screen.correlation(),
        "spearman_cases": screen.correlation(over="cases"),
        "recall": screen.recall(K),
        "best": {"estimate": screen.top(1).star[0], "exact": best_of(screen)},
    }


def best_of(screen: mt.ScreenTrace) -> str:
    """The expert with the highest exact mean rescue."""
    layer, expert = screen.sites.iloc[int(screen.rescue.mean(axis=0).argmax())]
    return str(mt.Expert(int(layer), int(expert)))


def models(random: Any, options: argparse.Namespace) -> dict[str, tuple[Any, Any]]:
    """Models by name, each with cases for it."""
    found: dict[str, tuple[Any, Any]] = {}
    found["random"] = random, traced(build_cases(options.cases))
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records(), tokenizer)
    found["bundled"] = model, mt.select_cases(model, cases, n=options.facts_cases)
    if options.facts:
        folder, records = map(Path, options.facts)
        model, tokenizer = mt.load_model(str(folder), dtype="float32")
        known = set(json.loads((folder / "known_case_ids.json").read_text(encoding="utf-8")))
        own = [record for record in mt.load_records(records) if record.case_id in known]
        found["factmoe"] = (
            model,
            mt.select_cases(model, mt.make_cases(own, tokenizer), n=options.facts_cases),
        )
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="screening by gradient beside the exact expert sweep")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--facts-cases", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--facts", nargs=2, metavar=("MODEL", "RECORDS"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = report.environment()
    random = build_model(options.layers)
    cost = costs(random, options)
    found = {name: quality(*given) for name, given in models(random, options).items()}
    lines = [[name, f"{value:.2f}"] for name, value in cost.items()]
    print(report.table(["what", "over clean and noised forwards"], lines))
    rows = [
        [name, str(own["cases"]), f"{own['spearman_experts']:.2f}", f"{own['spearman_cases']:.2f}",
         f"{own['recall']:.2f}"]
        for name, own in found.items()
    ]  # fmt: skip
    print(report.table(["model", "cases", "rank, experts", "rank, cases", f"recall@{K}"], rows))
    settings = {name: value for name, value in vars(options).items() if name != "facts"}
    content = {"environment": machine, "settings": settings, "cost": cost, "quality": found}
    print(f"kept as {report.write('screen', content).name}")


if __name__ == "__main__":
    main()
