"""Read back what a result's ``save`` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from moetrace.errors import RunFolderError
from moetrace.results.base import TraceResult
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace
from moetrace.results.matched import MatchedTrace
from moetrace.results.scales import ScaleTrace

_KINDS: dict[str, type[TraceResult]] = {
    kind.kind: kind for kind in (LayerTrace, ExpertTrace, MatchedTrace, ScaleTrace, CoalitionTrace)
}


def load(folder: str | Path) -> TraceResult:
    """The result that was saved in a folder.

    >>> layers.save("runs/layers"); mt.load("runs/layers").best

    RunFolderError where the folder holds none, or one that can't be read.
    """
    path = Path(folder)
    if not (path / "meta.json").exists():
        raise RunFolderError(f"{path} holds no saved result: expected a file meta.json that .save() writes")
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        kind, provenance = meta["kind"], meta["provenance"]
        tables = [pd.read_parquet(path / f"{name}.parquet") for name in ("rows", "cases", "failed")]
    except Exception as failure:
        raise RunFolderError(f"the result in {path} can't be read: {failure}; save it again") from None
    if kind not in _KINDS:
        raise RunFolderError(f"{path} holds a result of kind {kind!r}; this version knows {sorted(_KINDS)}")
    return _KINDS[kind].from_files(tables[0], tables[1], tables[2], provenance)
