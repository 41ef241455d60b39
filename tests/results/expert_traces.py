"""Expert traces made from random routing, and what the paper's equations say about their rows.

The oracles are plain loops over the tidy rows of a trace, written from the equations alone.
"""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pandas as pd

from moetrace.cases import Case, CaseSet
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.experts import ExpertTrace

NO_FAILURES = pd.DataFrame({"case_id": [], "clean": [], "noised": [], "reason": []})


def make_trace(cases: pd.DataFrame, sites: list[tuple[int, int]], **arrays: np.ndarray) -> ExpertTrace:
    """A trace; what isn't given is as it would be if nothing were routed there."""
    shape = (len(cases), len(sites))
    noised = np.broadcast_to(cases.noised.to_numpy()[:, None], shape)
    active = arrays["clean_active"]
    rescue = arrays.setdefault("rescue", np.zeros(shape))
    defaults = {
        "noised_active": active,
        "clean_weight": np.where(active, 0.5, 0.0),
        "noised_weight": np.where(active, 0.25, 0.0),
        "delta_norm": np.where(active, 1.0, 0.0),
        "patched": noised + rescue,
    }
    table = pd.DataFrame(sites, columns=["layer", "expert"])
    provenance = {"self_check": 1e-6, "layers": sorted({layer for layer, _ in sites})}
    return ExpertTrace(cases, table, ExpertArrays(**{**defaults, **arrays}), NO_FAILURES, provenance)


def case_table(n: int, rng: np.random.Generator, relations: int) -> pd.DataFrame:
    """Cases with scattered ids and relations of unequal frequency."""
    return pd.DataFrame(
        {
            "case_id": rng.permutation(10 * n)[:n],
            "relation_id": [f"P{int(relations * rng.random() ** 2)}" for _ in range(n)],
            "clean": rng.normal(3, 1, n),
            "noised": rng.normal(0, 1, n),
            "null_rescue": rng.normal(0, 1e-7, n),
        }
    )


def routed(n: int, experts: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """bool (cases, experts): k of them in each case, the first ones more often."""
    score = rng.gumbel(size=(n, experts)) - np.linspace(0, 2, experts)
    return score >= np.sort(score, axis=1)[:, -k, None]


def random_trace(
    seed: int,
    n: int = 12,
    layers: tuple[int, ...] = (3, 5),
    experts: int = 6,
    k: int = 3,
    relations: int = 4,
    union: bool = False,
) -> ExpertTrace:
    """k of ``experts`` active in each case and layer; rescues so coarse that ties and zeros occur."""
    rng = np.random.default_rng(seed)
    cases = case_table(n, rng, relations)
    clean = np.hstack([routed(n, experts, k, rng) for _ in layers])
    noised = np.hstack([routed(n, experts, k, rng) for _ in layers])
    patched = clean | noised if union else clean
    rescue = np.where(patched, np.round(4 * rng.normal(0.2, 1, clean.shape)) / 4, 0.0)
    given = {
        "clean_active": clean,
        "noised_active": noised,
        "clean_weight": np.where(clean, rng.random(clean.shape), 0.0),
        "noised_weight": np.where(noised, rng.random(clean.shape), 0.0),
        "delta_norm": np.where(patched, rng.random(clean.shape) + 0.1, 0.0),
        "rescue": rescue,
    }
    if union:
        given["patched_active"] = patched
    return make_trace(cases, [(layer, expert) for layer in layers for expert in range(experts)], **given)


def small_trace(active: list[list[int]], rescue: list[list[float]], layer: int = 44) -> ExpertTrace:
    """One layer by hand: a row for each case; the first half of the cases is relation A, the rest B."""
    n = len(active)
    cases = pd.DataFrame(
        {
            "case_id": np.arange(n) + 100,
            "relation_id": ["A" if case < n / 2 else "B" for case in range(n)],
            "clean": np.full(n, 2.0),
            "noised": np.full(n, -1.0),
            "null_rescue": np.zeros(n),
        }
    )
    sites = [(layer, expert) for expert in range(len(active[0]))]
    return make_trace(cases, sites, clean_active=np.array(active, bool), rescue=np.array(rescue, float))


def take(trace: ExpertTrace, positions: np.ndarray) -> ExpertTrace:
    """The trace of some of the cases."""
    arrays = trace.arrays
    chosen = {
        field.name: getattr(arrays, field.name)[positions]
        for field in fields(arrays)
        if getattr(arrays, field.name) is not None
    }
    cases = trace.cases.iloc[positions].reset_index(drop=True)
    return ExpertTrace(cases, trace.sites, ExpertArrays(**chosen), trace.failed, trace.provenance)


def case_set(trace: ExpertTrace) -> CaseSet:
    """A case set with the trace's ids and relations, in its order."""
    rows = trace.cases.itertuples()
    return CaseSet(Case([1, 2, 3], (0, 1), 4, 5, row.case_id, row.relation_id) for row in rows)


def positions(trace: ExpertTrace, cases: CaseSet) -> np.ndarray:
    """Where the cases of a set are in the trace."""
    ids = trace.cases.case_id.tolist()
    return np.array([ids.index(case.case_id) for case in cases])


Case_rows = dict[int, dict[tuple[int, int], dict[str, object]]]


def by_case(trace: ExpertTrace) -> Case_rows:
    """case id -> (layer, expert) -> row, in the order of the cases."""
    found: Case_rows = {}
    for row in trace.rows.to_dict("records"):
        found.setdefault(row["case_id"], {})[row["layer"], row["expert"]] = row
    return found


def rescue_of(row: dict[str, object]) -> float:
    """A row's rescue in the paper's averages: zero unless clean-active (appendix A)."""
    return float(row["patched"]) - float(row["noised"]) if row["clean_active"] else 0.0


def oracle_selection(
    trace: ExpertTrace, layer: int | None, required: int, mean: str = "active"
) -> list[tuple[int, int]]:
    """Section 3.4: clean-active in at least ``required`` cases, highest mean rescue, ties as documented."""
    found = []
    cases = by_case(trace)
    for site in next(iter(cases.values())):
        if layer is not None and site[0] != layer:
            continue
        recurrence = sum(bool(rows[site]["clean_active"]) for rows in cases.values())
        total = sum(round(4 * rescue_of(rows[site])) for rows in cases.values())  # exact: quarters
        if recurrence >= required:
            over = recurrence if mean == "active" else len(cases)
            found.append((-Fraction(total, over), -recurrence, site))
    return [site for _, _, site in sorted(found)]


def oracle_others(rows: dict, star: tuple[int, int]) -> list[tuple[int, int]]:
    """Equation 11: the other clean-active experts of the star's layer."""
    return [site for site in rows if site[0] == star[0] and site != star and rows[site]["clean_active"]]
