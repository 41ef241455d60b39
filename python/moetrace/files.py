"""Files that are whole or absent: written beside their place, then moved into it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then replace ``path`` by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused, since it isn't JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)

    def write(beside: Path) -> None:
        beside.write_text(text + "\n", encoding="utf-8")

    write_atomically(path, write)


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically."""
    write_atomically(path, lambda beside: table.to_parquet(beside, index=False))
