"""Resident memory at its peak: the process, the weights, and what a batch takes beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetrace.models.float32 import HALF
from moetrace.planning.work import Batch
from moetrace.trace.memory import BatchRows, batch_bytes, hidden_bytes, logits_bytes

if TYPE_CHECKING:
    from moetrace.planning.blueprint import Blueprint
    from moetrace.planning.stages import Stage

PROCESS = 520_000_000  # Python, torch, transformers and their threads, measured on Linux


def peak_memory(
    blueprint: Blueprint,
    working: Blueprint,
    stages: Sequence[Stage],
    batches: Sequence[list[Batch]],
    stream: bool,
) -> int:
    """Bytes of a fresh process that traces the stages one after the other.

    ``working``: in the dtype that is computed in, of which one layer's weights and all beside the layers are
    there too where it isn't that of the weights.
    """
    size, anatomy = blueprint.size, working.anatomy
    largest = max(layer.bytes for layer in size.layers)
    weights = size.bytes
    if stream:  # one layer computes while the next is read
        weights += min(2, len(size.layers)) * largest - size.layer_bytes
    # The engine's check is in float32, a layer's weights at once and all beside the layers.
    wide = 2 * (largest + size.bytes - size.layer_bytes) if blueprint.dtype in HALF and not stream else 0
    beside = 0
    for stage, own in zip(stages, batches, strict=True):
        rows = [
            BatchRows(forward.sequences, forward.all_rows, forward.read)
            for batch in own
            for forward in batch.forwards
        ]
        waiting = hidden_bytes(anatomy, sum(batch.sequences * batch.rows for batch in rows))
        most = max(batch_bytes(anatomy, row) + logits_bytes(stage.job, row) for row in rows)
        beside = max(beside, waiting + most)
    if working.dtype != blueprint.dtype:
        return PROCESS + weights + 2 * (largest + size.bytes - size.layer_bytes) + beside
    return PROCESS + weights + max(wide, beside)
