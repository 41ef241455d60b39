"""The cases and traces of a run by whom they are of: discovery, validation, all usable, relaxed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from moetrace.cases import CaseSet
from moetrace.protocol.evidence import Evidence, relaxed_experts, relaxed_layers
from moetrace.results.base import TraceResult
from moetrace.results.joined import concat


def cases_of(found: Evidence) -> dict[str, CaseSet]:
    """Case sets by name; "all" are usable and relaxed."""
    own = {"usable": found.usable, "discovery": found.discovery, "validation": found.validation}
    if found.relaxed is None:
        return {"all": found.usable, **own}
    relaxed = {
        "relaxed": found.relaxed,
        "relaxed_discovery": found.relaxed_discovery,
        "relaxed_validation": found.relaxed_validation,
    }
    return {"all": found.usable + found.fresh, **own, **relaxed}


def failed_of(found: Evidence) -> set[int]:
    """Ids of cases that some trace couldn't give finite logits for."""
    return {i for trace in found.traces.values() for i in trace.failed.case_id.tolist()}


def traces_of(
    found: Evidence, cases: Mapping[str, CaseSet], failed: Collection[int]
) -> dict[str, TraceResult]:
    """Traces by whom they are of; each holds its half's cases, in their order, without failed ones."""

    def of(trace: Any, name: str) -> Any:
        known = {*trace.cases.case_id.tolist(), *trace.provenance.get("inactive_case_ids", ())}
        kept = [case.case_id for case in cases[name]]
        return trace.subset([i for i in kept if i in known and i not in failed])

    traces = dict(found.traces)
    layers = traces.pop("layers")
    first, second = (traces.pop(f"experts_{half}", None) for half in ("discovery", "validation"))
    for name in ("relaxed_layers", "relaxed_experts"):
        traces.pop(name, None)
    own: dict[str, TraceResult] = {
        "layers": of(layers, "discovery"),
        "layers_validation": of(layers, "validation"),
        "layers_usable": of(layers, "usable"),
    }
    if first is not None:
        own["experts"] = of(first, "discovery")
    if first is not None and second is not None:
        own["experts_validation"] = of(second, "validation")
        own["experts_usable"] = of(concat([first, second]), "usable")
    if found.relaxed is not None:
        sweep = relaxed_layers(found)
        layer = sweep.subset(found.relaxed_discovery).best
        for name, trace in {"layers": sweep, "experts": relaxed_experts(found, layer)}.items():
            if trace is not None:
                own[f"relaxed_{name}"] = of(trace, "relaxed_discovery")
                own[f"relaxed_{name}_validation"] = of(trace, "relaxed_validation")
    return own | {name: of(trace, "validation") for name, trace in traces.items()}
