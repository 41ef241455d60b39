"""One rank of a scenario: ``python -m tests.ranks.worker SCENARIO FOLDER``; writes what it found as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import moetrace as mt
from moetrace.counts import counting
from moetrace.errors import NoEffectWarning
from moetrace.ranks import line
from moetrace.trace.run_folder import RunFolder
from moetrace.trace.select_cases import score_cases
from moetrace.trace.together import trace_around
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(9)
BUDGET = 60  # token rows: several batches


def digest(*arrays: Any) -> str:
    """Of every bit."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digest_of(result: Any) -> str:
    """Of a result's numbers and of its rows."""
    return digest(result.effects, result.rows.select_dtypes("number").to_numpy(float))


def everything(model: torch.nn.Module, **options: Any) -> dict[str, str]:
    """A digest of what each public call gives."""
    own = {"batch_tokens": BUDGET, **options}
    layers = mt.trace_layers(model, CASES, **own)
    plain = mt.trace_layers(model, CASES, engine="reference", noise=mt.SubjectNoise(2.0, draws=2))
    experts = mt.trace_experts(model, CASES, **own)
    star = mt.trace_experts(model, CASES, layer=1, **own).select(min_active=0.1)
    around = trace_around(model, CASES, star, **own)
    scores = score_cases(model, CASES, batch_tokens=BUDGET)
    chosen = mt.select_cases(model, CASES, n=4, margin=-99, drop=-99, batch_tokens=BUDGET)
    results = {
        "layers": layers, "plain": plain, "experts": experts, "around": around.coalitions,
        "matched": mt.trace_matched(model, CASES, star, **own),
        "scales": mt.trace_noise_scales(model, CASES, star, (1.0, 3.0), **own),
        "coalitions": mt.trace_coalitions(model, CASES, layer=1, sets="all", **own),
        "screen": mt.screen_experts(model, CASES, top=3, **own),
        "paths": mt.trace_paths(model, CASES, [(0, 2), (1, "L03.router")]),
    }  # fmt: skip
    return {
        **{name: digest_of(result) for name, result in results.items()},
        "direct": digest(layers.direct, layers.direct_linear, experts.direct),
        "scores": digest(scores.to_numpy(float)),
        "selected": str([case.case_id for case in chosen]),
        "summary": layers.summary().to_csv(),
        "self check": str(layers.provenance["self_check"]),
        "null": str(layers.noise_floor),
    }


def caught(call: Callable[[], Any]) -> str:
    """The error that a call raises, in a line."""
    try:
        call()
    except BaseException as failure:
        return f"{type(failure).__name__}: {failure}"
    return "nothing"


def failing(model: torch.nn.Module, failure: BaseException, after: int) -> Any:
    """Fail in the forward of that number and in all later ones."""
    calls = []

    def hook(*_: Any) -> None:
        calls.append(None)
        if len(calls) >= after:
            raise failure

    return model.model.layers[2].register_forward_pre_hook(hook)


def equal(folder: Path) -> dict[str, Any]:
    """All calls, with batches for all and with one for all."""
    told: list[tuple[int, int]] = []
    model = make_model("qwen3_moe")
    found = everything(model)
    with counting() as counted:
        one = mt.trace_layers(model, CASES, batch_tokens=100_000)
    shown = mt.trace_layers(model, CASES, batch_tokens=BUDGET, progress=lambda *at: told.append(at))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        mt.trace_layers(model, CASES, position=0, batch_tokens=BUDGET)
    warned = [str(own.message) for own in heard if own.category is NoEffectWarning]
    alone = ""
    if dist.get_rank() == 0:
        with mt.ranks.alone():
            alone = digest_of(mt.trace_layers(model, CASES, batch_tokens=BUDGET))
    return {
        "digests": found, "one batch": digest_of(one), "told": told, "rows": counted.rows,
        "warned": warned, "ranks": shown.provenance["ranks"], "alone": alone or digest_of(shown),
    }  # fmt: skip


def parts(folder: Path) -> dict[str, Any]:
    """One model in parts on all ranks (tensor parallel), beside the same on each."""
    path = folder / "model"
    if dist.get_rank() == 0:
        make_model("qwen3_moe").save_pretrained(path)
    dist.barrier()
    load = partial(AutoModelForCausalLM.from_pretrained, path)
    model, whole = load(tp_plan="auto"), load()
    with mt.ranks.alone():
        expected = [trace(whole, CASES, batch_tokens=BUDGET) for trace in (mt.trace_layers, mt.trace_experts)]
    told: list[tuple[int, int]] = []
    found = [
        mt.trace_layers(
            model, CASES, batch_tokens=BUDGET, out=folder / "run", progress=lambda *at: told.append(at)
        ),
        mt.trace_experts(model, CASES, batch_tokens=BUDGET),
    ]
    apart = [
        float(abs(mine.effects - other.effects).max()) for mine, other in zip(found, expected, strict=True)
    ]
    saved = digest_of(mt.load(folder / "run"))
    return {
        "apart": apart,
        "digest": digest_of(found[0]),
        "saved": saved,
        "engine": found[0].provenance["engine"],
        "told": told[-1:],
    }


def wrong(folder: Path) -> dict[str, Any]:
    """Calls that can't go well, each followed by one that does."""
    rank, model = dist.get_rank(), make_model("qwen3_moe")
    other = make_model("qwen3_moe", seed=rank)
    good = partial(mt.trace_layers, model, CASES, batch_tokens=BUDGET)
    late = CASES if rank == 0 else CASES[:-1]
    raising = {"error": RuntimeError("boom"), "stop": KeyboardInterrupt()}
    calls: dict[str, Callable[[], Any]] = {
        "position": lambda: mt.trace_layers(model, CASES, position="last" if rank == 0 else "subject_last"),
        "noise": lambda: mt.trace_layers(model, CASES, noise=1.0 + rank),
        "cases": lambda: mt.trace_layers(model, late),
        "budget": lambda: mt.trace_layers(model, CASES, batch_tokens=60 + rank),
        "model": lambda: mt.trace_layers(other, CASES),
        "function": lambda: (mt.trace_layers if rank == 0 else mt.trace_experts)(model, CASES),
        "selection": lambda: mt.select_cases(model, CASES, n=3 + rank, margin=-99, drop=-99),
        "argument": lambda: mt.trace_layers(model, CASES, layers=99),
        "one argument": lambda: mt.trace_layers(model, CASES, layers=99 if rank == 1 else None),
        "folder": lambda: mt.trace_layers(model, CASES, out=file),
    }
    file = folder / "a file"
    file.write_text("")
    found: dict[str, Any] = {}
    for name, call in calls.items():
        found[name] = caught(call)
    for name, failure in raising.items():
        handle = failing(model, failure, 3) if rank == 1 else None
        found[name] = caught(good)
        if handle is not None:
            handle.remove()
    found["after"] = digest_of(good())
    found["hooks"] = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return found


def killed(folder: Path) -> dict[str, Any]:
    """The last rank dies in the middle of a trace."""
    line.LOST_AFTER, line.BEAT = 1.0, 0.2
    model = make_model("qwen3_moe")
    if dist.get_rank() == dist.get_world_size() - 1:
        append = RunFolder.append

        def append_and_die(folder: RunFolder, parts: Any) -> None:
            append(folder, parts)
            os.kill(os.getpid(), signal.SIGKILL)

        RunFolder.append = append_and_die  # type: ignore[method-assign]
    error = caught(
        lambda: mt.trace_layers(model, CASES, batch_tokens=BUDGET, out=folder / "run", engine="tree")
    )
    return {"error": error}


def resumed(folder: Path) -> dict[str, Any]:
    """The same call again."""
    model = make_model("qwen3_moe")
    with counting() as counted:
        found = mt.trace_layers(model, CASES, batch_tokens=BUDGET, out=folder / "run", engine="tree")
    return {"digest": digest_of(found), "rows": counted.rows}


SCENARIOS = {"equal": equal, "parts": parts, "wrong": wrong, "killed": killed, "resumed": resumed}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder = Path(sys.argv[2])
    found = SCENARIOS[sys.argv[1]](folder)
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    os._exit(0)  # as the last word: a group that lost a rank may wait for it when it is destroyed


if __name__ == "__main__":
    main()
