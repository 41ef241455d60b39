"""Which sets of experts a knock-out's curves switch off, and the curves that their runs give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_count, as_list, as_number, as_seed
from moetrace.effects import SHARES, faithfulness, frequency_matched_sets, random_sets
from moetrace.errors import ArgumentError
from moetrace.metrics import Metric
from moetrace.results.knockout_curves import CURVES, HEADS, SHARES_OF_CASES, KnockoutCurves

if TYPE_CHECKING:
    from moetrace.results.knockout import KnockoutTrace

MOST_DRAWS = 100
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CurveRuns:
    """What runs with sets of experts off gave, each (sets, cases): values of each metric; whether the true
    object was above the foil, NaN where a case has none; whether it was the model's first choice."""

    values: Mapping[Metric, Floats]
    above: Floats
    first: Bools

    def rows(self, index: Any) -> CurveRuns:
        """Some of the sets."""
        values = {metric: own[index] for metric, own in self.values.items()}
        return CurveRuns(values, self.above[index], self.first[index])

    @staticmethod
    def stack(parts: Sequence[CurveRuns]) -> CurveRuns:
        """Sets one after the other."""
        values = {m: np.concatenate([part.values[m] for part in parts]) for m in parts[0].values}
        above, first = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("above", "first")
        )
        return CurveRuns(values, above, first)


Run = Callable[[Bools, str | None], CurveRuns]


@dataclass(frozen=True)
class _Line:
    """One curve to run: ``sets``, columns that are off or kept, growing."""

    curve: str
    order: str
    draw: int
    sets: Sequence[tuple[int, ...]]


def curves_of(
    trace: KnockoutTrace,
    n: int,
    run: Run,
    *,
    by: str = "effect",
    draws: int = 3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> dict[str, KnockoutCurves]:
    """The curves of a trace, by metric. ``run``: runs sets of columns (bool (sets, sites)) switched off
    together, by the trace's own ablation or by another one."""
    draws, seed = as_count(draws, "draws", 0, MOST_DRAWS), as_seed(seed)
    sites = len(trace.sites)
    counts = _counts(shares, sites)
    order = trace.order(by)
    lines = [_Line("off", "importance", 0, _prefixes(order, range(n + 1)))]
    if draws:
        for name, found in (
            ("frequency", frequency_matched_sets(trace.clean_active, order[:n], draws, seed)),
            ("random", random_sets(sites, order[:n], draws, seed)),
        ):
            lines += [_Line("off", name, i, _prefixes(own, range(n + 1))) for i, own in enumerate(found)]
    lines.append(_Line("keep", "importance", 0, _prefixes(order, counts)))
    generator = np.random.default_rng([seed, 1])
    for draw in range(draws):
        lines.append(_Line("keep", "random", draw, _prefixes(generator.permutation(sites), counts)))
    facts = {"by": by, "draws": draws, "curve_seed": seed, "experts": [str(one) for one in trace.experts]}
    return _run(trace, lines, run, {**trace.provenance, "ranked_by": trace.metric, **facts})


def _run(
    trace: KnockoutTrace, lines: Sequence[_Line], run: Run, facts: dict[str, Any]
) -> dict[str, KnockoutCurves]:
    sites, kind = len(trace.sites), trace.provenance.get("ablation")
    masks: dict[str, list[Bools]] = {curve: [] for curve in CURVES}
    for line in lines:
        masks[line.curve] += [_off(line, own, sites) for own in line.sets]
    ends = [np.zeros(sites, np.bool_), np.ones(sites, np.bool_)]
    off = _once(masks["off"], run, None)
    # A router must choose someone: few experts can't be kept by masking the others.
    kept = _once(ends + masks["keep"], run, "zero" if kind == "reroute" else None)
    every = CurveRuns.stack([off, kept.rows(slice(2, None))])
    heads = [
        (one.curve, one.order, one.draw, len(own), len(own) / sites) for one in lines for own in one.sets
    ]
    rows = pd.DataFrame(heads, columns=list(HEADS)).assign(
        accuracy=_share(every.above), top_1=every.first.mean(axis=1)
    )
    sets = tuple(own for line in lines for own in line.sets)
    found = {}
    for metric, values in every.values.items():
        full, empty = kept.values[metric][:2].mean(axis=1).tolist()
        mean = values.mean(axis=1)
        own = rows.assign(**{metric.name: mean, "faithfulness": faithfulness(mean, empty, full)})
        known = {name: value for name, value in facts.items() if name != "metric_code"}
        known |= {"metric": metric.name, **({"metric_code": metric.code} if metric.code else {})}
        found[metric.name] = KnockoutCurves(own, sets, values, {**known, "full": full, "empty": empty})
    return found


def refuse_names(metrics: Sequence[Metric]) -> None:
    """ArgumentError where a function is called as one of the other columns of the curves' rows."""
    taken = (*HEADS, *SHARES_OF_CASES, "faithfulness", "metric", "sets")
    for metric in metrics:
        if metric.name in taken:
            raise ArgumentError(
                f"the metric function {metric.name!r} has the name of another column of the curves' rows "
                f"({', '.join(taken)}); give it another name"
            )


def _share(above: Floats) -> Floats:
    """Of the cases that have a foil; NaN where none has."""
    known = ~np.isnan(above[0])
    return above[:, known].mean(axis=1) if known.any() else np.full(len(above), np.nan)


def _off(line: _Line, own: Sequence[int], sites: int) -> Bools:
    """bool (sites,): which experts a set of a curve switches off."""
    mask = np.full(sites, line.curve == "keep")
    mask[list(own)] = line.curve == "off"
    return mask


def _once(masks: Sequence[Bools], run: Run, kind: str | None) -> CurveRuns:
    """The runs of sets, each set once: every curve starts, or ends, with all experts or none."""
    unique, place = np.unique(np.array(masks), axis=0, return_inverse=True)
    return run(unique, kind).rows(place.ravel())


def _prefixes(order: npt.NDArray[np.int64], counts: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(int(column) for column in order[:count]) for count in counts]


def _counts(shares: Any, sites: int) -> list[int]:
    """Numbers of experts for parts of all, each once; none and all are always among them."""
    given = [as_number(share, "shares", 0, 1) for share in as_list(shares, "shares", "a list of parts")]
    if not given:
        raise ArgumentError("shares is empty; expected parts of the experts from 0 to 1")
    return sorted({0, sites, *(round(share * sites) for share in given)})
