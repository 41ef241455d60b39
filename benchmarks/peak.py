"""What part of the machine's matrix peak the sweeps reach, on four layers of Qwen3-30B-A3B's shape.

```
python -m benchmarks.peak --repeats 5
```

Width 2,048, 32 heads of width 128 (4 for keys and values), 128 experts of width 768, top-8, bf16, random
weights made in memory; the vocabulary is cut to ``--vocabulary``, since a trace reads two of its rows for
each case. 64 prompts of 12 tokens.

Work is what a run asks for and no way of computing can leave out: for each row that exists in a layer the
four projections of attention, the router and eight experts, 2 operations for each weight. Attention between
rows, norms, gates, the embedding and the head aren't counted, nor are rows that are computed twice.
``sweep``: the passes themselves; ``call``: ``trace_layers`` or ``trace_experts`` as a user calls it, with the
comparison against plain forwards that every trace makes. The peak is the fastest of a few products of n x n
matrices in the same dtype, n being 2,048 and 4,096, taken before and after each sample: a shared machine
changes its speed within seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Qwen3MoeForCausalLM

import moetrace as mt
from benchmarks import report
from benchmarks.checkpoint import shape_of_qwen3
from moetrace._native import _core
from moetrace.engines.job import Job, Patch, Sweep, make_job
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from moetrace.trace.budget import auto_budget

GOAL = 0.75
TOKENS, SUBJECT = 12, (3, 7)
DRAWN = 4_194_301  # a prime
SIZES = (2048, 4096)  # of the products that stand for the peak


def build(layers: int, vocabulary: int, dtype: torch.dtype) -> Qwen3MoeForCausalLM:
    """Random weights of the shape, norms of 1."""
    config = shape_of_qwen3(layers, vocabulary)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    # Drawn once and repeated, for drawing 2.5 billion takes a while: no two rows meet in the same place.
    drawn = (0.02 * torch.randn(DRAWN, generator=torch.Generator().manual_seed(0))).to(dtype)
    for name, weight in model.named_parameters():
        flat = weight.data.view(-1)
        for begin in range(0, flat.numel(), DRAWN):
            part = flat[begin : begin + DRAWN]
            part.fill_(1.0) if "norm" in name else part.copy_(drawn[: part.numel()])
    return model.eval().requires_grad_(False)


def build_cases(count: int, vocabulary: int) -> list[mt.Case]:
    """Random prompts of 12 tokens."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for case_id in range(count):
        tokens = torch.randint(vocabulary, (TOKENS,), generator=generator).tolist()
        true_id, foil_id = torch.randperm(vocabulary, generator=generator)[:2].tolist()
        cases.append(mt.Case(tokens, SUBJECT, true_id, foil_id, case_id))
    return cases


def work_of_row(config: Any) -> int:
    """Operations of one row in one layer."""
    heads = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    experts = config.num_experts_per_tok * 3 * config.moe_intermediate_size
    return int(2 * config.hidden_size * (heads + config.num_experts + experts))


def work_of(job: Job, cases: list[mt.Case]) -> int:
    """Operations of a job: a case's own rows in every layer, and each patched run's row above its layer."""
    runs, layers = job.runs, len(job.anatomy.layers)
    rows = 0
    for case in cases:
        own = _core.tree_rows(job.shape_of(case), runs, 0, 0, job.draws)
        rows += layers * own + sum(layers - 1 - layer for layer in runs.layers) * job.draws
    return rows * work_of_row(job.anatomy.config)


def peak(dtype: torch.dtype) -> float:
    """Operations a second of the fastest of a few large products."""
    fastest = 0.0
    for size in SIZES:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for _ in range(4):
            begin = time.perf_counter()
            torch.nn.functional.linear(a, b)
            fastest = max(fastest, 2 * size**3 / (time.perf_counter() - begin))
    return fastest


def part_of_peak(run: Callable[[], object], work: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Median of operations a second over the mean of the peaks before and after, and every sample."""
    run()
    samples = []
    before = peak(dtype)
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        after = peak(dtype)
        samples.append({"seconds": seconds, "gflops": work / seconds / 1e9, "peak": (before + after) / 2e9})
        before = after
    parts = [sample["gflops"] / sample["peak"] for sample in samples]
    return {"part": statistics.median(parts), "range": [min(parts), max(parts)], "samples": samples}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both sweeps, each as passes alone and as a user's call."""
    dtype = getattr(torch, options.dtype)
    model = build(options.layers, options.vocabulary, dtype)
    cases = build_cases(options.cases, options.vocabulary)
    anatomy = find_anatomy(model)
    found: dict[str, Any] = {"budget": auto_budget(anatomy)}
    blocks = [Patch.block(layer) for layer in range(options.layers)]
    calls: dict[str, Callable[[], object]] = {
        "layers": lambda: mt.trace_layers(model, cases, progress=False),
        "experts": lambda: mt.trace_experts(model, cases, layer=None, progress=False),
    }
    for what, call in calls.items():
        with prepared(model):
            sweeps = [Sweep(layer, 8) for layer in range(options.layers)] if what == "experts" else []
            job = make_job(anatomy, [Patch.null(0)] if sweeps else blocks, None, sweeps=sweeps)
            engine = TreeEngine(job, batch_tokens=found["budget"])
            batches = [[cases[index] for index in batch] for batch in engine.batches(cases)]
            work = work_of(job, cases)
            alone = part_of_peak(
                lambda own=batches, by=engine: [by.run(batch) for batch in own], work, dtype, options.repeats
            )
        found[what] = {"work_gflop": work / 1e9, "batches": len(batches), "sweep": alone}
        if not options.sweeps_only:
            found[what]["call"] = part_of_peak(call, work, dtype, max(1, options.repeats // 2))
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description="part of the matrix peak that the sweeps reach")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sweeps-only", action="store_true", help="leave out the calls as a user makes them")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = report.environment()
    found = measure(options)
    rows = []
    for what in ("layers", "experts"):
        for kind in ("sweep", "call"):
            if kind in found[what]:
                own = found[what][kind]
                low, high = own["range"]
                rows.append([f"{what}, {kind}", f"{own['part']:.2f}", f"{low:.2f} to {high:.2f}"])
    print(report.table(["what", "part of peak", "range"], rows))
    content = {"environment": machine, "settings": vars(options), "goal": GOAL, **found}
    print(f"kept as {report.write('peak', content).name}")


if __name__ == "__main__":
    main()
