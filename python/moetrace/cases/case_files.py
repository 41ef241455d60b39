"""Case sets as files and as tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from moetrace.cases.case import Case, fingerprint
from moetrace.errors import CaseError, RecordError

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "moetrace.cases"
VERSION = 1
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

    return pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "relation_id": [case.relation_id for case in cases],
            "prompt": [case.prompt for case in cases],
            "n_tokens": [len(case.input_ids) for case in cases],
            "subject_start": [case.subject[0] for case in cases],
            "subject_stop": [case.subject[1] for case in cases],
            "true_id": [case.true_id for case in cases],
            "foil_id": [case.foil_id for case in cases],
            "record_index": list(record_indices),
        }
    )


def write_case_set(cases: Sequence[Case], origin: Origin, path: str | os.PathLike[str]) -> None:
    """The work of :meth:`CaseSet.save`: a reader sees the old file or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.suffix == ".parquet":
            _write_parquet(cases, origin, temporary)
        else:
            document = {**_head(cases, origin), "cases": _columns(cases, origin)}
            temporary.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def read_case_set(path: str | os.PathLike[str], build: Callable[..., _Set]) -> _Set:
    """The work of :meth:`CaseSet.load`: ``build(cases, **origin)`` of what the file holds."""
    source = Path(path)
    if not source.is_file():
        raise RecordError(f"{source}: there is no such file; expected one that CaseSet.save wrote")
    document = _read_parquet(source) if source.suffix == ".parquet" else _read_json(source)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise RecordError(
            f"{source}: format {document.get('format')!r}, version {document.get('version')!r}; expected"
            f" {FORMAT!r}, version {VERSION}, as CaseSet.save writes it. Records are read by load_records"
        )
    try:
        columns = document["cases"]
        cases = [Case(*row) for row in zip(*(columns[name] for name in _FIELDS), strict=True)]
        origin = Origin(
            funnel=document["funnel"],
            dropped=document["dropped"],
            record_indices=columns["record_index"],
            n_records=document["n_records"],
        )
        built = build(cases, **origin)
    except (KeyError, TypeError, ValueError, CaseError) as error:
        raise RecordError(
            f"{source}: the case set is incomplete or damaged ({error}); save it anew"
        ) from error
    if fingerprint(cases) != document.get("fingerprint"):
        raise RecordError(
            f"{source}: the cases were changed after they were saved, since their fingerprint is another;"
            " save them anew"
        )
    return built


def _head(cases: Sequence[Case], origin: Origin) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint(cases),
        "n_records": origin["n_records"],
        "funnel": origin["funnel"],
        "dropped": origin["dropped"],
    }


def _columns(cases: Sequence[Case], origin: Origin) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [getattr(case, name) for case in cases] for name in _FIELDS}
    return columns | {"record_index": list(origin["record_indices"])}


def _write_parquet(cases: Sequence[Case], origin: Origin, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, text = pa.int64(), pa.string()
    types = {"input_ids": pa.list_(ids), "subject": pa.list_(ids), "relation_id": text, "prompt": text}
    columns = {
        name: pa.array(values, types.get(name, ids)) for name, values in _columns(cases, origin).items()
    }
    table = pa.table(columns).replace_schema_metadata({FORMAT: json.dumps(_head(cases, origin))})
    pq.write_table(table, path)


def _read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(
            f"{path}: not a whole Parquet file ({error}); was its writing cut short?"
        ) from error
    head = (table.schema.metadata or {}).get(FORMAT.encode())
    document: dict[str, Any] = json.loads(head) if head else {}
    return document | {"cases": table.to_pydict()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(
            f"{path}: not a whole JSON document ({error}); was its writing cut short?"
        ) from error
    if not isinstance(document, dict):
        raise RecordError(
            f"{path}: a JSON {type(document).__name__}; expected the object that CaseSet.save writes."
            " Records are read by load_records"
        )
    return document
