"""A run folder of a knock-out's curves: every set of experts that was run is on disk, and isn't run again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.cases import CaseSet
from moetrace.engines.job import Job
from moetrace.integrity import json_digest
from moetrace.metrics import Metric
from moetrace.results.curve_runs import CurveRuns
from moetrace.results.expert_arrays import Bools
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.trace.knockout_call import Call, details_of
from moetrace.trace.provenance import model_facts
from moetrace.trace.run_folder import SealedFolder, refused

if TYPE_CHECKING:
    from moetrace.cases import Case

FORMAT = 1


class CurveFolder(SealedFolder):
    """``parts/*.parquet`` hold finished sets, one file a set with a row for each case, sealed as the cases of
    other runs are. The sets are those of any ``n``, ``draws`` or ``shares``: a call with others goes on with
    what is there."""

    def __init__(self, path: Path, call: str, case_ids: Sequence[int], metrics: Sequence[Metric]) -> None:
        super().__init__(path, call, frozenset(case_ids))
        self._ordered, self._metrics = list(case_ids), tuple(metrics)

    @classmethod
    def of(cls, out: Path, call: Call, job: Job, cases: Sequence[Case]) -> CurveFolder:
        """Begin a run or go on with it. RunFolderError where the folder holds another call's run."""
        asked, own = call.common["metric"], CaseSet(list(cases))
        facts: dict[str, Any] = {
            "format": FORMAT,
            "what": KnockoutCurves.kind,
            "model": model_facts(job.anatomy.model),
            "cases": own.fingerprint(),
            "experts": json_digest(call.wanted.sites(job.anatomy)),
            "position": job.position,
            "mode": "knockout",
            "tokens": json_digest([job.tokens_of(case) for case in own]),
            "metric": [metric.facts() for metric in asked.metrics],
            "readout": job.readout.asked,
            "compute_dtype": call.common["compute_dtype"] or "",
            "details": details_of(call),
        }
        digest = cls.agreed_call(out, KnockoutCurves.kind, facts)
        return cls(out, digest, [case.case_id for case in own], asked.metrics)

    @staticmethod
    def name_of(off: Bools, kind: str) -> str:
        """The name of a set: which columns are off, and how."""
        return hashlib.sha256(kind.encode() + np.asarray(off, np.bool_).tobytes()).hexdigest()[:16]

    def append_sets(self, sets: Mapping[str, CurveRuns]) -> None:
        """Keep finished sets."""
        for name, own in sets.items():
            columns: dict[str, Any] = {"case_id": self._ordered, "set": [name] * len(self._ordered)}
            columns |= {f"value_{at}": own.values[metric][0] for at, metric in enumerate(self._metrics)}
            self.write_part(f"{name}.parquet", {**columns, "above": own.above[0], "first": own.first[0]})

    def finished_sets(self) -> dict[str, CurveRuns]:
        """Each finished set. RunFolderError names a part that isn't what this run wrote."""
        found = {}
        for path in self.part_files():
            part = self.read_part(path)
            if part.case_id.tolist() != self._ordered or set(part["set"]) != {path.stem}:
                raise refused(path, "it is another set's, or of other cases")
            names = [f"value_{at}" for at in range(len(self._metrics))]
            values = {m: part[name].to_numpy()[None] for m, name in zip(self._metrics, names, strict=True)}
            found[path.stem] = CurveRuns(values, part.above.to_numpy()[None], part["first"].to_numpy()[None])
        return found
