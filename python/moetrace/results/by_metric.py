"""One trace read off by several metrics: a result for each, from one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.arguments import nearest, shown
from moetrace.errors import ArgumentError
from moetrace.metrics import LOGIT_DIFF
from moetrace.results.base import TraceResult
from moetrace.results.display import result_html
from moetrace.results.further import DRAW
from moetrace.results.pictures.axes import new_panels
from moetrace.results.saved import TABLES, Saved, write_saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.cases import CaseSet

METRIC = "metric"
_DIRECT = ("direct", "indirect", "direct_linear")


class MetricTraces(Mapping[str, TraceResult]):
    """A trace's result in each of several metrics, by the metric's name.

    >>> traces = mt.trace_layers(model, cases, metric=["logit_diff", "prob", "kl"])
    >>> traces["prob"].best, traces["prob"].summary()
    >>> traces.rows.query("metric == 'kl'"), traces.summary()

    Each is a whole result of its kind (:class:`LayerTrace`, :class:`ExpertTrace`, ...), in the order asked
    for; clean, noised and patched runs are the same in all. Tables of all of them have a column ``metric``.
    ``direct`` effects are of the logit difference alone. ArgumentError for a metric that wasn't asked for.
    """

    def __init__(self, results: Mapping[str, TraceResult]) -> None:
        self._results = dict(results)

    def __getitem__(self, metric: str) -> TraceResult:
        if metric not in self._results:
            raise ArgumentError(
                f"metric {shown(metric)}{nearest(metric, self._results)} isn't among those of this trace; "
                f"expected one of {', '.join(map(repr, self._results))}"
            )
        return self._results[metric]

    def __contains__(self, metric: object) -> bool:
        return metric in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._results)

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy rows of all metrics one after the other; ``metric`` stands before clean."""
        return self._tables(lambda result: result.rows)

    @property
    def cases(self) -> pd.DataFrame:
        """One row for each metric and case."""
        return self._tables(lambda result: result.cases)

    @property
    def failed(self) -> pd.DataFrame:
        """Cases with a value that is NaN or infinite in any metric: they are left out of all."""
        return self._tables(lambda result: result.failed)

    @property
    def noise_floor(self) -> dict[str, float]:
        """Of each metric, in its unit."""
        return {name: result.noise_floor for name, result in self._results.items()}

    @property
    def provenance(self) -> dict[str, Any]:
        """What the results share; ``metric`` is the list of names, ``by_metric`` what differs."""
        each = {name: result.provenance for name, result in self._results.items()}
        first = next(iter(each.values()))
        differing = {
            key for own in each.values() for key in {*own, *first} if own.get(key) != first.get(key)
        } | {METRIC}
        shared = {key: value for key, value in first.items() if key not in differing}
        apart = {n: {k: v for k, v in own.items() if k in differing} for n, own in each.items()}
        return {**shared, METRIC: list(each), "by_metric": apart}

    def summary(self, **options: Any) -> pd.DataFrame:
        """The summary of each, with a column ``metric``; a correction is over the sites of one metric."""
        return self._tables(lambda result: result.summary(**options))

    def normalised(self, **options: Any) -> pd.DataFrame:
        """:meth:`TraceResult.normalised` of each, with a column ``metric``."""
        return self._tables(lambda result: result.normalised(**options))

    def variance_components(self) -> pd.DataFrame:
        """:meth:`TraceResult.variance_components` of each, with a column ``metric``."""
        return self._tables(lambda result: result.variance_components())

    def subset(self, case_ids: Iterable[int] | CaseSet) -> MetricTraces:
        """The same of some of the cases."""
        wanted = case_ids if hasattr(case_ids, "__len__") else list(case_ids)
        return MetricTraces({name: own.subset(wanted) for name, own in self._results.items()})

    def plot(self, **options: Any) -> Axes:
        """A panel for each metric, named in its title, side by side.

        ``options``: those of the results' own ``plot`` but ``ax``.

        The Axes given back are the first panel's, ``.figure`` has all. Needs matplotlib.
        """
        panels = new_panels(1, len(self), 5.0 * len(self), 3.8, shared=False).ravel()
        for axes, (name, result) in zip(panels, self._results.items(), strict=True):
            result.plot(ax=axes, **options)  # type: ignore[attr-defined]  # every kind has one
            axes.title.set_text(f"{name}: {axes.get_title()}")
        first: Axes = panels[0]
        return first

    def save(self, folder: str | Path) -> None:
        """Write all into one folder, as :meth:`TraceResult.save` does; ``mt.load`` gives them back."""
        tables = {
            "rows": self._tables(lambda result: result.saved_rows()),
            "cases": self.cases,
            "failed": self.failed,
        }
        kind = next(iter(self._results.values())).kind
        write_saved(folder, Saved(kind, tables, self.provenance))

    @classmethod
    def from_saved(cls, kind: type[TraceResult], saved: Saved) -> MetricTraces:
        """What :meth:`save` wrote."""
        facts = dict(saved.provenance)
        apart, names = facts.pop("by_metric"), facts.pop(METRIC)
        results = {}
        for name in names:
            rows, cases, failed = (_of_metric(saved.tables[table], name) for table in TABLES)
            results[name] = read_tables(kind, rows, cases, failed, {**facts, **apart[name]})
        return cls(results)

    def _tables(self, table_of: Callable[[TraceResult], pd.DataFrame]) -> pd.DataFrame:
        """The tables of all, each with its metric: before clean where there is such a column, else first."""
        tables = []
        for name, result in self._results.items():
            table = table_of(result).copy()
            place = list(table.columns).index("clean") if "clean" in table and len(table.columns) else 0
            table.insert(place, METRIC, np.full(len(table), name, dtype=object))
            tables.append(table)
        filled = [table for table in tables if len(table)]
        return pd.concat(filled, ignore_index=True) if filled else tables[0]

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}: {result!r}" for name, result in self._results.items())
        return f"MetricTraces({inside})"

    def _repr_html_(self) -> str:
        return result_html(f"Metrics {', '.join(self)}", self.summary(), self.failed)


def read_tables(
    kind: type[TraceResult],
    rows: pd.DataFrame,
    cases: pd.DataFrame,
    failed: pd.DataFrame,
    provenance: dict[str, Any],
) -> TraceResult:
    """A result from its saved tables, with the effects of single draws where they are there."""
    columns = [name for name in rows if str(name).startswith(DRAW)]
    found = kind.from_files(rows.drop(columns=columns), cases, failed, provenance)
    if not columns:
        return found
    draws = [rows[name].to_numpy().reshape(found.effects.shape) for name in columns]
    return found.with_draws(np.stack(draws, axis=2))


def _of_metric(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One metric's rows, without the columns that the logit difference alone has."""
    others = [] if name == LOGIT_DIFF.name else [column for column in _DIRECT if column in table]
    return table[table[METRIC] == name].drop(columns=[METRIC, *others]).reset_index(drop=True)
