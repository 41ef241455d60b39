"""A run folder: every finished batch is on disk before the next begins, and the same call resumes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moetrace.arguments import as_path
from moetrace.engines.job import Job
from moetrace.engines.outcome import LayerRouting, Outcome, Values
from moetrace.errors import RunFolderError
from moetrace.files import is_passing, write_json, write_parquet
from moetrace.integrity import broken_seal, json_digest, sealed_frame, table_seal
from moetrace.metrics import PAPER, Asked
from moetrace.results.saved import CALL, refuse_other_content
from moetrace.trace.call_difference import differing_arguments
from moetrace.trace.provenance import model_facts

if TYPE_CHECKING:
    from moetrace.cases import CaseSet

FORMAT = 4
PARTS = "parts"
ROUTING = tuple(f.name for f in fields(LayerRouting))
BY_PATCH = ("patched", "direct", "direct_linear")
PRESENT = "present"
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


class RunFolder:
    """``call.json`` says what is traced; ``parts/*.parquet`` hold finished cases, one row a case.

    A part's Parquet metadata hold the digest of its call and the seal of its columns
    (:mod:`moetrace.integrity`). One that was edited, belongs to another run, or holds cases of another part
    is refused by name, and can be removed: its cases are then traced again.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], call: str, case_ids: frozenset[int]) -> None:
        self.path, self._shape, self._call, self._case_ids = path, shape, call, case_ids

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
    ) -> RunFolder:
        """Begin a run or go on with it. RunFolderError where the folder holds another call's run.

        ``details``: arguments of this kind of trace. ``how``: the engine that serves it and the attention.
        """
        path = as_path(out, "out")
        call = {"format": FORMAT, **call_facts(what, job, cases, details, metric), **how}
        call = json.loads(json.dumps(call))
        try:
            found = cls._read_call(path / CALL)
            if found is None:
                refuse_other_content(path, what)
                write_json(path / CALL, call)
        except OSError as failure:
            raise RunFolderError(f"{path} can't be used ({failure}); give another folder") from failure
        if found is not None and found.get("format") != FORMAT:
            raise RunFolderError(
                f"{path / CALL}: format is {found.get('format')!r:.80}; this version of moetrace reads "
                f"{FORMAT}: give another folder, or remove this one to trace anew"
            )
        if found is not None and found != call:
            changed = differing_arguments(found, call)
            raise RunFolderError(
                f"{path} holds a run of another call (different: {', '.join(changed)}); give another folder, "
                "or the same model, cases and arguments to go on with it"
            )
        ids = frozenset(case.case_id for case in cases)
        shape = (len(job.patches), job.draws, len(job.metrics) - 1)
        return cls(path, shape, json_digest(call), ids)

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

    def append(self, parts: Mapping[int, Outcome]) -> None:
        """Keep a finished batch."""
        columns: dict[str, Any] = {
            "case_id": list(parts),
            "clean": [float(part.clean[0]) for part in parts.values()],
            "noised": [part.noised[0].tolist() for part in parts.values()],
            **{
                name: [getattr(p, name)[0].ravel().tolist() for p in parts.values()]
                for name in (*BY_PATCH, PRESENT)
            },
        }
        for where in next(iter(parts.values())).routing:
            layer, place = where
            for name in ROUTING:
                column = [getattr(part.routing[where], name)[0].ravel().tolist() for part in parts.values()]
                columns[f"routing.{layer}.{place}.{name}"] = column
        columns |= _columns_of_metrics(list(parts.values()))
        try:
            table = pa.Table.from_pandas(pd.DataFrame(columns), preserve_index=False)
        except (pa.ArrowException, OverflowError) as failure:
            raise RunFolderError(
                f"a batch can't be written as a table ({failure}); expected case ids below 2^63"
            ) from failure
        seal = json.dumps({"call": self._call, **table_seal(table)}).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SEAL: seal})
        try:
            write_parquet(self.path / PARTS / self._name(parts), table)
        except OSError as failure:
            raise RunFolderError(
                f"{self.path} can't be written ({failure}); the batches that it holds stay: make room, and "
                "make the same call again to go on"
            ) from failure

    @staticmethod
    def _name(case_ids: Iterable[int]) -> str:
        digest = hashlib.sha256(",".join(map(str, sorted(case_ids))).encode())
        return f"{digest.hexdigest()[:16]}.parquet"

    def finished(self) -> dict[int, Outcome]:
        """Outcome of each finished case. RunFolderError names a part that isn't what this run wrote."""
        done: dict[int, Outcome] = {}
        owner: dict[int, str] = {}
        for path in sorted((self.path / PARTS).glob("*.parquet")):
            if is_passing(path.name):
                continue
            for row in self._read_part(path).to_dict("records"):
                case_id = int(row["case_id"])
                if case_id in owner:
                    raise _refused(path, f"case {case_id} is also in {owner[case_id]}")
                owner[case_id] = path.name
                patched, direct, linear = (
                    np.array(row[name], dtype=float).reshape(1, *self._shape[:2]) for name in BY_PATCH
                )
                done[case_id] = Outcome(
                    np.array([row["clean"]]),
                    np.array([row["noised"]], dtype=float),
                    patched,
                    direct,
                    linear,
                    np.array(row[PRESENT], dtype=bool).reshape(1, self._shape[0]),
                    self._routing(row),
                    tuple(self._values(row, place) for place in range(self._shape[2])),
                )
        return done

    def _read_part(self, path: Path) -> pd.DataFrame:
        """One part, verified."""
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()))
            text = (table.schema.metadata or {}).get(_SEAL)
            seal = None if text is None else json.loads(text)
            fault = None if seal is None else broken_seal(seal, table)
            call = None if seal is None else seal["call"]
        except Exception as failure:  # pyarrow raises many kinds for what isn't Parquet
            raise _refused(path, f"it can't be read ({failure})") from None
        if seal is None:
            raise _refused(path, "it has no digests, so something else wrote it")
        if call != self._call:
            raise _refused(path, f"it belongs to another run than {CALL}")
        if fault:
            raise _refused(path, f"it isn't what was written: {fault}")
        part = sealed_frame(table)
        if stray := set(part.case_id.tolist()) - self._case_ids:
            raise _refused(path, f"case {min(stray)} isn't one of this run's")
        return part

    def _values(self, row: Mapping[Any, Any], metric: int) -> Values:
        """One case's further metric from its columns."""
        head, swept = f"metric.{metric}.", {}
        for name, own in row.items():
            if str(name).startswith(f"{head}swept."):
                layer, place = map(int, str(name).split(".")[-2:])
                swept[layer, place] = _draws(own, self._shape[1])
        patched = np.array(row[f"{head}patched"], dtype=float).reshape(1, *self._shape[:2])
        noised = np.array([row[f"{head}noised"]], dtype=float)
        return Values(np.array([row[f"{head}clean"]]), noised, patched, swept)

    def _routing(self, row: Mapping[Any, Any]) -> dict[tuple[int, int], LayerRouting]:
        """One case's routing from its columns."""
        names = [str(name).split(".") for name in row if str(name).startswith("routing.")]
        found, draws = {}, self._shape[1]
        for layer, place in sorted({(int(name[1]), int(name[2])) for name in names}):
            own = (_draws(row[f"routing.{layer}.{place}.{name}"], draws) for name in ROUTING)
            found[layer, place] = LayerRouting(*own)
        return found


def _columns_of_metrics(parts: list[Outcome]) -> dict[str, Any]:
    """Columns of the metrics beside the logit difference."""
    columns: dict[str, Any] = {}
    for metric, first in enumerate(parts[0].others):
        values, head = [part.others[metric] for part in parts], f"metric.{metric}."
        columns[f"{head}clean"] = [float(own.clean[0]) for own in values]
        columns[f"{head}noised"] = [own.noised[0].tolist() for own in values]
        columns[f"{head}patched"] = [own.patched[0].ravel().tolist() for own in values]
        for where in first.swept:
            name = ".".join(map(str, where))
            columns[f"{head}swept.{name}"] = [own.swept[where][0].ravel().tolist() for own in values]
    return columns


def _draws(values: Any, draws: int) -> np.ndarray:
    """One case's flat values as (1, draws, n); n may be 0."""
    flat = np.asarray(values)
    if flat.dtype == object:  # numbers of which none is finite come back as nothing at all
        flat = flat.astype(float)
    return flat.reshape(1, draws, flat.size // draws)


def _refused(path: Path, fault: str) -> RunFolderError:
    return RunFolderError(f"{path} can't be used: {fault}; remove it to trace its cases again")
