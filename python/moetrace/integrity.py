"""Digests that tell whether a file still holds what was written into it.

They are over names, kinds and values, not over a file's bytes: a table that another Parquet writer wrote
again with the same content has the same digests, whatever its compression, chunks or width of integers.
They find damage, edits and mixed files. They are no signature: who edits the digests too isn't found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_SHOWN = 6


def json_digest(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys and the layout of its text."""
    plain = json.loads(json.dumps(value, allow_nan=False))  # tuples become lists, keys text, as in a file
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def table_seal(table: pa.Table) -> dict[str, Any]:
    """How many rows a table has, and kind and SHA-256 of each column: ``{"rows": 3, "columns": {…}}``."""
    columns = {}
    for name in table.column_names:
        array = _whole(table.column(name))
        digest = hashlib.sha256()
        _feed(digest, array)
        columns[name] = {"kind": _kind(array.type), "sha256": digest.hexdigest()}
    return {"rows": table.num_rows, "columns": columns}


def broken_seal(seal: Mapping[str, Any], table: pa.Table) -> str | None:
    """What of a table isn't as it was sealed, in words that name its columns; None where all is."""
    expected, names = seal["columns"], table.column_names
    if len(set(names)) < len(names):
        return f"columns repeat: {_listed(sorted(name for name in names if names.count(name) > 1))}"
    if missing := [name for name in expected if name not in names]:
        return f"column {_listed(missing)} is missing; it has {_listed(names)}"
    if extra := [name for name in names if name not in expected]:
        return f"column {_listed(extra)} was added"
    found = table_seal(table)
    for name, column in found["columns"].items():
        if column["kind"] != expected[name]["kind"]:
            return f"column {name!r} holds {column['kind']}; expected {expected[name]['kind']}"
    if found["rows"] != seal["rows"]:
        return f"it has {found['rows']} rows; expected {seal['rows']}"
    if changed := [name for name in expected if found["columns"][name] != expected[name]]:
        return f"column {_listed(changed)} holds other values than were written, or the same in another order"
    return None


def sealed_frame(table: pa.Table) -> pd.DataFrame:
    """What the seal covers and no more: columns in one width, without the metadata of a writer."""
    columns = {}
    for name in table.column_names:
        array = _whole(table.column(name))
        width = {"integers": pa.int64(), "numbers": pa.float64()}.get(_kind(array.type))
        columns[name] = array if width is None else array.cast(width)
    return pa.table(columns).to_pandas()


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"{name!r:.80}" for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _kind(kind: pa.DataType) -> str:
    """What a column holds, by the names that writers agree on: int32 and int64 are both integers."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if _is_list(kind):
        return f"lists of {_kind(kind.value_type)}"
    if pa.types.is_uint64(kind):
        return "unsigned integers"
    for is_one, name in (
        (pa.types.is_boolean, "booleans"),
        (pa.types.is_integer, "integers"),
        (pa.types.is_floating, "numbers"),
        (pa.types.is_string, "text"),
        (pa.types.is_large_string, "text"),
        (pa.types.is_null, "nothing"),
    ):
        if is_one(kind):
            return name
    return str(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _feed(digest: Any, array: pa.Array) -> None:
    """Every entry's bytes in one fixed encoding; lengths come first, so that no two arrays share one."""
    kind = _kind(array.type)
    digest.update(f"{kind}:{len(array)};".encode())
    if kind == "numbers":
        numbers = array.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
        digest.update(np.where(np.isnan(numbers), np.nan, numbers).astype("<f8").tobytes())
        return
    absent = array.is_null().to_numpy(zero_copy_only=False)
    digest.update(absent.tobytes() if absent.any() else b"")
    digest.update(b"|")
    if kind in ("integers", "unsigned integers"):
        width = pa.int64() if kind == "integers" else pa.uint64()
        digest.update(array.cast(width).fill_null(0).to_numpy(zero_copy_only=False).astype("<u8").tobytes())
    elif kind == "booleans":
        digest.update(array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())
    elif kind == "text":
        texts = array.fill_null("")
        _feed(digest, pc.binary_length(texts))
        digest.update("".join(texts.to_pylist()).encode())
    elif kind.startswith("lists of"):
        _feed(digest, pc.list_value_length(array).fill_null(0))
        _feed(digest, array.flatten())
    elif kind != "nothing":
        digest.update(repr(array.to_pylist()).encode("utf-8", "surrogatepass"))
