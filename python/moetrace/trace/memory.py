"""How much memory there is, how much a trace takes, and the refusal of one that doesn't fit.

An estimate is of a batch's rows where they are most, in the layer that takes most, and, where weights come
layer by layer, of the hidden states of all rows. It is rough, so a trace is refused only where it exceeds
everything that is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moetrace._native import _core
from moetrace.cases.forced import ForcedCase
from moetrace.engines.reference import sequences_together
from moetrace.engines.sweeps import HELD
from moetrace.engines.tree import TreeEngine
from moetrace.errors import LayoutError, MemoryBudgetError, MemoryBudgetWarning
from moetrace.models.experts import top_k_of
from moetrace.models.forward import LOGITS_AT_ONCE
from moetrace.weights import source_of

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.job import Engine, Job
    from moetrace.models.anatomy import Anatomy

_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
CLOSE = 0.8  # of what there is: a warning
_UNLIMITED = 1 << 60  # what cgroup v1 says where there is no limit
_GROUPS = Path("/sys/fs/cgroup")
# Of control groups, versions 2 and 1: limit, use, and what of the use is only cached files.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class BatchRows:
    """A batch where it is largest: sequences, rows of each, and rows of each that are read out."""

    sequences: int
    rows: int
    read: int


def batch_bytes(anatomy: Anatomy, batch: BatchRows) -> int:
    """What one batch takes beside the weights: intermediates of a layer, masks, rows that are read out."""
    rows, size = batch.sequences * batch.rows, _element_size(anatomy)
    masks = batch.sequences * batch.rows**2 * (1 + 2 * size)
    heads = int(getattr(anatomy.config, "num_attention_heads", 0) or 0)
    if getattr(anatomy.config, "_attn_implementation", "") == "eager":
        masks += 2 * heads * batch.sequences * batch.rows**2 * size  # every head's scores are there at once
    ending = 8 * batch.sequences * batch.read * anatomy.hidden_size * 3  # float64, for direct effects
    return rows * row_bytes(anatomy) + masks + ending


def logits_bytes(job: Job, batch: BatchRows) -> int:
    """Logits of the whole vocabulary, where a metric needs them: some rows of one sequence at a time, or, by
    the model's own head, all that are read out.
    """
    if not any(metric.whole for metric in job.metrics):
        return 0
    vocab = job.anatomy.vocab_size
    part = min(batch.read * vocab, max(LOGITS_AT_ONCE, vocab)) * (4 + 3 * 8)  # and what metrics make of them
    own_head = job.readout.asked == "model"
    return part + batch.sequences * batch.read * vocab * _element_size(job.anatomy) * own_head


def row_bytes(anatomy: Anatomy) -> int:
    """What a token row takes while a layer runs: hidden states, queries to values, experts' intermediates."""
    config, width, size = anatomy.config, anatomy.hidden_size, _element_size(anatomy)
    names = ("moe_intermediate_size", "intermediate_size")
    inner: Any = next((found for name in names if (found := getattr(config, name, 0))), 4 * width)
    inner = int(max(inner) if isinstance(inner, list | tuple) else inner)
    copies = 1
    if anatomy.sparse_layers:
        with suppress(LayoutError):  # a config that doesn't say: trace_layers serves such a model
            copies = top_k_of(config)
    return int(size * (12 * width + copies * (2 * width + 3 * inner)))


def hidden_bytes(anatomy: Anatomy, rows: int) -> int:
    """Hidden states of all rows of a trace, which wait between two layers."""
    return rows * anatomy.hidden_size * _element_size(anatomy)


def _element_size(anatomy: Anatomy) -> int:
    return max(1, next(anatomy.model.parameters()).element_size())


def available_memory(device: torch.device | str = "cpu") -> int | None:
    """Bytes that a process can still take there; None where nobody says.

    On a processor what the kernel says is available, within the limits of the process's control groups.
    """
    kind = torch.device(device)
    if kind.type == "cuda":
        free, _ = torch.cuda.mem_get_info(kind)
        return int(free + torch.cuda.memory_reserved(kind) - torch.cuda.memory_allocated(kind))
    if kind.type != "cpu":
        return None
    found = [value for value in (_of_machine(), *_of_groups()) if value is not None]
    return min(found, default=None)


def _of_machine(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _of_groups(root: Path = _GROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What the limits of this process's control groups, and of those above them, leave."""
    for place in _group_folders(root, own):
        for limit_name, use_name, cached in _FILES:
            limit, use = _number(place / limit_name), _number(place / use_name)
            if limit is not None and use is not None and limit < _UNLIMITED:
                yield max(0, limit - use + _cached(place / "memory.stat", cached))


def _group_folders(root: Path, own: Path) -> Iterator[Path]:
    """``own`` has a line for each hierarchy: its number, its controllers (none in version 2), and a path."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        place = top / name.strip("/")
        yield from (place, *(parent for parent in place.parents if parent.is_relative_to(top)))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _cached(path: Path, name: str) -> int:
    """Files that are only cached, and give way."""
    try:
        lines = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for key, value in lines if key == name), 0)
    except (OSError, ValueError):
        return 0


def check_memory(engine: Engine, cases: Sequence[Case], budget: int) -> None:
    """Refuse a trace that needs more memory than there is, before it begins.

    ``budget``: token rows that it is cut by. MemoryBudgetError says how much is needed, how much there is,
    and which ``batch_tokens`` would do; MemoryBudgetWarning where it is close.
    """
    anatomy = engine.job.anatomy
    device = _device(anatomy)
    there = available_memory(device)
    if there is None:
        return
    needed = _needed(engine, cases)
    if needed <= CLOSE * there:
        return
    told = f"the trace needs about {shown_bytes(needed)} beside the model, and {shown_bytes(there)} are free"
    advice = _advice(engine, cases, budget, CLOSE * there)
    if needed > there:
        raise MemoryBudgetError(f"{told} on {device}: {advice}")
    warnings.warn(f"{told} on {device}; if it runs out, {advice}", MemoryBudgetWarning, stacklevel=4)


def _needed(engine: Engine, cases: Sequence[Case]) -> int:
    """Bytes of the largest batch, and of rows that wait while others pass a layer."""
    anatomy = engine.job.anatomy
    batches = [rows_of(engine, [cases[index] for index in batch]) for batch in engine.batches(cases)]
    waiting = 0
    if source_of(anatomy.model) is not None:  # batches side by side
        waiting = min(HELD, hidden_bytes(anatomy, sum(own.sequences * own.rows for own in batches)))
    return waiting + max(batch_bytes(anatomy, own) + logits_bytes(engine.job, own) for own in batches)


def _advice(engine: Engine, cases: Sequence[Case], budget: int, allowed: float) -> str:
    """The largest of some smaller budgets that would do, or what else would."""
    whole = rows_of(engine, cases)
    smaller = min(budget, whole.sequences * whole.rows)
    while isinstance(engine, TreeEngine) and smaller > 1:
        smaller = smaller * 3 // 4
        if _needed(TreeEngine(engine.job, engine.join, smaller), cases) <= allowed:
            return f"batch_tokens={smaller} would do"
    return "trace fewer cases at a time, fewer layers, or shorter prompts"


def rows_of(engine: Engine, cases: Sequence[Case]) -> BatchRows:
    """A batch of an engine where it is largest."""
    job, longest = engine.job, max(len(case.input_ids) for case in cases)
    begin, end = 0, len(job.runs)
    read = 1 + max(case.forced if isinstance(case, ForcedCase) else 0 for case in cases)  # of a run
    if not isinstance(engine, TreeEngine):
        return BatchRows(max(1, min(end, sequences_together(longest))), longest, read)
    if len(cases) == 1:
        parts = engine.cuts(cases[0], engine.batch_tokens)
        begin, end = max(parts, key=lambda part: part[1] - part[0])
    draws = job.draws
    rows = max(_core.tree_rows(job.shape_of(case), job.runs, begin, end, draws) for case in cases)
    return BatchRows(len(cases), rows, read * (1 + draws * (1 + end - begin)))


def _device(anatomy: Anatomy) -> torch.device:
    """Where the layers' weights are; the processor where they are nowhere yet."""
    weight = next(anatomy.layers[0].parameters(), None)
    return torch.device("cpu") if weight is None or weight.is_meta else weight.device


def shown_bytes(count: float) -> str:
    """A size as a person reads it.

    >>> shown_bytes(4_900_000_000)
    '4.9 GB'
    """
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1, "bytes"))
    return f"{count / size:.0f} {unit}" if count >= 100 * size or size == 1 else f"{count / size:.1f} {unit}"
