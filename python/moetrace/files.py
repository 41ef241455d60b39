"""Files that are whole or absent, and files that change together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Write = Callable[[Path], None]


def write_atomically(path: Path, write: Write) -> None:
    """Let ``write`` fill a file beside ``path``, then replace ``path`` by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        _sync(beside)  # a crash of the machine, too, leaves the old file or the new one
        os.replace(beside, path)
    finally:
        with suppress(OSError):  # what went wrong before is what a caller must hear of
            beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's content is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_writer(value: Any) -> Write:
    """Writes a JSON value; NaN is refused, since it isn't JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return lambda path: _ignore(path.write_text(text, encoding="utf-8"))


def parquet_writer(table: pa.Table) -> Write:
    """Writes a table as Parquet."""
    return lambda path: pq.write_table(table, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json_writer(value))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table atomically."""
    write_atomically(path, parquet_writer(table))


def replace_together(folder: Path, files: Mapping[str, Write], head: str) -> None:
    """Replace several files of a folder, ``head`` among them, so that a reader has all old or all new.

    >>> replace_together(folder, {"rows.parquet": write_rows, "meta.json": write_meta}, head="meta.json")

    The new files are staged under hidden names, the head last. From that stroke on they count, see
    :func:`current`; giving them their names is tidying, and a writer finishes what a killed one left.
    """
    order = [*(name for name in files if name != head), head]
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder, order)
    try:
        for name in order:
            write_atomically(_staged(folder, name), files[name])
    finally:
        if not _staged(folder, head).exists():
            for name in order:
                _staged(folder, name).unlink(missing_ok=True)
    _settle(folder, order)


def current(folder: Path, name: str, head: str) -> Path:
    """Where the content of a file stands that :func:`replace_together` wrote."""
    staged = _staged(folder, name)
    return staged if _staged(folder, head).exists() and staged.exists() else folder / name


def is_passing(name: str) -> bool:
    """Whether a file's name is one that is only there while something is written."""
    return name.startswith(".") and name.endswith((".part", ".new"))


def _staged(folder: Path, name: str) -> Path:
    return folder / f".{name}.new"


def _settle(folder: Path, order: list[str]) -> None:
    """Give staged files their names, the head last; without a staged head they don't count."""
    if _staged(folder, order[-1]).exists():
        for name in order:
            if _staged(folder, name).exists():
                os.replace(_staged(folder, name), folder / name)


def _ignore(_: object) -> None:
    """A value that nobody needs."""
