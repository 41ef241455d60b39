"""The knock-out's result: what the model loses without each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_choice, as_count, as_list, as_path
from moetrace.cases import case_keys
from moetrace.effects import ORDERS, SHARES, auroc, importance_order
from moetrace.errors import ArgumentError
from moetrace.metrics import Metric, MetricLike, as_metrics
from moetrace.ranks import here
from moetrace.results.base import TraceResult, summarise_first
from moetrace.results.curve_runs import CurveRuns, curves_of, refuse_names
from moetrace.results.display import result_html
from moetrace.results.expert_arrays import Bools, Counts, Floats
from moetrace.results.expert_name import Expert, ExpertLike, ExpertRangeError
from moetrace.results.further import read_only
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.results.knockout_pictures import KINDS, draw
from moetrace.results.metric_curves import MetricCurves
from moetrace.results.pictures import of_its_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Runs sets of sites (bool (sets, sites)) switched off together, on the cases of these ids, by the trace's own
# ablation or by another one, read off by the trace's own metric or by others, and kept in a run folder.
Runner = Callable[[Bools, Sequence[int], Any, Sequence[Metric], "Path | None"], CurveRuns]


class KnockoutTrace(TraceResult):
    """What switching each expert off does to the clean run: necessity beside a rescue's sufficiency.

    >>> knock = mt.trace_knockout(model, cases)
    >>> knock.important(3), knock.summary(), knock.plot()
    >>> knock.greedy(8).plot()

    A site is an expert. ``effects``: float64 (cases, sites), ablated minus clean in the metric's unit (logits
    unless another was asked for), below 0 where the recall needs the expert, or above 0 where a larger value
    is further from the clean run (kl, rank); exactly 0 where it isn't clean-active, and the row counts.
    ``clean_active``: bool (cases, sites), whether the clean run routes to it at the position, or at any of
    its tokens. ``donors``: int64 (cases, sites), with ``ablation="resample"`` the case whose contribution
    takes its place, -1 where it isn't clean-active; None otherwise.
    """

    kind: ClassVar[str] = "knockout"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "expert")

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
        clean_active: np.ndarray,
        donors: np.ndarray | None = None,
        runner: Runner | None = None,
    ) -> None:
        super().__init__(cases, sites, patched, effects, failed, provenance)
        self.clean_active: Bools = read_only(clean_active)
        self.donors: Counts | None = None if donors is None else read_only(donors)
        self._runner = runner

    @property
    def experts(self) -> list[Expert]:
        """The expert of each column of ``effects``."""
        return [
            Expert(int(layer), int(expert)) for layer, expert in self._sites[["layer", "expert"]].to_numpy()
        ]

    def normalised(self, **options: Any) -> pd.DataFrame:
        """ArgumentError: a knock-out has no corrupted run that its effects could be a share of."""
        raise ArgumentError(
            "a knock-out has no corrupted run, and so no drop that its effects could be a share of; "
            ".summary() has them in logits, and .greedy(n) as a share of what the whole model does"
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, ascending."""
        return tuple(sorted(set(self._sites.layer.tolist())))

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: one row for each case and expert.

        case_id, relation_id, [true, foil,] layer, expert, clean_active, clean, ablated, effect (= ablated -
        clean), and with ``ablation="resample"`` donor, the case whose contribution took its place.
        """
        n, m = self.effects.shape
        keys = self._cases[case_keys(self._cases)]
        table = {name: np.repeat(keys[name].to_numpy(), m) for name in keys}
        table |= {name: np.tile(self._sites[name].to_numpy(), n) for name in self.site_columns}
        table |= {
            "clean_active": self.clean_active.ravel(),
            "clean": np.repeat(self._cases.clean.to_numpy(), m),
            "ablated": self._patched.ravel(),
            "effect": self.effects.ravel(),
        }
        if self.donors is not None:
            table["donor"] = self.donors.ravel()
        return pd.DataFrame(table)

    def order(self, by: str = "effect") -> Counts:
        """Columns of ``effects``, the most important expert first.

        ``by``: "effect", the lowest mean effect first (of kl and rank the highest); "absolute", the largest
        in size, whichever its sign. NoCasesError for a trace without cases, as an empty subset.
        """
        self._refuse_no_cases()
        return importance_order(self._toward_recall * self.effects, by)

    def important(self, n: int = 1, by: str = "effect") -> list[Expert]:
        """The n most important experts, the first one first.

        >>> knock.important(3)

        ``by``: as in :meth:`order`. ArgumentError for more experts than were traced.
        """
        n = self._count(n)
        experts = self.experts
        return [experts[column] for column in self.order(by)[:n]]

    def auroc(self, experts: Iterable[ExpertLike], by: str = "effect") -> float:
        """How well the ranking finds these experts: 1 where each is ranked above every other expert.

        >>> knock.auroc([planted.star])

        ExpertRangeError for an expert that wasn't traced; ArgumentError where all or none are named.
        """
        column = {expert: place for place, expert in enumerate(self.experts)}
        positive = np.zeros(len(column), np.bool_)
        for named in as_list(experts, "experts", "a list of experts"):
            expert = Expert.of(named)
            if expert not in column:
                raise ExpertRangeError(f"{expert} isn't in this trace of {len(column)} experts")
            positive[column[expert]] = True
        self._refuse_no_cases()
        mean = self._toward_recall * self.effects.mean(axis=0)
        return auroc(-mean if as_choice(by, "by", ORDERS) == "effect" else np.abs(mean), positive)

    def greedy(
        self,
        n: int = 8,
        *,
        metric: MetricLike | None = None,
        by: str = "effect",
        draws: int = 3,
        shares: Sequence[float] = SHARES,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> KnockoutCurves:
        """Accuracy and the metric as the n most important experts are switched off together.

        >>> curves = knock.greedy(8)
        >>> curves.plot(), curves.cpr, curves.cmd
        >>> knock.greedy(8, metric=["logit_diff", "prob", "kl"]).areas()

        In the order of :meth:`order` (``by``), one more at a time, by the trace's ablation at its position;
        beside ``draws`` random sets of equal count, and ``draws`` of equal count and routing frequency.
        The opposite curve keeps only a part of the traced experts (``shares`` of them, the most important
        first) and switches the others off; with ablation "reroute" by "zero", since a router must choose
        someone. ``metric``: what is read off these runs, as of trace_layers, by default the trace's own; of a
        list a :class:`MetricCurves` of one each. ``out``: a run folder, in which every finished set stays:
        the same call, or one with another n, draws or shares, goes on with it, and the curves are saved there
        at the end. See :class:`KnockoutCurves`.

        Runs the model that was traced, which must still be there. A trace that was loaded or joined doesn't
        know it: ``mt.knockout_curves(trace, model, cases, n)``. ArgumentError for more experts than were
        traced; NoCasesError for a trace without cases.
        """
        if self._runner is None:
            raise ArgumentError(
                "this trace doesn't know its model, as one that was loaded or joined doesn't; use "
                "mt.knockout_curves(trace, model, cases, n)"
            )
        return self.curves(self._runner, n, metric, by=by, draws=draws, shares=shares, seed=seed, out=out)

    def curves(
        self,
        runner: Runner,
        n: int,
        metric: MetricLike | None,
        out: str | Path | None = None,
        **options: Any,
    ) -> KnockoutCurves:
        """The work of :meth:`greedy`, with the model's runs by ``runner``."""
        asked, ids = None if metric is None else as_metrics(metric), self._cases.case_id.tolist()
        metrics = () if asked is None else asked.metrics
        refuse_names(metrics)
        path = None if out is None else as_path(out, "out")

        def run(sets: Bools, kind: str | None) -> CurveRuns:
            return runner(sets, ids, kind, metrics, path)

        each = curves_of(self, self._count(n), run, **options)
        found: Any = MetricCurves(each) if asked is not None and asked.several else next(iter(each.values()))
        curves: KnockoutCurves = found
        if path is not None and here().first:
            curves.save(path)
        return curves

    def _count(self, n: int) -> int:
        n = as_count(n, "n")
        if n > len(self._sites):
            raise ArgumentError(
                f"n is {n}; expected at most {len(self._sites)}, the number of traced experts"
            )
        return n

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str = "experts", limit: int = 30, **summary: Any) -> Axes:
        """Mean effect of the experts that are ever clean-active, the most important first, with intervals.

        >>> knock.plot()
        >>> knock.plot(kind="heatmap")        # layer x expert

        ``kind``: "experts", at most the ``limit`` most important; or "heatmap". Stars and dots: the test is
        below 0.05, corrected ("max_t" unless given) over all experts that are ever clean-active. ``summary``:
        other arguments of :meth:`summary`. Needs matplotlib.
        """
        kind, limit = as_choice(kind, "kind", KINDS), as_count(limit, "limit")
        return draw(self, kind, limit, ax, {"correction": "max_t", **summary})

    def _measured(self) -> dict[str, np.ndarray]:
        found = super()._measured() | {"clean_active": self.clean_active}
        return found if self.donors is None else found | {"donors": self.donors}

    def _rebuilt(
        self,
        cases: pd.DataFrame,
        measured: dict[str, np.ndarray],
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> Self:
        known = provenance.get("case_ids")
        same = known is not None and set(known) <= set(self.provenance.get("case_ids", []))
        runner = self._runner if same else None
        return type(self)(cases, self._sites, failed=failed, provenance=provenance, runner=runner, **measured)

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> KnockoutTrace:
        """As :meth:`save` wrote it."""
        width = len(rows) // max(1, len(cases))
        sites = rows[list(cls.site_columns)].iloc[:width].reset_index(drop=True)
        names = {"patched": "ablated", "effects": "effect", "clean_active": "clean_active", "donors": "donor"}
        values = {n: rows[c].to_numpy().reshape(len(cases), width) for n, c in names.items() if c in rows}
        return cls(cases, sites, failed=failed, provenance=provenance, **values)

    def __repr__(self) -> str:
        best = ""
        if len(self):
            (first,) = self.important(1)
            best = f"; most important {first} with mean effect {self.effects[:, self.order()[0]].mean():+.3f}"
        return (
            f"KnockoutTrace({len(self)} cases x {len(self._sites)} experts, ablation "
            f"{self.provenance.get('ablation')!r}{best}; numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        if not len(self):
            return result_html(repr(self), pd.DataFrame(), self.failed)
        table = self.table(10)
        note = (
            "The most important experts of those that are ever clean-active, chosen on these very cases: "
            "p_adjusted accounts for that, p_value and the intervals don't."
        )
        return result_html(repr(self), table, self.failed, [note])

    def table(self, limit: int, **options: Any) -> pd.DataFrame:
        """The most important experts that are ever clean-active: star, active and their summary."""
        ever = np.flatnonzero(self.clean_active.any(axis=0)).tolist()
        order = [column for column in self.order().tolist() if column in ever]
        experts = self.experts
        heads = pd.DataFrame(
            {
                "star": pd.Series([str(experts[column]) for column in order], dtype=object),
                "active": self.clean_active[:, order].sum(axis=0),
            }
        )
        given = {"correction": "max_t", **options}
        effects: Floats = self.effects[:, order]
        return summarise_first(effects, heads, self._cases, limit, **given)
