"""What a report holds, read in one place; what it lacks is None."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.arguments import refuse_type
from moetrace.cases import Case, CaseSet
from moetrace.results.base import TraceResult
from moetrace.results.display import interval_label
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace


def direct_of(holder: Any) -> npt.NDArray[np.float64] | None:
    """Direct effects of a trace or its arrays; None where they weren't measured or aren't defined (NaN)."""
    found = getattr(holder, "direct", None)
    return found if found is not None and np.isfinite(found).all() else None


class Source:
    """The attributes of a report that the page shows, each of which may be missing or None.

    settings, cases (all, usable, discovery, validation), traces, tables, star, layer, counts, stability,
    held_out, compare, provenance, texts. ArgumentTypeError for what is no report at all.
    """

    def __init__(self, report: Any) -> None:
        if not hasattr(report, "traces"):
            refuse_type(report, "report", "the report of a run, as run_protocol gives it")
        for name in ("traces", "cases", "tables", "texts"):
            if not isinstance(getattr(report, name, None), Mapping | None):
                refuse_type(getattr(report, name), f"report.{name}", "a dict, or None")
        self._report = report

    def get(self, name: str) -> Any:
        """An attribute, or None."""
        return getattr(self._report, name, None)

    def trace(self, name: str) -> Any:
        """A trace by its name, or None."""
        traces: Mapping[str, TraceResult] = self.get("traces") or {}
        return traces.get(name)

    def sweeps(self) -> dict[str, LayerTrace]:
        """Layer sweeps by which cases they are of, validation first."""
        found = {"validation": self.trace("layers_validation"), "discovery": self.trace("layers")}
        return {half: trace for half, trace in found.items() if trace is not None and len(trace)}

    def experts(self) -> dict[str, ExpertTrace]:
        """Expert traces by which cases they are of, validation first."""
        found = {"validation": self.trace("experts_validation"), "discovery": self.trace("experts")}
        return {half: trace for half, trace in found.items() if trace is not None and len(trace)}

    def widest_experts(self) -> dict[str, ExpertTrace]:
        """The same, but of the validation half the trace of all layers where there is one ("map")."""
        own, whole = self.experts(), self.trace("map")
        if whole is not None and len(whole):
            own = {"validation": whole, **{half: trace for half, trace in own.items() if half == "discovery"}}
        return own

    def case_set(self, name: str) -> CaseSet | None:
        """Cases by their name, or None."""
        return (self.get("cases") or {}).get(name)

    @property
    def usable(self) -> list[Case]:
        """The cases to explore: the usable ones, or those of the halves."""
        whole = self.case_set("usable")
        if whole is not None:
            return list(whole)
        halves = [self.case_set(name) for name in ("validation", "discovery")]
        return [case for half in halves if half is not None for case in half]

    @property
    def star(self) -> Expert | None:
        """The selected expert."""
        star = self.get("star")
        return None if star is None else Expert.of(star)

    @property
    def layer(self) -> int | None:
        """The selected layer; that of the expert, or the best of a sweep, where the report names none."""
        layer = self.get("layer")
        if layer is None and self.star is not None:
            return self.star.layer
        if layer is None and self.sweeps():
            return self.sweeps().get("discovery", next(iter(self.sweeps().values()))).best
        return None if layer is None else int(layer)

    def setting(self, name: str, default: Any) -> Any:
        """One setting, or a default where the report doesn't know it."""
        found = self.named("settings").get(name)
        return default if found is None else found

    @property
    def statistics(self) -> dict[str, Any]:
        """Arguments of a summary as the run's settings have them; the defaults where there are none."""
        found = getattr(self.get("settings"), "statistics", None)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def level(self) -> str:
        """The confidence of every interval, as text: "95 %"."""
        return f"{100 * self.statistics.get('confidence', 0.95):.6g} %"

    @property
    def interval(self) -> str:
        """What every interval is: "95 % percentile interval"."""
        return interval_label(**self.statistics)

    def named(self, name: str) -> dict[str, Any]:
        """An attribute that is a mapping or a plain object, as names and values."""
        value = self.get(name)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {str(key): item for key, item in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return asdict(value)
        return {key: item for key, item in vars(value).items() if not key.startswith("_")}

    @property
    def provenance(self) -> dict[str, Any]:
        """That of the run, or of its first trace."""
        own = self.named("provenance")
        traces = [trace for trace in (self.get("traces") or {}).values() if trace is not None]
        return own or (dict(traces[0].provenance) if traces else {})

    @property
    def model_name(self) -> str:
        """The run's label, or the name of the model's folder or on the hub, or its class."""
        label = self.setting("label", "")
        if label:
            return str(label)
        model = self.provenance.get("model", {})
        if not isinstance(model, Mapping):
            return str(model)
        name = str(model.get("name") or model.get("class") or "an unnamed model")
        # Where a model lay on somebody's disk is no title; its last two folders mostly name it.
        return "/".join(PurePath(name).parts[-2:]) if PurePath(name).is_absolute() else name

    def comparison(self) -> Callable[[str], Any] | None:
        """The report's own ``compare``, or None."""
        compare = self.get("compare")
        return compare if callable(compare) else None
