"""Case sets as files and as tables.

A file holds the cases, where they came from, and digests of both: whatever was edited since is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from moetrace.arguments import as_path
from moetrace.cases.case import MORE, TEXTS, Case, case_columns, fingerprint
from moetrace.errors import CaseError, RecordError
from moetrace.files import write_atomically
from moetrace.integrity import json_digest

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "moetrace.cases"
VERSION = 2
_FIELDS = tuple(Case.__dataclass_fields__)
_Set = TypeVar("_Set")


class Origin(TypedDict):
    """Where a set's cases came from, as CaseSet takes it."""

    funnel: dict[str, int]
    dropped: dict[str, int]
    record_indices: Sequence[int]
    n_records: int


def case_frame(cases: Sequence[Case], record_indices: Sequence[int]) -> pd.DataFrame:
    """The table of :meth:`CaseSet.frame`."""
    import pandas as pd

    foils = [case.foil_id for case in cases]
    several = any(case.several_tokens for case in cases)
    return pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "relation_id": [case.relation_id for case in cases],
            "prompt": [case.prompt for case in cases],
            "n_tokens": [len(case.input_ids) for case in cases],
            "subject_start": [case.subject[0] for case in cases],
            "subject_stop": [case.subject[1] for case in cases],
            "true_id": [case.true_id for case in cases],
            "foil_id": pd.array(foils, dtype="Int64") if None in foils else foils,
            **({name: [getattr(c, name) for c in cases] for name in MORE} if several else {}),
            **{name: values for name, values in case_columns(cases).items() if name in TEXTS},
            "record_index": list(record_indices),
        }
    )


def write_case_set(cases: Sequence[Case], origin: Origin, path: str | os.PathLike[str]) -> None:
    """The work of :meth:`CaseSet.save`: a reader sees the old file or the new one, never a part."""
    target = as_path(path, "path")
    try:
        write_atomically(target, lambda beside: _write(cases, origin, beside, target.suffix))
    except UnicodeEncodeError as error:
        raise CaseError(
            f"a text of the cases is no valid Unicode ({error}); repair it before saving"
        ) from error
    except OverflowError as error:
        raise CaseError(f"{target}: an integer has more than 64 bits ({error}); save as .json") from error
    except OSError as error:
        raise RecordError(f"{target} can't be written ({error}); give another path") from error


def holds_case_set(path: str | os.PathLike[str]) -> bool:
    """Whether a file says of itself that it is a case set: it may still be a damaged one."""
    source = Path(path)
    try:
        with source.open("rb") as file:
            head = file.read(200)
    except (OSError, ValueError):  # nothing there, or no path at all
        return False
    if head.startswith(b"PAR1"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return FORMAT.encode() in (pq.read_schema(source).metadata or {})
        except (OSError, pa.ArrowException):
            return False
    return head.lstrip().startswith(b"{") and f'"{FORMAT}"'.encode() in head


def read_case_set(path: str | os.PathLike[str], build: Callable[..., _Set]) -> _Set:
    """The work of :meth:`CaseSet.load`: ``build(cases, **origin)`` of what the file holds."""
    source = as_path(path, "path")
    try:
        there = source.is_file()
    except OSError as error:  # a name too long
        raise RecordError(f"{str(source)!r:.80} can't be read ({error.strerror})") from error
    if not there:
        raise RecordError(f"{source}: there is no such file; expected one that CaseSet.save wrote")
    document = _read_parquet(source) if source.suffix == ".parquet" else _read_json(source)
    version = document.get("version")
    if document.get("format") != FORMAT or type(version) is not int or version != VERSION:
        older = " Make the cases anew: an older file can't be verified." if version == 1 else ""
        raise RecordError(
            f"{source}: format {document.get('format')!r:.80}, version {version!r:.80}; expected {FORMAT!r},"
            f" version {VERSION}, as CaseSet.save writes it.{older} Records are read by load_records"
        )
    try:
        columns = document["cases"]
        for name in TEXTS:  # which files of before they were kept lack
            columns.setdefault(name, [""] * len(columns["case_id"]))
        for name in MORE:
            columns.setdefault(name, [()] * len(columns["case_id"]))
        cases = [Case(*row) for row in zip(*(columns[name] for name in _FIELDS), strict=True)]
        origin = Origin(
            funnel=dict(document["funnel"]),
            dropped=dict(document["dropped"]),
            record_indices=list(columns["record_index"]),
            n_records=document["n_records"],
        )
        built = build(cases, **origin)
        found, told = _digests(cases, origin), dict(document["sha256"])
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        CaseError,
    ) as error:
        raise RecordError(
            f"{source}: the case set is incomplete or damaged ({error}); save it anew"
        ) from error
    fields = {str(field) for field in {*found, *told} if found.get(field) != told.get(field)}
    if changed := sorted(fields):
        raise RecordError(
            f"{source}: {', '.join(changed)} changed after the set was saved, since the digest is another;"
            " save it anew"
        )
    return built


def _write(cases: Sequence[Case], origin: Origin, path: Path, suffix: str) -> None:
    head = {
        "format": FORMAT,
        "version": VERSION,
        "n_records": origin["n_records"],
        "funnel": origin["funnel"],
        "dropped": origin["dropped"],
        "sha256": _digests(cases, origin),
    }
    if suffix == ".parquet":
        _write_parquet(cases, origin, head, path)
    else:
        document = {**head, "cases": _columns(cases, origin)}
        path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _digests(cases: Sequence[Case], origin: Origin) -> dict[str, str]:
    """Of the cases in their order and of all that says where they came from, filters in their order too."""
    texts = {name: values for name, values in case_columns(cases).items() if name in TEXTS}
    return ({"texts": json_digest(texts)} if texts else {}) | {
        "cases": fingerprint(cases),
        "record_index": json_digest(origin["record_indices"]),
        "n_records": json_digest(origin["n_records"]),
        "funnel": json_digest(list(origin["funnel"].items())),
        "dropped": json_digest(list(origin["dropped"].items())),
    }


def _columns(cases: Sequence[Case], origin: Origin) -> dict[str, list[Any]]:
    more = MORE if any(case.several_tokens for case in cases) else ()
    columns: dict[str, list[Any]] = {
        name: [getattr(case, name) for case in cases] for name in _FIELDS if name not in MORE or name in more
    }
    return columns | {"record_index": list(origin["record_indices"])}


def _write_parquet(cases: Sequence[Case], origin: Origin, head: dict[str, Any], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, text = pa.int64(), pa.string()
    types = {name: pa.list_(ids) for name in ("input_ids", "subject", *MORE)}
    types |= dict.fromkeys(("relation_id", "prompt", *TEXTS), text)
    columns = {
        name: pa.array(values, types.get(name, ids)) for name, values in _columns(cases, origin).items()
    }
    table = pa.table(columns).replace_schema_metadata({FORMAT: json.dumps(head)})
    pq.write_table(table, path)


def _read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        columns, text = table.to_pydict(), (table.schema.metadata or {}).get(FORMAT.encode())
        head = {} if text is None else dict(json.loads(text))
    except Exception as error:  # pyarrow raises many kinds for what isn't Parquet
        raise RecordError(
            f"{path}: not a whole Parquet file ({error}); was its writing cut short?"
        ) from error
    return head | {"cases": columns}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{path}: not a whole JSON document ({error}); was its writing cut short?"
        ) from error
    if not isinstance(document, dict):
        raise RecordError(
            f"{path}: a JSON {type(document).__name__}; expected the object that CaseSet.save writes."
            " Records are read by load_records"
        )
    return document
