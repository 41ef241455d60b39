"""A run folder: every finished batch is on disk before the next begins, and the same call resumes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.engines.job import Job, LayerRouting, Outcome
from moetrace.errors import RunFolderError
from moetrace.files import write_json, write_parquet
from moetrace.trace.provenance import model_facts

if TYPE_CHECKING:
    from moetrace.cases import CaseSet

CALL = "call.json"
PARTS = "parts"
ROUTING = tuple(f.name for f in fields(LayerRouting))


class RunFolder:
    """``call.json`` says what is traced; ``parts/*.parquet`` hold finished cases, one row a case."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path, self._shape = path, shape

    @classmethod
    def open(
        cls, out: str | Path, what: str, job: Job, cases: CaseSet, details: Mapping[str, Any] | None
    ) -> RunFolder:
        """Begin a run or go on with it. RunFolderError where the folder holds another call's run."""
        path = Path(out)
        call = {
            "what": what,
            "model": model_facts(job.anatomy.model),
            "cases": cases.fingerprint(),
            "patches": hashlib.sha256(repr((job.patches, job.sweeps)).encode()).hexdigest(),
            "noise": {"scale": job.noise.scale, "seed": job.noise.seed, "draws": job.noise.draws},
            "position": job.position,
            "readout": job.readout.asked,
            "details": dict(details or {}),
        }
        found = cls._read_call(path / CALL)
        if found is None:
            write_json(path / CALL, call)
        elif found != json.loads(json.dumps(call)):
            changed = sorted(key for key in call if found.get(key) != json.loads(json.dumps(call[key])))
            raise RunFolderError(
                f"{path} holds a run of another call (different: {', '.join(changed)}); give another folder, "
                "or the same model, cases and arguments to go on with it"
            )
        return cls(path, (len(job.patches), job.noise.draws))

    @staticmethod
    def _read_call(path: Path) -> dict[str, Any] | None:
        if not path.exists():
            if path.parent.exists() and any(path.parent.iterdir()):
                raise RunFolderError(f"{path.parent} isn't empty and holds no {CALL}; give a new folder")
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as failure:
            raise RunFolderError(
                f"{path} can't be read ({failure}); remove the folder to begin anew"
            ) from None
        return found

    def append(self, parts: Mapping[int, Outcome]) -> None:
        """Keep a finished batch."""
        table = pd.DataFrame(
            {
                "case_id": list(parts),
                "clean": [float(part.clean[0]) for part in parts.values()],
                "noised": [part.noised[0].tolist() for part in parts.values()],
                "patched": [part.patched[0].ravel().tolist() for part in parts.values()],
            }
        )
        for layer in next(iter(parts.values())).routing:
            for name in ROUTING:
                column = [getattr(part.routing[layer], name)[0].ravel().tolist() for part in parts.values()]
                table[f"routing.{layer}.{name}"] = column
        name = hashlib.sha256(",".join(map(str, sorted(parts))).encode()).hexdigest()[:16]
        write_parquet(self.path / PARTS / f"{name}.parquet", table)

    def finished(self) -> dict[int, Outcome]:
        """Outcome of each finished case."""
        done: dict[int, Outcome] = {}
        for path in sorted((self.path / PARTS).glob("*.parquet")):
            try:
                table = pd.read_parquet(path)
            except Exception as failure:
                raise RunFolderError(
                    f"{path} can't be read ({failure}); remove it to trace its cases again"
                ) from None
            for row in table.to_dict("records"):
                done[int(row["case_id"])] = Outcome(
                    np.array([row["clean"]]),
                    np.array([row["noised"]], dtype=float),
                    np.array(row["patched"], dtype=float).reshape(1, *self._shape),
                    self._routing(row),
                )
        return done

    def _routing(self, row: Mapping[Any, Any]) -> dict[int, LayerRouting]:
        """One case's routing from its columns."""
        layers = {int(str(name).split(".")[1]) for name in row if str(name).startswith("routing.")}
        return {
            layer: LayerRouting(*(_draws(row[f"routing.{layer}.{name}"], self._shape[1]) for name in ROUTING))
            for layer in sorted(layers)
        }


def _draws(values: Any, draws: int) -> np.ndarray:
    """One case's flat values as (1, draws, n); n may be 0."""
    flat = np.asarray(values)
    return flat.reshape(1, draws, flat.size // draws)
