"""Traces of a checkpoint that is larger than memory: time, bytes read, peak memory, and what bounds them.

```
python -m benchmarks.streaming FOLDER --make-layers 24      # makes 31 GB of random weights there, if absent
```

The checkpoint has Qwen3-30B-A3B's exact shape (``benchmarks.checkpoint``) and as many layers as asked for.
Each trace runs in a process of its own, from ``load_model(FOLDER, stream=True)`` on, and is scaled to the
model's 48 layers by token rows (a layer sweep has more forks in a layer where there are more layers).
The same process measures the disk, by direct reads, and the processor: a large product in bf16, and products
of 24 rows, which is what an expert gets of a batch.

transformers' own disk offload, one forward for each patch, is measured on a checkpoint of two layers and
extrapolated: it reads every layer anew in each forward.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import report

WIDTH, INNER, EXPERTS, TOP_K, HEADS, KEY_HEADS, HEAD, VOCABULARY = 2048, 768, 128, 8, 32, 4, 128, 151_936
LAYERS = 48
PROMPT, SUBJECT = 12, (2, 5)
ROW_FLOPS = 2 * (WIDTH * HEAD * 2 * (HEADS + KEY_HEADS) + WIDTH * EXPERTS + TOP_K * 3 * WIDTH * INNER)
MEMORY_GOAL, BYTES_GOAL, BOUND_GOAL, SWEEP_GOAL = 6e9, 1.05, 1.3, 150.0
TRACES = {"layers": 128, "experts": 128, "select": 256}


def cases_of(count: int) -> list[Any]:
    """Random prompts of 12 tokens with a subject of three."""
    import moetrace as mt

    generator = torch.Generator().manual_seed(0)
    found = []
    for case_id in range(count):
        ids = torch.randint(VOCABULARY, (PROMPT,), generator=generator).tolist()
        true, foil = torch.randperm(VOCABULARY, generator=generator)[:2].tolist()
        found.append(mt.Case(ids, SUBJECT, true, foil, case_id))
    return found


def rows_of(what: str, cases: int, layers: int) -> float:
    """Token rows of all layers: prompts' and noised rows, and the forks that are there."""
    plain = SUBJECT[0] + 2 * (PROMPT - SUBJECT[0])
    forks = {"layers": (layers - 1) / 2, "experts": TOP_K / 2, "select": 0.0}[what]
    return cases * layers * (plain + forks)


def one(folder: str, what: str, count: int) -> dict[str, Any]:
    """One trace in this process."""
    import moetrace as mt
    from moetrace.counts import counting
    from moetrace.weights import source_of

    begin = time.perf_counter()
    model, _ = mt.load_model(folder, stream=True)
    loaded = time.perf_counter() - begin
    source = source_of(model)
    assert source is not None
    layers, before = model.config.num_hidden_layers, source.bytes_read
    begin = time.perf_counter()
    with counting() as counted:
        if what == "select":
            # Random weights know nothing: thresholds at which some 0.43 of the cases are usable.
            scanned = cases_of(round(count / 0.43))
            mt.select_cases(model, scanned, n=len(scanned), margin=-1e9, drop=-1e9, progress=False)
            count = len(scanned)
        elif what == "layers":
            found: Any = mt.trace_layers(model, cases_of(count), progress=False)
        else:
            found = mt.trace_experts(model, cases_of(count), layer=layers // 2, progress=False)
    seconds = time.perf_counter() - begin
    read, on_disk = source.bytes_read - before, _layer_bytes(folder)
    provenance = {} if what == "select" else dict(found.provenance)
    rows = rows_of(what, count, layers)
    return {
        "what": what,
        "cases": count,
        "layers": layers,
        "load_seconds": loaded,
        "seconds": seconds,
        "bytes_read": read,
        "bytes_of_layers": on_disk,
        "read_over_checkpoint": read / on_disk,
        "row_layers": rows,
        "flops": rows * ROW_FLOPS,
        "gflops": rows * ROW_FLOPS / seconds / 1e9,
        "forwards": counted.forwards,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "engine": str(provenance.get("engine", "")),
        "noise_floor": None if what == "select" else float(found.noise_floor),
    }


def _layer_bytes(folder: str) -> int:
    """Bytes of the decoder layers' tensors in a checkpoint."""
    total = 0
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if ".layers." in name:
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total


def disk_speed(folder: str, length: int = 4 << 30) -> float:
    """Bytes a second of direct reads of 16 MiB, one file after the other."""
    buffer, done, begin = mmap.mmap(-1, 16 << 20), 0, time.perf_counter()
    for path in sorted(Path(folder).glob("*.safetensors")):
        handle, at = os.open(path, os.O_RDONLY | os.O_DIRECT), 0
        try:
            while done < length and (got := os.preadv(handle, [buffer], at)) > 0:
                at, done = at + len(buffer), done + got
        finally:
            os.close(handle)
    return done / (time.perf_counter() - begin)


def product_speeds() -> dict[str, float]:
    """FLOP a second in bf16: a large product, and 24 rows at a time over the weights of many experts."""
    big = torch.randn(4096, 4096, dtype=torch.bfloat16)
    weights = torch.randn(EXPERTS, 2 * INNER, WIDTH, dtype=torch.bfloat16)
    rows = torch.randn(24, WIDTH, dtype=torch.bfloat16)

    def best(run: Any, flops: float, repeats: int = 5) -> float:
        run()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        return flops / min(times)

    return {
        "large": best(lambda: big @ big, 2 * 4096**3),
        "rows_24": best(
            lambda: [torch.nn.functional.linear(rows, weight) for weight in weights],
            2 * 24 * 2 * INNER * WIDTH * EXPERTS,
        ),
    }


def offloaded(layers: int = 2) -> dict[str, Any]:
    """Seconds of one plain forward by transformers' own disk offload, a layer."""
    from transformers import AutoModelForCausalLM

    from benchmarks.checkpoint import shape_of_qwen3, write_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        path, aside = Path(folder) / "checkpoint", Path(folder) / "offloaded"
        write_checkpoint(path, shape_of_qwen3(layers))
        places = {f"model.layers.{layer}": "disk" for layer in range(layers)}
        places |= dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", device_map=places, offload_folder=str(aside)
        ).eval()
        ids = torch.tensor([cases_of(1)[0].input_ids])
        seconds = []
        with torch.no_grad():
            for _ in range(3):
                begin = time.perf_counter()
                model(ids, logits_to_keep=1, use_cache=False)
                seconds.append(time.perf_counter() - begin)
    return {"seconds_a_layer": min(seconds) / layers, "samples": seconds, "layers": layers}


def scaled(result: dict[str, Any]) -> dict[str, Any]:
    """A trace of the whole model: time by token rows, bytes by layers."""
    more = rows_of(result["what"], result["cases"], LAYERS) / result["row_layers"]
    return {
        "seconds": result["seconds"] * more,
        "bytes_read": result["bytes_read"] * LAYERS / result["layers"],
    }


def in_a_process(folder: str, what: str, options: argparse.Namespace) -> dict[str, Any]:
    """The JSON of :func:`one`, from a fresh process."""
    arguments = [folder, "--one", what, "--cases", str(options.cases or TRACES[what])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.streaming", *arguments, "--threads", str(options.threads)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def text(result: dict[str, Any]) -> str:
    """The tables."""
    disk, speeds = result["disk"], result["products"]
    rows = []
    for found in result["traces"]:
        bound = max(found["bytes_read"] / disk, found["flops"] / speeds["rows_24"])
        rows.append(
            [
                f"{found['what']}, {found['cases']} cases",
                f"{found['seconds']:.1f}",
                f"{found['whole']['seconds']:.0f}",
                f"{found['read_over_checkpoint']:.3f}",
                f"{found['peak_bytes'] / 1e9:.2f}",
                f"{found['gflops']:.0f}",
                f"{found['gflops'] * 1e9 / speeds['large']:.2f}",
                f"{found['seconds'] / bound:.2f}",
            ]
        )
    head = [
        "trace", "s", f"s for {LAYERS} layers", "read / checkpoint", "peak GB", "GFLOP/s", "of peak",
        "s / bound",
    ]  # fmt: skip
    lines = [report.table(head, rows), ""]
    lines.append(
        f"disk {disk / 1e9:.2f} GB/s; large product {speeds['large'] / 1e9:.0f} GFLOP/s, 24 rows "
        f"{speeds['rows_24'] / 1e9:.0f}"
    )
    if "offload" in result:
        lines.append(
            f"disk offload, one forward a patch: {result['offload_ratio']:.0f} times the layer sweep"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description="traces of a checkpoint larger than memory")
    parser.add_argument("folder")
    parser.add_argument("--make-layers", type=int, default=24)
    parser.add_argument("--what", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--one", choices=TRACES)
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-offload", action="store_true")
    parser.add_argument("--name", default="streaming", help="of the JSON file in benchmarks/results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(one(options.folder, options.one, options.cases or TRACES[options.one])))
        return
    if not any(Path(options.folder).glob("*.safetensors")):
        from benchmarks.checkpoint import shape_of_qwen3, write_checkpoint

        write_checkpoint(Path(options.folder), shape_of_qwen3(options.make_layers))
    result: dict[str, Any] = {
        "environment": report.environment(),
        "disk": disk_speed(options.folder),
        "products": product_speeds(),
        "traces": [in_a_process(options.folder, what, options) for what in options.what],
    }
    for found in result["traces"]:
        found["whole"] = scaled(found)
    sweep = next((found for found in result["traces"] if found["what"] == "layers"), None)
    if sweep is not None and not options.no_offload:
        result["offload"] = offloaded()
        forwards = (LAYERS + 2) * sweep["cases"]
        alone = result["offload"]["seconds_a_layer"] * LAYERS * forwards
        result["offload_ratio"] = alone / sweep["whole"]["seconds"]
    print(text(result))
    print(f"kept as {report.write(options.name, result).name}")


if __name__ == "__main__":
    main()
