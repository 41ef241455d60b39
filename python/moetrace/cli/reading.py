"""What is on disk, as text and as a report."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from moetrace.errors import ArgumentError, MissingPackageError, RunFolderError
from moetrace.metrics import LOGIT_DIFF
from moetrace.protocol.loading import load
from moetrace.protocol.report import Report
from moetrace.results.base import TraceResult
from moetrace.results.by_metric import MetricTraces
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.results.matched import MatchedTrace
from moetrace.results.metric_curves import MetricCurves
from moetrace.results.saved import META
from moetrace.results.scales import ScaleTrace


def write_report(folder: Path, out: Path | None, compare: str | None) -> Path:
    """Write a finished run's report; MissingPackageError where its packages aren't installed."""
    found = load(folder)
    if not isinstance(found, Report):
        raise RunFolderError(f"{folder} holds one trace, and a report is of a whole run; see moetrace show")
    target = folder / "report.html" if out is None else out
    try:
        write = import_module("moetrace.report").write_html
    except ImportError as failure:
        raise MissingPackageError(
            f'a report can\'t be written ({failure}): pip install "moetrace[report]"'
        ) from failure
    write(found, target, **({} if compare is None else {"compare": compare}))
    return target


def told(folder: Path, table: str | None, rows: int, options: dict[str, Any]) -> str:
    """What ``moetrace show`` prints. ``options``: arguments of a trace's summary."""
    found = _load(folder)
    if isinstance(found, Report):
        if options:
            raise ArgumentError(
                f"{folder} holds a run, whose tables are as its settings say; {_names(options)} "
                f"is for a trace, as {folder / 'traces' / 'layers'}"
            )
        return _run(found, table)
    if table is not None:
        raise ArgumentError(f"{folder} holds one trace; --table is for a run")
    if isinstance(found, KnockoutCurves | MetricCurves):
        return _curves(found, rows, options)
    each = found.values() if isinstance(found, MetricTraces) else [found]
    return "\n\n".join(_trace(own, rows, options) for own in each)


def _names(options: dict[str, Any]) -> str:
    return ", ".join(f"--{name}" for name in options)


def _load(folder: Path) -> TraceResult | MetricTraces | KnockoutCurves | MetricCurves | Report:
    try:
        return load(folder)
    except RunFolderError as failure:
        inside = sorted(place.parent for place in folder.glob(f"*/{META}"))
        if inside and not (folder / META).exists():
            names = ", ".join(map(str, inside[:5])) + (", …" if len(inside) > 5 else "")
            raise RunFolderError(
                f"{folder} holds no result itself; moetrace show takes one of {names}"
            ) from failure
        raise


def _run(found: Report, table: str | None) -> str:
    if table is not None:
        note = found.tables[table].attrs.get("note") if table in found.tables else None
        text = found.markdown(table).rstrip()
        return f"{text}\n\n{note}" if note else text
    counts = found.counts
    cost = f"{counts['forwards']:,} forwards, {counts['rows']:,} token rows, {counts['seconds']:.1f} s"
    return "\n\n".join([f"{found!r}\n{cost}", found.markdown(1).rstrip(), *found.notes.values()])


def _curves(found: KnockoutCurves | MetricCurves, rows: int, options: dict[str, Any]) -> str:
    if options:
        raise ArgumentError(f"the folder holds curves of a knock-out; {_names(options)} is for a trace")
    tables = [
        table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        for table in (found.areas(), found.rows.head(rows))
    ]
    more = (
        f"\n… {len(found.rows) - rows} more rows: --rows {len(found.rows)}" if len(found.rows) > rows else ""
    )
    return "\n\n".join([repr(found), *tables]) + more


def _trace(found: TraceResult, rows: int, options: dict[str, Any]) -> str:
    whole = found.table if isinstance(found, MatchedTrace | ScaleTrace) else found.summary
    table: pd.DataFrame = whole(**options)
    text = table.head(rows).to_string(index=False, float_format=lambda value: f"{value:.4g}")
    more = f"\n… {len(table) - rows} more rows: --rows {len(table)}" if len(table) > rows else ""
    model = found.provenance.get("model", {}).get("name") or "a model without a name"
    of = "" if found.metric == LOGIT_DIFF.name else f" of {found.metric}"
    head = f"{found.kind}: rescue{of} in {found.unit}, {len(found)} cases, {model}"
    failed = f", {len(found.failed)} cases left out" if len(found.failed) else ""
    return f"{head}{failed}\n\n{text}{more}\n\nnumerical floor {found.noise_floor:.1e} {found.unit}"
