"""Layer sweep against five peers and against the forwards that no method can avoid.

```
python -m benchmarks.layers --cases 16 --repeats 5
```

prints a table and keeps it, with every sample, as ``benchmarks/results/layers.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from benchmarks import baselines, ours, outcome, report
from benchmarks.model import Case, build_cases, build_model, draw_noise, twin
from benchmarks.peers import Sweep, hf_batched, hf_loop, nnsight_peer, pyvene_peer, transformerlens_peer
from benchmarks.timing import Timed, interleave


@dataclass(frozen=True)
class Peer:
    """A competitor and the least factor by which the sweep is to beat it, if there is one."""

    key: str
    label: str
    module: ModuleType
    prepare: Callable[[Qwen3MoeForCausalLM], Sweep]
    goal: float | None


PEERS = [
    Peer("hf_loop", "(a) HF hooks, one forward per patch", hf_loop, hf_loop.prepare, 40),
    Peer("hf_loop_lean", "(a) with final logits only, no cache", hf_loop, hf_loop.prepare_lean, None),
    Peer("hf_batched", "(b) HF hooks, batched over patches", hf_batched, hf_batched.prepare, 8),
    Peer(
        "hf_batched_lean", "(b) with final logits only, no cache", hf_batched, hf_batched.prepare_lean, None
    ),
    Peer("nnsight", "(c) nnsight", nnsight_peer, nnsight_peer.prepare, 40),
    Peer(
        "transformer_lens",
        "(d) TransformerLens bridge",
        transformerlens_peer,
        transformerlens_peer.prepare,
        40,
    ),
    Peer("pyvene", "(e) pyvene", pyvene_peer, pyvene_peer.prepare, 40),
]
FORWARDS = {"separate": baselines.prepare_separate, "together": baselines.prepare_together}


def installed(module: ModuleType) -> bool:
    """Whether what the module needs can be imported."""
    return module.requirement is None or find_spec(module.requirement) is not None


def rotating(cases: Sequence[Case], count: int, repetition: int) -> list[Case]:
    """``count`` cases for this repetition, the following ones in the next."""
    return [cases[(repetition * count + index) % len(cases)] for index in range(count)]


def timed_peer(
    key: str, sweep: Sweep, cases: Sequence[Case], count: int, noise: Mapping[int, Tensor]
) -> Timed:
    """A peer timed on ``count`` cases at a time: its cost per case doesn't depend on how many there are."""
    return Timed(key, count, lambda repetition: sweep(rotating(cases, count, repetition), noise))


def timed_whole(key: str, run: Callable[[], object], count: int) -> Timed:
    """Something that batches over cases, hence timed on all of them."""
    return Timed(key, count, lambda repetition: run())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All sweeps once in full, for the numbers and as warm-up, then the interleaved timing.

    Without moetrace (a) is the yardstick, so that the peers can be looked at on their own.
    """
    machine = report.environment()
    model = build_model(options.layers)
    cases = build_cases(options.cases)
    noise = draw_noise(model, cases)
    sweeps = {peer.key: peer.prepare(twin(model)) for peer in PEERS if installed(peer.module)}
    rescues: dict[str, np.ndarray] = {key: sweep(cases, noise) for key, sweep in sweeps.items()}

    timed = {key: timed_peer(key, sweep, cases, options.peer_cases, noise) for key, sweep in sweeps.items()}
    if installed(ours):
        rescues["moetrace"] = ours.rescue(model, cases)
        timed["moetrace"] = timed_whole("moetrace", lambda: ours.rescue(model, cases), len(cases))
    for key, prepare in FORWARDS.items():
        forwards = prepare(twin(model))
        forwards(cases, noise)
        timed[key] = timed_whole(key, partial(forwards, cases, noise), len(cases))
    yardstick = "moetrace" if "moetrace" in timed else "hf_loop"
    interleave(
        timed[yardstick], [entry for entry in timed.values() if entry.key != yardstick], options.repeats
    )

    labels = {peer.key: peer.label for peer in PEERS}
    goals = {peer.key: peer.goal for peer in PEERS if peer.goal is not None}
    return {
        "environment": machine,
        "settings": {key: value for key, value in vars(options).items() if key != "name"},
        "mean_rescue_magnitude": float(np.abs(rescues["hf_loop"]).mean()),
        **outcome.summarise(timed, rescues, labels, goals, yardstick),
    }


def main() -> None:
    """Measure, print, keep, and fail if the methods disagree."""
    parser = argparse.ArgumentParser(description="layer sweep against five peers")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--peer-cases", type=int, default=2, help="cases a peer is timed on in one repetition"
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="layers", help="of the JSON file in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(outcome.text(result))
    print(f"kept as {report.write(options.name, result).name}")
    outcome.require_agreement(result)


if __name__ == "__main__":
    main()
