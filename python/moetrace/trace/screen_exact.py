"""The best sites of a screening, patched exactly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from moetrace._native import _core
from moetrace.cases import CaseSet
from moetrace.effects import rescue
from moetrace.engines.job import Patch, Sweep
from moetrace.errors import NoEffectWarning
from moetrace.metrics import Metric
from moetrace.models.anatomy import find_anatomy
from moetrace.models.experts import top_k_of
from moetrace.results.screen import ScreenTrace
from moetrace.trace.experts import expert_trace_of
from moetrace.trace.session import Session, trace

if TYPE_CHECKING:
    from moetrace.cases import Case


@dataclass(frozen=True)
class Exact:
    """What patches at one place gave: of some ``columns`` of the sites, in the cases ``reached``."""

    session: Session
    reached: list[int]
    columns: np.ndarray
    layers: tuple[int, ...]
    whole: bool

    def rescues(self, metric: Metric) -> np.ndarray:
        """Mean over draws, (cases that are finite, columns)."""
        session = self.session.of_metric(metric)
        if self.whole:
            return expert_trace_of(session, self.layers, union=False).effects
        found: np.ndarray = rescue(session.outcome.patched, session.outcome.noised).mean(axis=2)[:, :-1]
        return found


def verified(
    results: Mapping[str, ScreenTrace],
    metrics: Sequence[Metric],
    model: torch.nn.Module,
    cases: CaseSet,
    top: int | None,
    common: dict[str, Any],
) -> dict[str, ScreenTrace]:
    """The same with exact rescues of each one's best ``top`` sites, or of all: one pass for each position."""
    first = next(iter(results.values()))
    every = np.arange(len(first.sites))
    wanted = {name: every if top is None else np.sort(own.order()[:top]) for name, own in results.items()}
    columns = np.unique(np.concatenate(list(wanted.values())))
    found = _patched(first.sites, columns, model, cases, top is None, common)
    return {
        metric.name: _with_exact(results[metric.name], metric, wanted[metric.name], found, cases, top is None)
        for metric in metrics
    }


def _patched(
    sites: pd.DataFrame,
    columns: np.ndarray,
    model: torch.nn.Module,
    cases: CaseSet,
    whole: bool,
    common: dict[str, Any],
) -> list[Exact]:
    """By position; those that no case has, or where nothing can happen, are left out."""
    positions = sites.position.to_numpy() if "position" in sites else np.full(len(sites), -1)
    found = []
    for position in map(int, np.unique(positions[columns])):
        own = columns[positions[columns] == position]
        reached = [place for place, case in enumerate(cases) if _reaches(case, position)]
        if not reached:
            continue
        part = CaseSet([cases[place] for place in reached])
        asked = {**common, "position": position} if position >= 0 else dict(common)
        if common["out"] is not None:
            asked["out"] = Path(common["out"]) / "exact" / ("one" if position < 0 else str(position))
        session, layers = _traced(model, part, sites.iloc[own], asked, whole)
        found.append(Exact(session, reached, own, layers, whole))
    return found


def _reaches(case: Case, position: int) -> bool:
    """Whether a patch there can have an effect: the token exists and isn't before the subject. -1 is any."""
    return position < 0 or case.subject[0] <= position < len(case.input_ids)


def _traced(
    model: torch.nn.Module, cases: CaseSet, sites: pd.DataFrame, common: dict[str, Any], whole: bool
) -> tuple[Session, tuple[int, ...]]:
    """The session that patches some sites, or sweeps their layers; its last patch is the null patch."""
    anatomy = find_anatomy(model)
    layers = tuple(int(layer) for layer in np.unique(sites.layer))
    patches = [Patch.null(min(layers))]
    sweeps: list[Sweep] = []
    if whole:
        sweeps = [Sweep(layer, top_k_of(anatomy.config), False) for layer in layers]
    else:
        pairs = zip(sites.layer.tolist(), sites.expert.tolist(), strict=True)
        named = [Patch.of_experts(at, _core.Chosen.EXPERTS, experts=[expert]) for at, expert in pairs]
        patches = [*named, *patches]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # of early tokens in the last layer
        session = trace(
            model, cases, patches, sweeps=sweeps, anatomy=anatomy, what="screen", direct=False, **common
        )
    return session, layers


def _with_exact(
    result: ScreenTrace,
    metric: Metric,
    wanted: np.ndarray,
    found: Sequence[Exact],
    cases: CaseSet,
    whole: bool,
) -> ScreenTrace:
    """One metric's result with the rescues of its own columns."""
    values, table = result.rescue.copy(), result.cases
    values[:, wanted] = 0.0  # exactly, where a case has no such token or isn't clean-active there
    null = table.null_rescue.to_numpy().copy()
    facts = result.provenance | {"verified": "all" if whole else wanted.tolist()}
    failed = [result.failed]
    for exact in found:
        session = exact.session.of_metric(metric)
        finite = {case.case_id for case in session.cases}
        rows = np.array([place for place in exact.reached if cases[place].case_id in finite])
        mine = np.isin(exact.columns, wanted)
        own = exact.columns[mine]
        block = exact.rescues(metric)[:, mine]
        values[np.ix_(rows, own)] = np.where(result.clean_active[np.ix_(rows, own)], block, 0.0)
        drift = rescue(session.outcome.patched[:, -1], session.outcome.noised)
        null[rows] = np.fmax(np.abs(null[rows]), np.abs(drift).max(axis=1))
        failed.append(session.failed)
        choice, at = session.choice, session.place
        facts["self_check"] = max([facts["self_check"], *choice.difference[at : at + 1]])
        facts["null_floor"] = max([facts["null_floor"], *choice.null[at : at + 1]])
        facts["verified_by"] = choice.engine.name
    table = table.assign(null_rescue=null)
    gone = pd.concat([part for part in failed if len(part)]) if any(map(len, failed)) else result.failed
    stay = (~table.case_id.isin(gone.case_id)).to_numpy()
    facts["case_ids"] = table.case_id[stay].tolist()
    facts["failed_case_ids"] = gone.case_id.drop_duplicates().tolist()
    return ScreenTrace(
        table[stay].reset_index(drop=True),
        result.sites,
        result.effects[stay],
        result.clean_active[stay],
        values[stay],
        gone.drop_duplicates("case_id").reset_index(drop=True),
        facts,
    ).with_draws(None if result.by_draw is None else result.by_draw[stay])
