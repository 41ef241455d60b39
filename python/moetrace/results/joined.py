"""Traces of other cases as one trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from moetrace.arguments import as_list, refuse_type, shown
from moetrace.errors import ArgumentError, DuplicateCaseError
from moetrace.results.base import TraceResult
from moetrace.results.by_metric import MetricTraces
from moetrace.results.map_sites import widened
from moetrace.results.settings import SettingsMismatchError, refuse_other_settings

# What else of a provenance says what the columns are: the expert, the game of coalitions, the ablation.
_SAME = ("star", "masks", "players", "orders", "ablation", "reference")
_FLOORS = ("self_check", "null_floor")
_Trace = TypeVar("_Trace", bound=TraceResult | MetricTraces)


def concat(traces: Iterable[_Trace]) -> _Trace:
    """One trace of all cases of several, in their order: nothing is run again.

    >>> mt.concat([mt.load("runs/first"), mt.load("runs/second")]).summary()

    All must be of one kind and have the same sites, model, noise, position and read-out; no case may be in
    two. The provenance keeps what they share. Of the numerical floors it keeps the largest, and where they
    differ otherwise (engine, versions) it names all, as in "tree and reference". Traces of several metrics
    are joined metric by metric.

    Errors: ArgumentError for no trace, other kinds or other sites; SettingsMismatchError for other settings;
    DuplicateCaseError.
    """
    parts = as_list(traces, "traces", "a list of traces")
    if not parts:
        raise ArgumentError("traces is empty; expected at least one trace")
    if isinstance(parts[0], MetricTraces):
        joined: _Trace = _by_metric(parts)
        return joined
    for place, part in enumerate(parts):
        if not isinstance(part, TraceResult):
            refuse_type(part, f"traces[{place}]", "a trace")
    parts = widened(parts)
    first: Any = parts[0]
    for place, part in enumerate(parts):
        _refuse_unlike(parts[0], part, place)
    ids = Counter(case_id for part in parts for case_id in _traced(part))
    twice = [case_id for case_id, count in ids.items() if count > 1]
    if twice:
        raise DuplicateCaseError(
            f"{len(twice)} cases are in several traces: ids {twice[:20]}; expected each in one of them. "
            ".subset() takes cases out of a trace"
        )
    measured = [part._measured() for part in parts]
    draws = [part.by_draw for part in parts]
    known = [own for own in draws if own is not None]
    whole = first._rebuilt(
        _stacked([part._cases for part in parts]),
        {name: np.concatenate([own[name] for own in measured]) for name in measured[0]},
        _stacked([part.failed for part in parts]),
        _merged([part.provenance for part in parts]),
    )
    joined = whole.with_draws(np.concatenate(known) if known and len(known) == len(draws) else None)
    return joined


def _by_metric(parts: Sequence[Any]) -> Any:
    """Traces of several metrics each, joined metric by metric."""
    names = list(parts[0])
    for place, part in enumerate(parts):
        if not isinstance(part, MetricTraces) or list(part) != names:
            found = list(part) if isinstance(part, MetricTraces) else type(part).__name__
            raise ArgumentError(
                f"traces[{place}] is of {shown(found)} and traces[0] of the metrics {names}; expected the "
                "same metrics in the same order"
            )
    return MetricTraces({name: concat([part[name] for part in parts]) for name in names})


def _traced(part: TraceResult) -> list[int]:
    return [*part._cases.case_id.tolist(), *part.failed.case_id.tolist()]


def _refuse_unlike(first: TraceResult, part: TraceResult, place: int) -> None:
    """Refuse a trace that can't be joined to the first."""
    name = f"traces[{place}]"
    if type(part) is not type(first):
        raise ArgumentError(f"{name} is a {type(part).__name__} and traces[0] a {type(first).__name__}")
    refuse_other_settings(first, "traces[0]", part, name)
    for setting in _SAME:
        own, other = first.provenance.get(setting), part.provenance.get(setting)
        if own != other:
            raise SettingsMismatchError(
                f"traces[0] and {name} differ in {setting}: {shown(own)} against {shown(other)}"
            )
    if not first._sites.equals(part._sites):
        raise ArgumentError(
            f"{name} has {len(part._sites)} sites and traces[0] {len(first._sites)}, which aren't the same; "
            "trace both with the same layers and arguments"
        )
    mine, others = set(first._measured()), set(part._measured())
    if mine != others:
        raise ArgumentError(
            f"{name} and traces[0] differ in what was measured: {', '.join(sorted(mine ^ others))}; trace "
            "both with the same arguments"
        )


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table after the other; empty ones don't decide what a column holds."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else tables[0].copy()


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A provenance of all parts."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if name in part]
        if name.endswith("case_ids"):
            found[name] = [case_id for value in values for case_id in value]
        elif name in _FLOORS:
            known = [float(value) for value in values if value == value]
            found[name] = max(known, default=float("nan"))
        else:
            found[name] = _told(values)
    return found


def _told(values: Sequence[Any]) -> Any:
    """What all parts say, or what each of them says."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, dict) for value in values):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _told([value.get(name) for value in values]) for name in names}
    return " and ".join(dict.fromkeys(map(str, values)))
