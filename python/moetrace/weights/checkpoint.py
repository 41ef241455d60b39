"""A folder of safetensors: which tensor lies where in which file. Nothing but headers and JSON is read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from moetrace.arguments import shown
from moetrace.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000  # that of the format
_SAMPLES, _SAMPLE_BYTES = 64, 512  # of a file, for the digest
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """A file as it was when its header was read; ``modified`` in nanoseconds."""

    path: Path
    size: int
    modified: int


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: ``shard`` is its place among the shards, ``offset`` that of its first byte."""

    shard: int
    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder by their names in it."""

    folder: Path
    shards: tuple[Shard, ...]
    entries: Mapping[str, Entry]

    @cached_property
    def digest(self) -> str:
        """Of names, shapes, and some blocks of every file: the same for a copy, another for another model."""
        found = hashlib.sha256(repr(sorted(self.entries.items())).encode())
        for shard in self.shards:
            with shard.path.open("rb") as file:
                for place in range(0, shard.size, max(1, shard.size // _SAMPLES)):
                    file.seek(place)
                    found.update(file.read(_SAMPLE_BYTES))
        return found.hexdigest()

    def verify(self) -> None:
        """CheckpointError where a file is gone or isn't the one whose header was read."""
        for shard in self.shards:
            now = _look(shard.path, "it was there when the model was loaded")
            if now.size < shard.size:
                raise CheckpointError(
                    f"{shard.path} was cut off since the model was loaded: {now.size} bytes of {shard.size} "
                    "are left; put the file back, or load the model again"
                )
            if now != shard:
                raise CheckpointError(
                    f"{shard.path} was changed since the model was loaded ({shard.size} bytes, now "
                    f"{now.size}; or written again): its layers would be of two models; load the model again"
                )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Look a folder over.

    CheckpointError where there are no weights, only pickled ones, or where a file is missing, cut off, no
    safetensors, or lacks what the index says is in it.
    """
    promised = _promised(folder)
    shards: list[Shard] = []
    entries: dict[str, Entry] = {}
    for name, tensors in promised.items():
        shard = _look(folder / name, f"{INDEX} names it; the download isn't complete: fetch it again")
        found = _read_header(shard, len(shards))
        lacking = [tensor for tensor in tensors if tensor not in found]
        if lacking:
            raise CheckpointError(
                f"{shard.path} lacks {len(lacking)} of the {len(tensors)} tensors that {INDEX} says are in "
                f"it ({shown(lacking[0])} first): index and files are of different checkpoints; fetch both "
                "again"
            )
        shards.append(shard)
        entries.update(found)
    if not entries:
        raise CheckpointError(f"{folder}: its safetensors hold no tensors; fetch the checkpoint again")
    return Checkpoint(folder, tuple(shards), entries)


def _promised(folder: Path) -> dict[str, list[str]]:
    """Files with weights, and the tensors that the index says are in each."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; expected one with {SINGLE}, or {INDEX} and its files")
    if (folder / SINGLE).exists():
        return {SINGLE: []}
    if not (folder / INDEX).exists():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        found = f"found {shown(others)} alone" if others else "it holds no weights"
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX} ({found}); fetch the checkpoint's safetensors, or "
            "write them with save_pretrained"
        )
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        pairs = [(str(tensor), str(name)) for tensor, name in index["weight_map"].items()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as failure:
        raise CheckpointError(f"{folder / INDEX} can't be read ({failure}); fetch it again") from failure
    promised: dict[str, list[str]] = {}
    for tensor, name in sorted(pairs, key=lambda pair: pair[1]):
        promised.setdefault(name, []).append(tensor)
    for name in promised:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX} names {shown(name)}; expected safetensors in the same folder"
            )
    missing = [name for name in promised if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(promised)} files that {INDEX} names "
            f"({missing[0]} first); fetch them"
        )
    return promised


def _look(path: Path, note: str) -> Shard:
    try:
        found = path.stat()
    except OSError as failure:
        raise CheckpointError(f"{path} is missing ({failure.strerror}): {note}") from failure
    return Shard(path, found.st_size, found.st_mtime_ns)


def _read_header(shard: Shard, number: int) -> dict[str, Entry]:
    """The tensors of a file, which must be as long as they need."""
    try:
        with shard.path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_LONGEST_HEADER, shard.size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {shard.size}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _entry(own, number, 8 + length) for name, own in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as failure:
        raise CheckpointError(
            f"{shard.path} isn't a safetensors file, or is cut off in its header ({failure}); fetch it again"
        ) from failure
    needed = max((entry.offset + entry.bytes for entry in found.values()), default=0)
    if needed > shard.size:
        raise CheckpointError(
            f"{shard.path} is cut off: it has {shard.size} bytes of {needed}; fetch it again"
        )
    return found


def _entry(own: dict[str, Any], number: int, base: int) -> Entry:
    if own["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {own['dtype']!r}, which torch has no tensors of")
    start, stop = (int(place) for place in own["data_offsets"])
    dtype, shape = _DTYPES[own["dtype"]], tuple(int(size) for size in own["shape"])
    if not 0 <= start <= stop or stop - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} from byte {start} to {stop}")
    return Entry(number, base + start, stop - start, dtype, shape)
