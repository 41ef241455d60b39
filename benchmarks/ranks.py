"""What a second process gains: a layer sweep by one process, and by two that share its batches.

```
python -m benchmarks.ranks --repeats 5
```

Both of one thread, in turn, in the same processes: while the first traces alone the second waits. Batches are
dealt out whole, so the 232 cases are four full ones. Prints a line and keeps it as
``benchmarks/results/ranks.json``. Fails if the numbers aren't the same to the last bit.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import moetrace as mt
from benchmarks import ours, report
from benchmarks.model import build_cases, build_model

GOAL = 1.8


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the first rank alone and of all together, interleaved."""
    machine = report.environment()
    model, cases = build_model(options.layers), build_cases(options.cases)
    together = ours.rescue(model, cases)  # warm-up
    seconds: dict[str, list[float]] = {"one": [], "all": []}
    same = True
    for _ in range(options.repeats):
        dist.barrier()
        if dist.get_rank() == 0:
            begin = time.perf_counter()
            with mt.ranks.alone():
                same &= (ours.rescue(model, cases) == together).all()
            seconds["one"].append(time.perf_counter() - begin)
        dist.barrier()
        begin = time.perf_counter()
        same &= (ours.rescue(model, cases) == together).all()
        seconds["all"].append(time.perf_counter() - begin)
    ratios = [one / both for one, both in zip(seconds["one"], seconds["all"], strict=False)]
    speedup = statistics.median(ratios) if ratios else 0.0
    return {
        "environment": machine,
        "settings": {key: value for key, value in vars(options).items() if key != "name"},
        "samples": seconds,
        "speedup": speedup,
        "range": [min(ratios, default=0.0), max(ratios, default=0.0)],
        "same_to_the_bit": bool(same),
        "goal": GOAL,
        "reached": speedup >= GOAL,
    }


def rank(options: argparse.Namespace) -> None:
    """One of the processes; the first prints, keeps, and fails if the numbers differ."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result = measure(options)
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    if not first:
        return
    low, high = result["range"]
    one, both = (statistics.median(result["samples"][key]) for key in ("one", "all"))
    print(
        f"{options.cases} cases x {options.layers} layers, one thread each: 1 process {one:.2f} s, "
        f"{options.ranks} processes {both:.2f} s, {result['speedup']:.2f} times ({low:.2f} to {high:.2f}), "
        f"goal >= {GOAL}; the same to the bit: {result['same_to_the_bit']}"
    )
    print(f"kept as {report.write(options.name, result).name}")
    if not result["same_to_the_bit"]:
        sys.exit("numbers differ between one process and several")


def main() -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description="one process against several")
    parser.add_argument("--cases", type=int, default=232)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--name", default="ranks", help="of the JSON file in benchmarks/results")
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(options)
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    place = {"WORLD_SIZE": str(options.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-m", "benchmarks.ranks", *sys.argv[1:]]
    ranks = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(number)},
        )
        for number in range(options.ranks)
    ]
    codes = [process.wait() for process in ranks]
    if any(codes):
        sys.exit(f"exit codes of the ranks: {codes}")


if __name__ == "__main__":
    main()
