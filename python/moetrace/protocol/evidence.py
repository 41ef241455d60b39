"""What a run has traced, and what is selected from it: the same for a run just ended and a loaded one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moetrace.cases import CaseSet
from moetrace.protocol.settings import Settings
from moetrace.results.base import TraceResult
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.joined import concat
from moetrace.results.layers import LayerTrace
from moetrace.results.selection import NoRecurrentExpertError


@dataclass
class Evidence:
    """Cases and traces of a run.

    ``traces``: as they were made, by name of their stage. ``stages``: what each took. ``config``: the
    fingerprint. ``texts``: of the cases. ``folder``: where it is kept, if it is.
    """

    settings: Settings
    usable: CaseSet
    relaxed: CaseSet | None
    traces: dict[str, TraceResult]
    stages: dict[str, Any]
    config: dict[str, Any]
    texts: dict[int, dict[str, Any]]
    folder: Path | None

    @cached_property
    def _halves(self) -> tuple[CaseSet, CaseSet]:
        order: Any = self.settings.split
        return self.usable.split(self.settings.seed, self.settings.fraction, order)

    @property
    def discovery(self) -> CaseSet:
        """Cases that select."""
        return self._halves[0]

    @property
    def validation(self) -> CaseSet:
        """Cases on which what was selected is fixed."""
        return self._halves[1]

    def _relaxed_halves(self) -> tuple[CaseSet, CaseSet]:
        assert self.relaxed is not None
        order: Any = self.settings.relaxed_split
        return self.relaxed.split(self.settings.seed, self.settings.fraction, order)

    @property
    def relaxed_discovery(self) -> CaseSet:
        """Relaxed cases that select."""
        return self._relaxed_halves()[0]

    @property
    def relaxed_validation(self) -> CaseSet:
        """The other relaxed cases."""
        return self._relaxed_halves()[1]

    @property
    def fresh(self) -> CaseSet:
        """Relaxed cases that aren't strict ones."""
        assert self.relaxed is not None
        strict = {case.case_id for case in self.usable}
        return self.relaxed.take(i for i, case in enumerate(self.relaxed) if case.case_id not in strict)

    @property
    def layers(self) -> LayerTrace:
        """The sweep of all usable cases."""
        found = self.traces["layers"]
        assert isinstance(found, LayerTrace)
        return found

    def experts(self, name: str) -> ExpertTrace | None:
        """An expert trace by name, if it was made."""
        found = self.traces.get(name)
        assert found is None or isinstance(found, ExpertTrace)
        return found

    def known_experts(self, layer: int) -> set[int]:
        """Ids of the usable cases whose experts of a layer were traced."""
        parts = [self.experts("experts_discovery"), self.experts("experts_validation")]
        return {i for part in parts if part and layer in part.layers for i in traced_ids(part)}


def traced_ids(trace: TraceResult) -> list[int]:
    """Ids of a trace's cases, those that failed included."""
    return [*trace.cases.case_id.tolist(), *trace.failed.case_id.tolist()]


def layer_of(found: Evidence) -> int:
    """The layer with the highest mean rescue on discovery cases (section 3.3)."""
    return found.layers.subset(found.discovery).best


def expert_of(found: Evidence) -> tuple[Expert | None, str]:
    """The expert that recurrence-first selection takes on discovery cases, or why there is none."""
    return selected(found.experts("experts_discovery"), found.settings)


def selected(trace: ExpertTrace | None, settings: Settings) -> tuple[Expert | None, str]:
    """Recurrence-first selection (section 3.4) on the cases of a trace of one layer."""
    if trace is None:
        return None, "the model has no routed experts"
    mean: Any = settings.mean
    try:
        return trace.select(min_active=settings.min_active, mean=mean), ""
    except NoRecurrentExpertError as refusal:
        return None, str(refusal)


def relaxed_layers(found: Evidence) -> LayerTrace:
    """The sweep of the relaxed cases: the strict ones among them come from the strict run."""
    assert found.relaxed is not None
    parts: list[LayerTrace] = [found.layers]
    fresh = found.traces.get("relaxed_layers")
    if fresh is not None:
        assert isinstance(fresh, LayerTrace)
        parts.append(fresh)
    return concat(parts).subset(found.relaxed)


def relaxed_experts(found: Evidence, layer: int) -> ExpertTrace | None:
    """The experts of a layer on the relaxed cases."""
    assert found.relaxed is not None
    names = ("experts_discovery", "experts_validation", "relaxed_experts")
    parts = [part for name in names if (part := found.experts(name)) and part.layers == (layer,)]
    return concat(parts).subset(found.relaxed) if parts else None
