"""A saved result on disk: three tables, and ``meta.json`` that says what they hold.

``meta.json`` has ``format``, ``kind``, the version that wrote it, for each table the seal of its columns
(:mod:`moetrace.integrity`), the provenance, and under ``sha256`` a digest of each of these fields. Whatever
was changed since is refused by the name of its file and field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace import __version__
from moetrace.arguments import as_path
from moetrace.errors import RunFolderError
from moetrace.files import current, is_passing, json_writer, parquet_writer, replace_together
from moetrace.integrity import broken_seal, json_digest, sealed_frame, table_seal

FORMAT = 2
META = "meta.json"
CALL = "call.json"
TABLES = ("rows", "cases", "failed")
_REMEDY = "save the result again, or trace it again"
_FIELDS = ("format", "kind", "moetrace", "tables", "provenance", "sha256")


@dataclass(frozen=True)
class Saved:
    """What a folder holds. ``kind``: of the result. ``tables``: rows, cases, failed."""

    kind: str
    tables: dict[str, pd.DataFrame]
    provenance: dict[str, Any]


def write_saved(folder: Any, saved: Saved) -> None:
    """Write into a new folder, an empty one, or over a result of the same kind; all of it or nothing."""
    path = as_path(folder, "folder")
    try:
        tables = {name: pa.Table.from_pandas(saved.tables[name], preserve_index=False) for name in TABLES}
        meta: dict[str, Any] = {
            "format": FORMAT,
            "kind": saved.kind,
            "moetrace": __version__,
            "tables": {name: table_seal(table) for name, table in tables.items()},
            "provenance": saved.provenance,
        }
        meta["sha256"] = _digests(meta)
        files = {f"{name}.parquet": parquet_writer(table) for name, table in tables.items()}
        files[META] = json_writer(meta)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as failure:
        raise RunFolderError(
            f"a {saved.kind} result can't be written as tables and JSON ({failure}); expected case ids below "
            "2^63 and text that is valid Unicode"
        ) from failure
    try:
        refuse_other_content(path, saved.kind, saved.provenance)
        replace_together(path, files, META)
    except OSError as failure:
        raise RunFolderError(f"{path} can't be written ({failure}); give another folder") from failure


def refuse_other_content(path: Path, kind: str, provenance: Mapping[str, Any] | None = None) -> None:
    """RunFolderError where a result of this kind would be written over, or among, something else.

    Into a run's folder goes that run's result alone: its model, noise and position are those of the call.
    """
    remedy = "give a new folder, or remove this one if nobody needs it"
    if not path.is_dir():
        if path.exists():
            raise RunFolderError(f"{path} is a file; expected a folder for a result: {remedy}")
        return
    names = sorted(entry.name for entry in path.iterdir() if not is_passing(entry.name))
    told = {META: ("kind", "a result"), CALL: ("what", "a run")}
    for name, (field, thing) in told.items():
        place = current(path, name, META)
        if not place.exists():
            continue
        content = _read_json(place, remedy)
        if content.get(field) != kind:
            raise RunFolderError(
                f"{path} holds {thing} of kind {content.get(field)!r:.80} (field {field!r} of {name}), and "
                f"this is one of kind {kind!r}: {remedy}"
            )
        if name == CALL and (other := _differing(content, provenance or {})):
            raise RunFolderError(
                f"{path} holds a run of another call (different: {', '.join(other)}), and this isn't its "
                f"result: {remedy}"
            )
    if names and not any(current(path, name, META).exists() for name in told):
        few = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise RunFolderError(f"{path} holds other files ({few}) and no result: {remedy}")


def _differing(call: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    """In what a run's call and a result differ, of what both tell."""
    found = []
    for field in ("model", "noise", "corruption", "position"):
        asked, told = call.get(field), provenance.get(field)
        if isinstance(asked, dict) and isinstance(told, dict):
            differ = any(asked[key] != told[key] for key in asked.keys() & told.keys())
        else:
            differ = asked is not None and told is not None and asked != told
        if differ:
            found.append(field)
    kinds = [{name for name in ("noise", "corruption") if facts.get(name)} for facts in (call, provenance)]
    if all(kinds) and kinds[0] != kinds[1]:
        found.append("corruption")
    return found


def read_saved(folder: Any) -> Saved:
    """Read and verify. RunFolderError names the file and the field that isn't as it was saved."""
    path = as_path(folder, "folder")
    meta = _read_meta(path)
    tables = {}
    for name in TABLES:
        file = f"{name}.parquet"
        try:
            # Read once, so that what is verified is what is used.
            data = current(path, file, META).read_bytes()
            table = pq.read_table(pa.BufferReader(data))
            fault = broken_seal(meta["tables"][name], table)
        except FileNotFoundError:
            raise RunFolderError(f"{path / file} is missing; {_REMEDY}") from None
        except Exception as failure:  # pyarrow raises many kinds for what isn't Parquet
            raise RunFolderError(f"{path / file} can't be read ({failure}); {_REMEDY}") from failure
        if fault:
            raise RunFolderError(f"{path / file} isn't what was saved: {fault}; {_REMEDY}")
        tables[name] = sealed_frame(table)
    return Saved(meta["kind"], tables, meta["provenance"])


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        place, there, file = current(path, META, META), path.exists(), path.is_file()
    except OSError as failure:  # a name too long
        raise RunFolderError(f"{str(path)!r:.80} can't be read ({failure.strerror})") from failure
    if not there or file:
        kind = "is a file; case sets are read by CaseSet.load" if file else "doesn't exist"
        raise RunFolderError(f"{path} {kind}; expected a folder that .save() or out= wrote")
    if not place.exists():
        unfinished = " but a run that isn't finished: make the same call again, with the same out="
        raise RunFolderError(
            f"{path} holds no saved result{unfinished if (path / CALL).exists() else ''}; expected a file "
            f"{META} that .save() writes"
        )
    meta = _read_json(place, _REMEDY)
    form = meta.get("format")
    if form == 1 and form is not True:
        raise RunFolderError(
            f"{place}: format is 1, an older one that can't be verified; expected {FORMAT}; {_REMEDY}"
        )
    if type(form) is not int or form != FORMAT:
        raise RunFolderError(
            f"{place}: format is {form!r:.80}; this version of moetrace reads format {FORMAT}. Read it with "
            f"the version that wrote it, or {_REMEDY}"
        )
    if missing := [field for field in _FIELDS if field not in meta]:
        raise RunFolderError(f"{place}: field {missing[0]!r} is missing; {_REMEDY}")
    if extra := sorted(set(meta) - set(_FIELDS)):
        raise RunFolderError(f"{place}: field {extra[0]!r:.80} was added; {_REMEDY}")
    try:
        found, told = _digests(meta), dict(meta["sha256"])
    except (AttributeError, TypeError, ValueError) as failure:
        raise RunFolderError(f"{place} can't be read ({failure}); {_REMEDY}") from failure
    if changed := sorted(field for field in {*found, *told} if found.get(field) != told.get(field)):
        raise RunFolderError(f"{place}: field {', '.join(changed):.200} was changed; {_REMEDY}")
    return meta


def _digests(meta: dict[str, Any]) -> dict[str, str]:
    """Of every field but the digests, and of every entry of the provenance."""
    found = {field: json_digest(meta[field]) for field in ("format", "kind", "moetrace", "tables")}
    return found | {f"provenance.{key}": json_digest(value) for key, value in meta["provenance"].items()}


def _read_json(place: Path, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise RunFolderError(f"{place} can't be read ({failure}); {remedy}") from failure
    if not isinstance(found, dict):
        raise RunFolderError(
            f"{place} holds a JSON {type(found).__name__}; expected the object that moetrace writes: {remedy}"
        )
    return found
