"""Where records come from: files, the Hugging Face hub, tables and lists."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from moetrace.arguments import as_list, shown
from moetrace.cases.layouts import short
from moetrace.errors import RecordError

HUB_NAMES = {"counterfact": "azhx/counterfact"}

Rows = list[Any]


def open_source(source: Any, split: str | None) -> tuple[Rows, str]:
    """The rows of a source as they stand, and what to call it in a message."""
    if isinstance(source, str | os.PathLike):
        return _open_named(source, split)
    if hasattr(source, "column_names") and hasattr(source, "features"):  # datasets.Dataset, unimported
        return _dataset_rows(source), "the given Dataset"
    if _is_dataset_dict(source):
        return _split_rows(source, split, "the given DatasetDict"), "the given DatasetDict"
    if hasattr(source, "to_dict") and hasattr(source, "iterrows"):
        return source.to_dict("records"), "the given DataFrame"
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise RecordError(
            f"a {type(source).__name__} is no source of records; expected a path, a hub id, a Dataset,"
            " a DataFrame or a list of dicts"
        )
    return as_list(source, "records", "a list of dicts"), f"the given {type(source).__name__}"


def _open_named(source: str | os.PathLike[str], split: str | None) -> tuple[Rows, str]:
    path = Path(source)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a null byte
        reason = getattr(error, "strerror", None) or error
        raise RecordError(
            f"{short(str(source))} is no path ({reason}); expected one, a hub id 'owner/name', or"
            " 'counterfact'. Records that are JSON text already are read by json.loads"
        ) from error
    if folder:
        return _folder_rows(path, split), str(path)
    if there:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise RecordError(
                f"{path}: unknown kind of file {path.suffix!r}; expected one of {', '.join(READERS)}"
            )
        return reader(path), str(path)
    name = HUB_NAMES.get(str(source), str(source))
    # A hub id is owner/name; anything with a known suffix or a deeper path was meant as a file.
    if isinstance(source, os.PathLike) or name.count("/") != 1 or path.suffix.lower() in READERS:
        raise RecordError(
            f"{short(str(source))}: there is no such file; expected a path, a hub id 'owner/name',"
            " or 'counterfact'"
        )
    return _split_rows(_load_dataset(name), split, name), name


def _folder_rows(path: Path, split: str | None) -> Rows:
    """A folder that ``save_to_disk`` wrote, or a local copy of a hub data set."""
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return _split_rows(_load_dataset(str(path), saved), split, str(path))


def _load_dataset(name: str, saved: bool = False) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RecordError(
            f"{name}: reading a data set needs the package datasets; pip install 'moetrace[data]', or give a"
            " JSON, CSV or Parquet file"
        ) from error
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the hub client raises some thirty kinds
        raise RecordError(f"{name}: datasets can't load it ({type(error).__name__}: {error})") from error


def _is_dataset_dict(source: Any) -> bool:
    return (
        isinstance(source, Mapping) and bool(source) and all(hasattr(v, "features") for v in source.values())
    )


def _split_rows(dataset: Any, split: str | None, name: str) -> Rows:
    if not isinstance(dataset, Mapping):
        return _dataset_rows(dataset)
    if split is not None and (not isinstance(split, str) or split not in dataset):
        raise RecordError(f"{name}: there is no split {shown(split)}; expected one of {', '.join(dataset)}")
    chosen = [split] if split is not None else list(dataset)
    rows = [row for part in chosen for row in _dataset_rows(dataset[part])]
    if len(chosen) > 1 and all(isinstance(row.get("case_id"), int) for row in rows):
        rows.sort(key=lambda row: row["case_id"])
    return rows


def _dataset_rows(dataset: Any) -> Rows:
    plain = dataset.with_format(None)  # a torch or numpy format would hand out tensors
    return [dict(row) for row in plain]


def _read_json(path: Path) -> Rows:
    text = _read_text(path)
    try:
        document = _parse(text, str(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one document a line, under another suffix
            return _parse_lines(text, path)
        raise RecordError(
            f"{path}: not whole JSON, it breaks off or goes wrong at line {error.lineno}, column"
            f" {error.colno} ({error.msg}); was the download cut short?"
        ) from error
    if not isinstance(document, list):
        raise RecordError(f"{path}: a JSON {type(document).__name__}; expected a list of records")
    return document


def _read_lines(path: Path) -> Rows:
    return _parse_lines(_read_text(path), path)


def _parse_lines(text: str, path: Path) -> Rows:
    rows = []
    # Not splitlines(): a JSON text may hold a bare line separator such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse(line, f"{path}: line {number}"))
        except json.JSONDecodeError as error:
            raise RecordError(
                f"{path}: line {number} is not whole JSON ({error.msg}); was the file cut short?"
            ) from error
    return rows


def _parse(text: str, where: str) -> Any:
    """A JSON document; what is JSON and yet can't be read is a RecordError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise RecordError(f"{where}: nested too deeply for records of facts") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise RecordError(f"{where}: a number can't be read ({error})") from error


def _read_table(path: Path) -> Rows:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # The csv module, not pandas: "NA" and "None" are subjects too, and a short row is no empty cell.
    lines = io.StringIO(_read_text(path), newline="")
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    rows = []
    try:
        for index, row in enumerate(reader):
            if None in row or None in row.values():  # more cells than the header has names, or fewer
                raise RecordError(
                    f"{path}: record {index} has {'more' if None in row else 'fewer'} fields than the"
                    f" header's {len(reader.fieldnames or ())}; was the file cut short, a comma not quoted?"
                )
            rows.append(row)
    except csv.Error as error:
        raise RecordError(
            f"{path}: line {reader.line_num} is not whole CSV ({error}); was the file cut short?"
        ) from error
    return rows


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except Exception as error:  # pyarrow raises many kinds for what isn't Parquet
        raise RecordError(
            f"{path}: not a whole Parquet file ({error}); was the download cut short?"
        ) from error
    try:
        rows: Rows = table.to_pylist()
    except Exception as error:  # times that Python has none for, text that isn't UTF-8
        raise RecordError(f"{path}: a value can't be read ({type(error).__name__}: {error})") from error
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: can't be read as UTF-8 text ({error})") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}
