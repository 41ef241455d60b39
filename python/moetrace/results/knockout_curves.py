"""What a model can still do as more of its experts are switched off, and with few of them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_choice, as_count, as_list, as_number, as_seed
from moetrace.effects import (
    SHARES,
    cmd,
    cpr,
    faithfulness,
    frequency_matched_sets,
    importance_order,
    random_sets,
)
from moetrace.errors import ArgumentError
from moetrace.results.display import result_html
from moetrace.results.knockout_pictures import draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.results.knockout import KnockoutTrace

CURVES = ("off", "keep")
MOST_DRAWS = 100
VALUES = ("logit_diff", "accuracy", "top_1", "faithfulness")
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CurveRuns:
    """What runs with sets of experts off gave, (sets, cases): logit differences (equation 1), and whether the
    true object was the model's first choice of all tokens."""

    differences: Floats
    first: Bools


@dataclass(frozen=True, eq=False)
class KnockoutCurves:
    """Experts switched off together, the most important first, and the opposite: only these kept.

    >>> curves = knock.greedy(8)
    >>> curves.rows, curves.areas(), curves.plot(), curves.plot("keep", "faithfulness")

    Attributes:
        rows: tidy, one row for each curve, order, draw and count of experts. ``curve``: "off" or "keep";
            ``order``: "importance", "random" or "frequency" (controls of equal routing frequency, in "off"
            alone); ``draw``; ``count`` and ``share``, experts switched off or kept, and their part of all
            traced ones; over the cases ``accuracy`` (true above foil), ``top_1`` (true above every token)
            and ``logit_diff`` (mean, logits); and ``faithfulness``.
        sets: of each row the columns of the trace that it switches off or keeps.
        differences: float64 (rows, cases), logit differences case by case.

    Faithfulness is that of the MIB benchmark (Mueller et al. 2025): (m(C) - m(empty)) / (m(full) - m(empty)),
    m the mean logit difference, C the traced experts that are on, "empty" none of them, "full" all.
    """

    rows: pd.DataFrame
    sets: tuple[tuple[int, ...], ...]
    differences: Floats
    facts: dict[str, Any]

    @property
    def cpr(self) -> float:
        """Integrated circuit performance ratio of MIB: the area under the faithfulness of the kept experts,
        the most important first, over their share from 0 to 1."""
        return self._keep("importance", 0, cpr)

    @property
    def cmd(self) -> float:
        """Integrated circuit-model distance of MIB: the area between that faithfulness and 1."""
        return self._keep("importance", 0, cmd)

    def areas(self) -> pd.DataFrame:
        """Areas of each order, means over its draws: order, draws, cpr, cmd and off.

        ``off``: the mean faithfulness as experts are switched off one by one, the area under that curve over
        the count; the lower, the more they are missed. NaN where the order doesn't have the curve.
        """
        found = []
        for order, own in self.rows.groupby("order", sort=False):
            draws = sorted(own.draw.unique())
            kept = [(self._keep(order, d, cpr), self._keep(order, d, cmd)) for d in draws]
            lines = [own[(own.curve == "off") & (own.draw == d)].faithfulness.to_numpy() for d in draws]
            off = [cpr(np.linspace(0, 1, len(f)), f) if len(f) > 1 else np.nan for f in lines]
            ratio, distance = np.mean(kept, axis=0)
            found.append((order, len(draws), ratio, distance, float(np.mean(off))))
        return pd.DataFrame(found, columns=["order", "draws", "cpr", "cmd", "off"])

    def _keep(self, order: Any, draw: int, area: Callable[..., float]) -> float:
        own = self.rows[(self.rows.curve == "keep") & (self.rows.order == order) & (self.rows.draw == draw)]
        return area(own.share.to_numpy(), own.faithfulness.to_numpy()) if len(own) else float("nan")

    def plot(self, curve: str = "off", value: str = "logit_diff", ax: Axes | None = None) -> Axes:
        """One value over the number of experts switched off, or over the part that is kept.

        >>> curves.plot(), curves.plot("keep", "faithfulness")

        ``curve``: "off" or "keep". ``value``: "logit_diff", "accuracy", "top_1" or "faithfulness". Needs
        matplotlib.
        """
        curve, value = as_choice(curve, "curve", CURVES), as_choice(value, "value", VALUES)
        title = {"off": "Experts switched off", "keep": "Only some experts kept"}[curve]
        how = f"{title} (ablation {self.facts['ablation']}), {self.differences.shape[1]} cases"
        return draw_curves(self.rows, curve, value, how, ax)

    def __repr__(self) -> str:
        return (
            f"KnockoutCurves({int(self.rows[self.rows.curve == 'off']['count'].max())} of "
            f"{self.facts['experts']} experts switched off, {self.differences.shape[1]} cases, cpr "
            f"{self.cpr:.3f}, cmd {self.cmd:.3f})"
        )

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.areas(), None, ["Areas as of .areas(); .rows has the curves."])


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
    run: Callable[[Bools, str | None], CurveRuns],
    *,
    by: str = "effect",
    draws: int = 3,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> KnockoutCurves:
    """The curves of a trace. ``run``: runs sets of columns (bool (sets, sites)) switched off
    together, by the trace's own ablation or by another one."""
    draws, seed = as_count(draws, "draws", 0, MOST_DRAWS), as_seed(seed)
    sites = len(trace.sites)
    counts = _counts(shares, sites)
    order = importance_order(trace.effects, by)
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
    return _run(trace, lines, run, {"by": by, "draws": draws, "seed": seed, "experts": sites})


def _run(
    trace: KnockoutTrace,
    lines: Sequence[_Line],
    run: Callable[[Bools, str | None], CurveRuns],
    facts: dict[str, Any],
) -> KnockoutCurves:
    sites, kind = len(trace.sites), trace.provenance.get("ablation")
    masks: dict[str, list[Bools]] = {curve: [] for curve in CURVES}
    for line in lines:
        masks[line.curve] += [_off(line, own, sites) for own in line.sets]
    ends = [np.zeros(sites, np.bool_), np.ones(sites, np.bool_)]
    off = _once(masks["off"], run, None)
    # A router must choose someone: few experts can't be kept by masking the others.
    kept = _once(ends + masks["keep"], run, "zero" if kind == "reroute" else None)
    full, empty = kept.differences[:2].mean(axis=1)
    differences = np.concatenate([off.differences, kept.differences[2:]])
    first = np.concatenate([off.first, kept.first[2:]])
    heads = [
        (one.curve, one.order, one.draw, len(own), len(own) / sites) for one in lines for own in one.sets
    ]
    rows = pd.DataFrame(heads, columns=["curve", "order", "draw", "count", "share"]).assign(
        accuracy=(differences > 0).mean(axis=1),
        top_1=first.mean(axis=1),
        logit_diff=differences.mean(axis=1),
        faithfulness=faithfulness(differences.mean(axis=1), float(empty), float(full)),
    )
    sets = tuple(own for line in lines for own in line.sets)
    known = {"ablation": kind, "full": float(full), "empty": float(empty)}
    return KnockoutCurves(rows, sets, differences, facts | known)


def _off(line: _Line, own: Sequence[int], sites: int) -> Bools:
    """bool (sites,): which experts a set of a curve switches off."""
    mask = np.full(sites, line.curve == "keep")
    mask[list(own)] = line.curve == "off"
    return mask


def _once(
    masks: Sequence[Bools], run: Callable[[Bools, str | None], CurveRuns], kind: str | None
) -> CurveRuns:
    """The runs of sets, each set once: every curve starts, or ends, with all experts or none."""
    unique, place = np.unique(np.array(masks), axis=0, return_inverse=True)
    found = run(unique, kind)
    return CurveRuns(found.differences[place.ravel()], found.first[place.ravel()])


def _prefixes(order: npt.NDArray[np.int64], counts: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(int(column) for column in order[:count]) for count in counts]


def _counts(shares: Any, sites: int) -> list[int]:
    """Numbers of experts for parts of all, each once; none and all are always among them."""
    given = [as_number(share, "shares", 0, 1) for share in as_list(shares, "shares", "a list of parts")]
    if not given:
        raise ArgumentError("shares is empty; expected parts of the experts from 0 to 1")
    return sorted({0, sites, *(round(share * sites) for share in given)})
