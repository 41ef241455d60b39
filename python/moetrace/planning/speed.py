"""Seconds of all stages, from one timed micro-batch and the disk's speed."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moetrace._native import _core
from moetrace.models.float32 import HALF
from moetrace.planning.clock import Pace, kind_of, timed
from moetrace.planning.work import Batch, head_flops, layer_flops
from moetrace.trace.memory import available_memory

if TYPE_CHECKING:
    from moetrace.planning.blueprint import Blueprint
    from moetrace.planning.stages import Stage

_SAMPLE = 256 << 20  # bytes of a file that tell the disk's speed
_PIECE = 8 << 20
_ROWS, _SIDE = 96, 2048  # of the product whose speed stands in where a layer can't be timed

BESIDE, BESIDE_ROWS = 5, 40  # forwards beside the first sweep over a streamed model, and their token rows


@dataclass(frozen=True)
class Estimate:
    """``seconds``: of each stage. ``engine`` and ``join``: as the micro-batch found them. ``notes``: how."""

    seconds: list[float]
    engine: str
    join: _core.Join
    notes: tuple[str, ...]


def estimate(
    blueprint: Blueprint, stages: Sequence[Stage], batches: Sequence[list[Batch]], engine: str, stream: bool
) -> Estimate:
    """Time what is needed, and scale it to all stages."""
    disk = disk_speed(blueprint.weights) if stream else None
    reading = blueprint.size.layer_bytes / disk if disk else 0.0
    notes = []
    if stream:
        speed = "isn't known, since the weights aren't there" if disk is None else f"is {disk / 1e9:.2f} GB/s"
        notes.append(f"The disk's speed {speed}.")
    try:
        paces = _paces(blueprint, stages, batches, engine)
    except Exception as failure:  # a family whose layers don't run in a small model of their own
        notes.append(f"Timed by a matrix product alone: a layer can't be run by itself ({_short(failure)}).")
        seconds = _by_product(blueprint, stages, batches, reading)
        return Estimate(seconds, engine, _join_of(batches), tuple(notes))
    seconds = []
    for index, (stage, own) in enumerate(zip(stages, batches, strict=True)):
        pace = paces[stage.swept]
        # The checks are bound by memory, as reading is, and don't hide it.
        checks = _checks(blueprint, pace, stream) if index == 0 else 0.0
        busy = _seconds(blueprint, pace, own) + _whole_vocabulary(blueprint, stage, own)
        seconds.append(max(busy, reading * len(stage.scans)) + checks)
    pace = paces[stages[0].swept]
    notes.append("Timed on one batch in one layer of each kind, on this machine as it is now.")
    return Estimate(seconds, pace.engine, pace.join, tuple(notes))


def _paces(
    blueprint: Blueprint, stages: Sequence[Stage], batches: Sequence[list[Batch]], engine: str
) -> dict[bool, Pace]:
    """The pace of traces with and without experts swept in many layers, each by its largest stage."""
    _refuse_little_memory(blueprint)
    paces = {}
    for swept in dict.fromkeys(stage.swept for stage in stages):
        chosen = [index for index, stage in enumerate(stages) if stage.swept == swept]
        largest = max(chosen, key=lambda index: sum(map(_rows, batches[index])))
        ordered = sorted(batches[largest], key=_rows)
        typical = ordered[len(ordered) // 2]
        asked = "auto" if engine == "tree" else "reference"
        paces[swept] = timed(blueprint, stages[largest], typical, asked)  # type: ignore[arg-type]
    return paces


def _rows(batch: Batch) -> int:
    return sum(own.sequences * own.all_rows for own in batch.forwards)


def _seconds(blueprint: Blueprint, pace: Pace, batches: Sequence[Batch]) -> float:
    """Layers by their calls and rows, and everything beside them by rows."""
    kinds = [kind_of(blueprint.anatomy, index) for index in range(len(blueprint.anatomy.layers))]
    found = 0.0
    for own in (own for batch in batches for own in batch.forwards):
        found += own.sequences * own.all_rows * pace.beside
        for kind, rows in zip(kinds, own.rows, strict=True):
            found += pace.fixed[kind] + own.sequences * int(rows) * pace.per_row[kind]
    return found


def _whole_vocabulary(blueprint: Blueprint, stage: Stage, batches: Sequence[Batch]) -> float:
    """Reading the whole head where a metric needs it, which the timed batch doesn't do: by a product."""
    if not any(metric.whole for metric in stage.job.metrics):
        return 0.0
    return head_flops(stage.job, batches, blueprint.size) / product_speed(torch.float32)


def _checks(blueprint: Blueprint, pace: Pace, stream: bool) -> float:
    """The engine's check: of a streamed model short forwards beside the trace's own."""
    if stream:
        kinds = [kind_of(blueprint.anatomy, index) for index in range(len(blueprint.anatomy.layers))]
        return BESIDE * sum(pace.fixed[kind] + BESIDE_ROWS * pace.per_row[kind] for kind in kinds)
    return pace.checks + len(blueprint.anatomy.layers) * pace.checks_per_layer


def _refuse_little_memory(blueprint: Blueprint) -> None:
    """MemoryError where a layer for the clock doesn't fit beside what there is."""
    if blueprint.loaded:
        return
    wide = 3 if blueprint.dtype in HALF else 1  # its checks are in float32
    needed = wide * max(layer.bytes for layer in blueprint.size.layers)
    there = available_memory()
    if there is not None and needed > 0.8 * there:
        raise MemoryError(f"a layer needs {needed / 1e9:.1f} GB")


def _by_product(
    blueprint: Blueprint, stages: Sequence[Stage], batches: Sequence[list[Batch]], reading: float
) -> list[float]:
    """Operations over the speed of a product of a batch's usual shape."""
    speed = product_speed(blueprint.dtype)
    found = []
    for stage, own in zip(stages, batches, strict=True):
        flops = float(layer_flops(own, blueprint.size).sum())
        flops += head_flops(stage.job, own, blueprint.size)
        found.append(max(flops / speed, reading * len(stage.scans)))
    return found


def product_speed(dtype: torch.dtype) -> float:
    """Operations a second of a product of 96 rows, on the processor."""
    rows, weight = torch.ones(_ROWS, _SIDE, dtype=dtype), torch.ones(_SIDE, _SIDE, dtype=dtype)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.linear(rows, weight)
        best = min(best, time.perf_counter() - start)
    return 4 * 2.0 * _ROWS * _SIDE * _SIDE / best


def _join_of(batches: Sequence[list[Batch]]) -> _core.Join:
    return _core.Join.AFTER_LAYER


def disk_speed(files: Sequence[Path]) -> float | None:
    """Bytes a second of the disk that the largest of these files lies on; None where there is none to read.

    Read past the cache where the system allows it.
    """
    there = [path for path in files if path.is_file() and path.stat().st_size >= _PIECE]
    if not there:
        return None
    path = max(there, key=lambda own: own.stat().st_size)
    flags = os.O_RDONLY | getattr(os, "O_DIRECT", 0)
    try:
        handle = os.open(path, flags)
    except OSError:  # a file system without direct reads
        handle = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(-1, _PIECE) as buffer:  # aligned, as direct reads want it
            done, start = 0, time.perf_counter()
            while done < _SAMPLE:
                count = os.readv(handle, [buffer])
                if count <= 0:
                    break
                done += count
                if count < _PIECE:
                    break
            seconds = time.perf_counter() - start
    except OSError:
        return None
    finally:
        os.close(handle)
    return done / seconds if done and seconds > 0 else None


def _short(failure: Exception) -> str:
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text[:120]}"
