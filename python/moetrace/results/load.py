"""Read back what a result's ``save`` wrote."""

from __future__ import annotations

from pathlib import Path

from moetrace.errors import RunFolderError
from moetrace.results.base import TraceResult
from moetrace.results.by_metric import MetricTraces, read_tables
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.expert_map import ExpertMap
from moetrace.results.experts import ExpertTrace
from moetrace.results.knockout import KnockoutTrace
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.results.layer_map import LayerMap
from moetrace.results.layers import LayerTrace
from moetrace.results.matched import MatchedTrace
from moetrace.results.metric_curves import MetricCurves
from moetrace.results.paths import PathTrace
from moetrace.results.routes import RouteTrace
from moetrace.results.saved import Saved, read_saved
from moetrace.results.scales import ScaleTrace
from moetrace.results.screen import ScreenTrace

_KINDS: dict[str, type[TraceResult]] = {
    kind.kind: kind
    for kind in (
        LayerTrace,
        ExpertTrace,
        MatchedTrace,
        ScaleTrace,
        CoalitionTrace,
        ScreenTrace,
        RouteTrace,
        PathTrace,
        KnockoutTrace,
    )
}
_MAPS: dict[str, type[TraceResult]] = {LayerMap.kind: LayerMap, ExpertMap.kind: ExpertMap}


def load(folder: str | Path) -> TraceResult | MetricTraces | KnockoutCurves | MetricCurves:
    """The result that was saved in a folder, verified.

    >>> layers.save("runs/layers"); mt.load("runs/layers").best

    Every value is compared with the digests that ``save`` kept: names and kinds of columns, their values in
    their order, the provenance, format and version. A table that another Parquet writer wrote again with
    the same values is the same table. Digests find damage and edits; they are no signature.

    Raises:
        RunFolderError: the folder holds no result, one of another format, or one that isn't as it was
            saved; the message names the file and the field.
        ArgumentError: ``folder`` is no path.
    """
    saved = read_saved(folder)
    if saved.kind not in (*_KINDS, KnockoutCurves.kind):
        raise RunFolderError(
            f"{folder} holds a result of kind {saved.kind!r}; this version knows "
            f"{sorted([*_KINDS, KnockoutCurves.kind])}"
        )
    try:
        if saved.kind == KnockoutCurves.kind:
            return _curves(saved)
        kind = (_KINDS | _MAPS if "position" in saved.tables["rows"] else _KINDS)[saved.kind]
        if isinstance(saved.provenance.get("metric"), list):
            return MetricTraces.from_saved(kind, saved)
        rows, cases, failed = saved.tables.values()
        return read_tables(kind, rows, cases, failed, saved.provenance)
    except Exception as failure:
        raise RunFolderError(
            f"the tables in {folder} don't make a {saved.kind} result ({failure}); save it again"
        ) from failure


def _curves(saved: Saved) -> KnockoutCurves | MetricCurves:
    if isinstance(saved.provenance["metric"], list):
        return MetricCurves.from_saved(saved)
    return KnockoutCurves.from_tables(saved.tables, saved.provenance)
