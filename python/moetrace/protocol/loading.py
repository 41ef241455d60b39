"""Read back what is on disk: a trace, or a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetrace.arguments import as_path
from moetrace.cases import CaseSet
from moetrace.errors import ArgumentError, RecordError, RunFolderError
from moetrace.results.load import load as load_trace

if TYPE_CHECKING:
    from moetrace.protocol.report import Report
    from moetrace.results.base import TraceResult
    from moetrace.results.by_metric import MetricTraces
    from moetrace.results.knockout_curves import KnockoutCurves
    from moetrace.results.metric_curves import MetricCurves


def load(folder: str | Path) -> TraceResult | MetricTraces | KnockoutCurves | MetricCurves | Report:
    """A saved trace, the curves of a knock-out, or the report of a finished run of the protocol, verified.

    >>> mt.load("runs/layers").best, mt.load("runs/qwen3").tables["1"]

    Every value is compared with the digests that were kept: names and kinds of columns, their values in their
    order, the provenance, format and version. A table that another Parquet writer wrote again with the same
    values is the same table. Digests find damage and edits; they are no signature. A report's tables are
    worked out anew from the verified rows.

    Raises:
        RunFolderError: the folder holds neither, isn't finished, is of another format, or isn't as it was
            written; the message names the file and the field.
        ArgumentError: ``folder`` is no path.
    """
    path = as_path(folder, "folder")
    try:
        protocol = (path / "config.json").is_file() and (path / "traces").is_dir()
    except OSError:  # a name too long: load_trace says so
        protocol = False
    return _report(path) if protocol else load_trace(folder)


def _report(path: Path) -> Report:
    from moetrace.protocol.evidence import Evidence
    from moetrace.protocol.folder import CONFIG, STAGES, read_sealed, read_traces
    from moetrace.protocol.report import Report
    from moetrace.protocol.settings import Settings

    config = read_sealed(path / CONFIG)
    stages = read_sealed(path / STAGES) if (path / STAGES).exists() else {}
    if "finished" not in stages:
        done = ", ".join(stages) or "none"
        raise RunFolderError(
            f"{path} holds a run that isn't finished (stages done: {done}); make the same call again to go on"
        )
    try:
        settings = Settings(**config["settings"])
    except (ArgumentError, TypeError, KeyError) as failure:
        raise RunFolderError(
            f"{path / CONFIG} is of another version of moetrace ({failure}); read it with the version that "
            f"wrote it, {config.get('moetrace')!r:.20}"
        ) from failure
    names = [name for own in stages.values() for name in own["results"]]
    try:
        usable = CaseSet.load(path / "usable.json")
        relaxed = CaseSet.load(path / "relaxed.json") if "relaxed" in stages else None
    except RecordError as failure:
        raise RunFolderError(str(failure)) from failure
    found = Evidence(settings, usable, relaxed, read_traces(path, names), stages, config, _texts(path), path)
    return Report(found)


def _texts(path: Path) -> dict[int, dict[str, Any]]:
    try:
        return {int(i): own for i, own in json.loads((path / "texts.json").read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError) as failure:
        raise RunFolderError(
            f"{path / 'texts.json'} can't be read ({failure}); make the same call again"
        ) from None
