"""A run folder: every finished batch is on disk before the next begins, and the same call resumes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.arguments import as_path
from moetrace.engines.job import Job
from moetrace.errors import RunFolderError
from moetrace.files import is_passing, write_json, write_parquet
from moetrace.integrity import broken_seal, json_digest, sealed_frame, table_seal
from moetrace.metrics import PAPER, Asked
from moetrace.results.saved import CALL, refuse_other_content
from moetrace.trace.call_difference import differing_arguments
from moetrace.trace.parts import Form
from moetrace.trace.provenance import model_facts

if TYPE_CHECKING:
    from moetrace.cases import CaseSet

FORMAT = 4
PARTS = "parts"
P = TypeVar("P")
_SEAL = b"moetrace.part"


def call_facts(
    what: str,
    job: Job,
    cases: CaseSet,
    details: Mapping[str, Any] | None,
    metric: Asked = PAPER,
) -> dict[str, Any]:
    """What tells one call from another: model, cases, patches and options, as JSON values."""
    return {
        "what": what,
        "model": model_facts(job.anatomy.model),
        "cases": cases.fingerprint(),
        "patches": hashlib.sha256(repr((job.patches, job.sweeps)).encode()).hexdigest(),
        **job.corruptor.corruption.facts(),
        "position": job.position,
        "mode": job.direction,
        "tokens": json_digest([job.tokens_of(case) for case in cases]),
        "metric": [own.facts() for own in metric.metrics],
        "several_metrics": metric.several,
        "readout": job.readout.asked,
        "details": dict(details or {}),
    }


class SealedFolder:
    """``call.json`` says what is run; ``parts/*.parquet`` hold finished cases, with a case_id in each row.

    A part's Parquet metadata hold the digest of its call and the seal of its columns
    (:mod:`moetrace.integrity`). One that was edited, belongs to another run, or holds cases of another part
    is refused by name, and can be removed: its cases are then traced again.
    """

    def __init__(self, path: Path, call: str, case_ids: frozenset[int]) -> None:
        self.path, self._call, self._case_ids = path, call, case_ids

    @classmethod
    def agreed_call(cls, path: Path, what: str, facts: Mapping[str, Any]) -> str:
        """The digest of a call that the folder holds, or holds from now on. RunFolderError where it holds
        another one. ``facts``: JSON values, with ``format``."""
        call = json.loads(json.dumps(facts))
        try:
            found = cls._read_call(path / CALL)
            if found is None:
                refuse_other_content(path, what)
                write_json(path / CALL, call)
        except OSError as failure:
            raise RunFolderError(f"{path} can't be used ({failure}); give another folder") from failure
        if found is not None and found.get("format") != call["format"]:
            raise RunFolderError(
                f"{path / CALL}: format is {found.get('format')!r:.80}; this version of moetrace reads "
                f"{call['format']}: give another folder, or remove this one to trace anew"
            )
        if found is not None and found != call:
            changed = differing_arguments(found, call)
            raise RunFolderError(
                f"{path} holds a run of another call (different: {', '.join(changed)}); give another folder, "
                "or the same model, cases and arguments to go on with it"
            )
        return json_digest(call)

    @staticmethod
    def _read_call(path: Path) -> dict[str, Any] | None:
        folder = path.parent
        if not path.exists():
            if folder.is_dir() and any(not is_passing(entry.name) for entry in folder.iterdir()):
                raise RunFolderError(f"{folder} isn't empty and holds no {CALL}; give a new folder")
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as failure:
            raise RunFolderError(
                f"{path} can't be read ({failure}); remove the folder to begin anew"
            ) from None
        if not isinstance(found, dict):
            raise RunFolderError(
                f"{path} holds a JSON {type(found).__name__}, not a call; remove the folder to begin anew"
            )
        return found

    def amend(self, **how: str) -> None:
        """Change how the call is served while the folder holds no cases yet."""
        call = {**(self._read_call(self.path / CALL) or {}), **how}
        write_json(self.path / CALL, call)
        self._call = json_digest(call)

    def write_part(self, name: str, columns: Mapping[str, Any]) -> None:
        """Write one file of finished cases, sealed; ``columns``: case_id and others."""
        try:
            table = pa.Table.from_pandas(pd.DataFrame(dict(columns)), preserve_index=False)
        except (pa.ArrowException, OverflowError) as failure:
            raise RunFolderError(
                f"a batch can't be written as a table ({failure}); expected case ids below 2^63"
            ) from failure
        seal = json.dumps({"call": self._call, **table_seal(table)}).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SEAL: seal})
        try:
            write_parquet(self.path / PARTS / name, table)
        except OSError as failure:
            raise RunFolderError(
                f"{self.path} can't be written ({failure}); the batches that it holds stay: make room, and "
                "make the same call again to go on"
            ) from failure

    def part_files(self) -> list[Path]:
        """The files of finished cases, in order."""
        files = sorted((self.path / PARTS).glob("*.parquet"))
        return [path for path in files if not is_passing(path.name)]

    def read_part(self, path: Path) -> pd.DataFrame:
        """One part, verified."""
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            text = (table.schema.metadata or {}).get(_SEAL)
            seal = None if text is None else json.loads(text)
            fault = None if seal is None else broken_seal(seal, table)
            call = None if seal is None else seal["call"]
        except Exception as failure:  # pyarrow raises many kinds for what isn't Parquet
            raise refused(path, f"it can't be read ({failure})") from None
        if seal is None:
            raise refused(path, "it has no digests, so something else wrote it")
        if call != self._call:
            raise refused(path, f"it belongs to another run than {CALL}")
        if fault:
            raise refused(path, f"it isn't what was written: {fault}")
        part = sealed_frame(table)
        if stray := set(part.case_id.tolist()) - self._case_ids:
            raise refused(path, f"case {min(stray)} isn't one of this run's")
        return part


class RunFolder(SealedFolder, Generic[P]):
    """The parts of a trace: one row a case.

    >>> folder = RunFolder.open(out, "layers", job, cases, None, how, metric, OutcomeForm.of(job))
    """

    def __init__(self, path: Path, form: Form[P], call: str, case_ids: frozenset[int]) -> None:
        super().__init__(path, call, case_ids)
        self._form = form

    @classmethod
    def open(
        cls,
        out: str | Path,
        what: str,
        job: Job,
        cases: CaseSet,
        details: Mapping[str, Any] | None,
        how: Mapping[str, str],
        metric: Asked,
        form: Form[P],
    ) -> RunFolder[P]:
        """Begin a run or go on with it. RunFolderError where the folder holds another call's run.

        ``details``: arguments of this kind of trace. ``how``: the engine that serves it and the attention.
        ``form``: of what is found of a case, as columns.
        """
        path = as_path(out, "out")
        digest = cls.agreed_call(
            path, what, {"format": FORMAT, **call_facts(what, job, cases, details, metric), **how}
        )
        ids = frozenset(case.case_id for case in cases)
        return cls(path, form, digest, ids)

    def append(self, parts: Mapping[int, P]) -> None:
        """Keep a finished batch."""
        self.write_part(
            self._name(parts), {"case_id": list(parts), **self._form.columns(list(parts.values()))}
        )

    @staticmethod
    def _name(case_ids: Iterable[int]) -> str:
        digest = hashlib.sha256(",".join(map(str, sorted(case_ids))).encode())
        return f"{digest.hexdigest()[:16]}.parquet"

    def finished(self) -> dict[int, P]:
        """What each finished case gave. RunFolderError names a part that isn't what this run wrote."""
        done: dict[int, P] = {}
        owner: dict[int, str] = {}
        for path in self.part_files():
            for row in self.read_part(path).to_dict("records"):
                case_id = int(row["case_id"])
                if case_id in owner:
                    raise refused(path, f"case {case_id} is also in {owner[case_id]}")
                owner[case_id] = path.name
                done[case_id] = self._form.read(row)
        return done


def refused(path: Path, fault: str) -> RunFolderError:
    """What to raise for a part that can't be used."""
    return RunFolderError(f"{path} can't be used: {fault}; remove it to trace its cases again")
