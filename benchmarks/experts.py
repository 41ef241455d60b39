"""Layer sweep plus every clean-active expert of every layer, and all coalitions of a top-8 layer.

```
python -m benchmarks.experts --repeats 5
```

Same model and cases as the layer table. Each is timed next to the clean and noised forwards alone (the faster
way to run them). One forward per patch is measured on a slice of the cases, with a forward for each layer,
and extrapolated: it needs one for each of layers x (1 + top-k) patches, besides the clean and the noised one.
Prints a table and keeps it as ``benchmarks/results/experts.json``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import moetrace as mt
from benchmarks import report
from benchmarks.baselines import prepare_separate, prepare_together
from benchmarks.model import Case, build_cases, build_model, draw_noise, twin
from benchmarks.peers import hf_loop
from benchmarks.timing import Timed, interleave
from moetrace.engines.job import Patch, Sweep
from moetrace.models.anatomy import find_anatomy
from moetrace.trace.options import checked
from moetrace.trace.session import trace

GOALS = {"full": 3.5, "coalitions": 1.5}


def as_moetrace(cases: Sequence[Case]) -> list[mt.Case]:
    """The same cases for moetrace."""
    return [mt.Case(c.input_ids, c.subject, c.true_id, c.foil_id, c.case_id) for c in cases]


def every_patch(layers: int, top_k: int) -> dict[str, Any]:
    """Blocks and clean-routed experts of all layers, and the null patch."""
    patches = [*(Patch.block(layer) for layer in range(layers)), Patch.null(0)]
    return {"patches": patches, "sweeps": [Sweep(layer, top_k) for layer in range(layers)]}


def build_top8(layers: int) -> Qwen3MoeForCausalLM:
    """The benchmark's model with top-8 routing."""
    base = build_model(layers)
    config = Qwen3MoeConfig(**{**base.config.to_dict(), "num_experts_per_tok": 8})
    model = Qwen3MoeForCausalLM(config).eval()
    model.load_state_dict(base.state_dict())
    return model


def over_forwards(
    model: Qwen3MoeForCausalLM, cases: list[Case], run: Callable[[], object], repeats: int
) -> Any:
    """Cost of ``run`` over that of the faster way to run the forwards alone, and all samples."""
    noise = draw_noise(model, cases)
    run()
    found: dict[str, Any] = {}
    for name, prepare in (("separate", prepare_separate), ("together", prepare_together)):
        forwards = prepare(twin(model))
        forwards(cases, noise)
        yardstick = Timed("forwards", len(cases), lambda _, call=forwards: call(cases, noise))
        timed = Timed("run", len(cases), lambda _: run())
        interleave(yardstick, [timed], repeats)
        found[name] = {"ratio": timed.median_ratio, "samples": timed.ratios, "seconds": timed.median_seconds}
    return {"factor": max(entry["ratio"] for entry in found.values()), **found}


def one_forward_per_patch(
    model: Qwen3MoeForCausalLM, cases: list[Case], patches: int, slice_cases: int
) -> float:
    """Seconds a case: measured for one forward per layer on a slice, extrapolated to ``patches`` forwards."""
    sweep = hf_loop.prepare(twin(model))
    noise = draw_noise(model, cases)
    layers = model.config.num_hidden_layers
    sweep(cases[:1], noise)
    begin = time.perf_counter()
    sweep(cases[:slice_cases], noise)
    each = (time.perf_counter() - begin) / slice_cases / (layers + 2)
    return each * (patches + 2)


def measure_full(options: argparse.Namespace, cases: list[Case]) -> tuple[dict[str, Any], float]:
    """Every block and every clean-active expert in one pass; and seconds a case of one forward per patch."""
    model = build_model(options.layers)
    top_k = model.config.num_experts_per_tok
    common = checked({"progress": False}, mt.trace_layers)
    asked = every_patch(options.layers, top_k) | {"anatomy": find_anatomy(model)} | common
    run = partial(trace, model, as_moetrace(cases), **asked)
    full = over_forwards(model, cases, run, options.repeats)
    return full, one_forward_per_patch(model, cases, options.layers * (1 + top_k), options.slice_cases)


def measure_coalitions(options: argparse.Namespace, cases: list[Case], layer: int) -> dict[str, Any]:
    """All 255 coalitions of a layer's eight clean-routed experts."""
    model = build_top8(options.layers)
    run = partial(mt.trace_coalitions, model, as_moetrace(cases), layer, sets="all", progress=False)
    return over_forwards(model, cases, run, options.repeats)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="experts and coalitions against the forwards alone")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--slice-cases", type=int, default=4, help="cases that one forward per patch runs on")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = report.environment()
    cases = build_cases(options.cases)
    full, plain = measure_full(options, cases)
    faster = plain / full["together"]["seconds"]
    near_top = [options.layers - 1, options.layers - 2]
    coalitions = {str(layer): measure_coalitions(options, cases, layer) for layer in near_top}
    rows = [
        ["sweep and every clean-active expert", f"{full['factor']:.2f}", "at most 3.5"],
        ["one forward per patch over that (extrapolated)", f"{faster:.0f}", "at least 100"],
    ]
    for layer in near_top:
        factor = coalitions[str(layer)]["factor"]
        rows.append([f"255 coalitions of layer {layer} of {options.layers}", f"{factor:.2f}", "below 1.5"])
    print(report.table(["what", "over clean and noised forwards", "goal"], rows))
    content = {
        "environment": machine,
        "settings": vars(options),
        "full": full,
        "one_forward_per_patch": {"seconds_per_case": plain, "ratio": faster, "extrapolated": True},
        "coalitions": coalitions,
        "goals": GOALS,
    }
    print(f"kept as {report.write('experts', content).name}")


if __name__ == "__main__":
    main()
