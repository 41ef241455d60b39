"""What `mt.plan` says of three shapes from their configs alone, beside what the traces then take.

```
python -m benchmarks.plan
```

prints a table and keeps it as ``benchmarks/results/plan.json``. Each plan and each trace has a process of its
own: the plan sees a folder with a config.json and no weights; the trace is the first call on a fresh model,
engine's checks included, and its memory is the kernel's high-water mark of that process during the call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

import moetrace as mt
from benchmarks import report
from benchmarks.memory import give_back_freed_heap, high_water_mark, reset_high_water_mark
from benchmarks.outcome import verdict

GOAL = 0.25  # of what the run takes
COMMON: dict[str, Any] = {"vocab_size": 32_000, "max_position_embeddings": 512, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Shape:
    """A model, and the trace that is planned and run."""

    title: str
    config: Callable[[], Any]
    what: str
    cases: int


def _benchmark() -> Any:
    return tf.Qwen3MoeConfig(
        **COMMON, hidden_size=512, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=4,
        head_dim=64, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=256, dtype="float32",
        norm_topk_prob=True,
    )  # fmt: skip


def _wide() -> Any:
    return tf.Qwen3MoeConfig(
        **COMMON, hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
        head_dim=64, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=512, dtype="bfloat16",
        norm_topk_prob=True,
    )  # fmt: skip


def _dense() -> Any:
    return tf.LlamaConfig(
        **COMMON, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=8, dtype="float32",
    )  # fmt: skip


SHAPES = {
    "benchmark": Shape(
        "the benchmark's model (24 layers, 32 experts, top-4, fp32)", _benchmark, "layers", 96
    ),
    "wide": Shape("wide and sparse (8 layers, 64 experts, top-8, bf16)", _wide, "experts", 48),
    "dense": Shape("dense (16 layers, width 1,024, fp32)", _dense, "layers", 160),
}


def cases_of(count: int) -> list[mt.Case]:
    """Prompts of 8 to 16 random tokens with subjects of one to four."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for case_id in range(count):
        length = 8 + case_id % 9
        ids = torch.randint(3, 32_000, (length,), generator=generator).tolist()
        start = case_id % 3
        found.append(mt.Case(tuple(ids), (start, start + 1 + case_id % 4), 5, 6, case_id))
    return found


def predict(shape: Shape) -> dict[str, float]:
    """The plan, from the config alone, and what planning took."""
    with tempfile.TemporaryDirectory() as folder:
        shape.config().save_pretrained(folder)
        start = time.perf_counter()
        found = mt.plan(folder, cases_of(shape.cases), shape.what)
    took = time.perf_counter() - start
    return {"seconds": found.seconds, "bytes": found.peak_memory, "flops": found.flops, "planning": took}


def measure(shape: Shape) -> dict[str, float]:
    """The first trace of a fresh model."""
    config = shape.config()
    torch.manual_seed(0)
    untyped: Any = tf.AutoModelForCausalLM
    model = untyped.from_config(config, dtype=config.dtype).eval().requires_grad_(False)
    cases = cases_of(shape.cases)
    give_back_freed_heap()
    reset_high_water_mark()
    trace = mt.trace_layers if shape.what == "layers" else mt.trace_experts
    start = time.perf_counter()
    trace(model, cases, progress=False)
    return {"seconds": time.perf_counter() - start, "bytes": high_water_mark()}


def in_fresh_process(job: str, name: str, threads: int) -> dict[str, float]:
    """One of the two above, by itself."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.plan",
        "--child",
        job,
        "--shapes",
        name,
        "--threads",
        str(threads),
    ]
    root = Path(__file__).parent.parent
    done = subprocess.run(words, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def within(ratio: float) -> bool:
    """Whether a prediction lies within the goal of what was measured."""
    return abs(ratio - 1) <= GOAL


def text(result: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for line in result["shapes"]:
        predicted, measured = line["predicted"], line["measured"]
        told = [f"{line['what']}, {line['cases']} cases"]
        told += [f"{predicted['seconds']:.1f}", f"{measured['seconds']:.1f}"]
        told += [f"{line['time_ratio']:.2f} ({verdict(within(line['time_ratio']))})"]
        told += [f"{predicted['bytes'] / 1e9:.2f}", f"{measured['bytes'] / 1e9:.2f}"]
        told += [f"{line['memory_ratio']:.2f} ({verdict(within(line['memory_ratio']))})"]
        rows.append([line["shape"], *told, f"{predicted['planning']:.1f}"])
    heads = [
        "shape",
        "trace",
        "s planned",
        "s taken",
        "ratio",
        "GB planned",
        "GB taken",
        "ratio",
        "s to plan",
    ]
    return report.table(heads, rows)


def main() -> None:
    """Plan, run, print and keep."""
    parser = argparse.ArgumentParser(description="what a plan says beside what a run takes")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="plan", help="of the JSON file in benchmarks/results")
    parser.add_argument("--child", choices=["predict", "measure"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        warnings.simplefilter("ignore")
        job = predict if options.child == "predict" else measure
        print(json.dumps(job(SHAPES[options.shapes[0]])))
        return
    lines = [_line(name, options.threads) for name in options.shapes]
    result = {"environment": report.environment(), "goal": GOAL, "shapes": lines}
    print(text(result))
    report.write(options.name, result)


def _line(name: str, threads: int) -> dict[str, Any]:
    shape = SHAPES[name]
    predicted, measured = (in_fresh_process(job, name, threads) for job in ("predict", "measure"))
    return {
        "shape": shape.title,
        "what": shape.what,
        "cases": shape.cases,
        "predicted": predicted,
        "measured": measured,
        "time_ratio": predicted["seconds"] / measured["seconds"],
        "memory_ratio": predicted["bytes"] / measured["bytes"],
    }


if __name__ == "__main__":
    main()
