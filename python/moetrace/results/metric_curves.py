"""A knock-out's curves in several metrics, from the same runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moetrace.arguments import nearest, shown
from moetrace.errors import ArgumentError
from moetrace.results.display import result_html
from moetrace.results.knockout_curves import KnockoutCurves
from moetrace.results.pictures.axes import new_panels
from moetrace.results.saved import Saved, write_saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRIC = "metric"
_APART = ("metric", "metric_code", "full", "empty")


class MetricCurves(Mapping[str, KnockoutCurves]):
    """:class:`KnockoutCurves` in each of several metrics, by the metric's name.

    >>> curves = knock.greedy(8, metric=["logit_diff", "prob", "kl"])
    >>> curves["kl"].cpr, curves.areas(), curves.plot("keep", "faithfulness")

    In the order asked for; sets of experts and their runs are the same in all. ArgumentError for a metric
    that wasn't asked for.
    """

    def __init__(self, curves: Mapping[str, KnockoutCurves]) -> None:
        self._curves = dict(curves)

    def __getitem__(self, metric: str) -> KnockoutCurves:
        if metric not in self._curves:
            raise ArgumentError(
                f"metric {shown(metric)}{nearest(metric, self._curves)} isn't among those of these curves; "
                f"expected one of {', '.join(map(repr, self._curves))}"
            )
        return self._curves[metric]

    def __contains__(self, metric: object) -> bool:
        return metric in self._curves

    def __iter__(self) -> Iterator[str]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    @property
    def rows(self) -> pd.DataFrame:
        """Those of :class:`KnockoutCurves` one metric after the other: a column ``metric``, and its mean in a
        column ``value``."""
        tables = []
        for name, own in self._curves.items():
            table = own.rows.rename(columns={name: "value"})
            table.insert(0, _METRIC, np.full(len(table), name, dtype=object))
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    @property
    def provenance(self) -> dict[str, Any]:
        """What they share; ``metric`` is the list of names, ``by_metric`` what differs."""
        each = {name: own.provenance for name, own in self._curves.items()}
        shared = {k: v for k, v in next(iter(each.values())).items() if k not in _APART}
        apart = {name: {k: v for k, v in own.items() if k in _APART} for name, own in each.items()}
        return {**shared, _METRIC: list(each), "by_metric": apart}

    def areas(self) -> pd.DataFrame:
        """:meth:`KnockoutCurves.areas` of each, with a column ``metric``."""
        tables = [own.areas().assign(metric=name) for name, own in self._curves.items()]
        table = pd.concat(tables, ignore_index=True)
        return table[[_METRIC, *table.columns.drop(_METRIC)]]

    def plot(self, curve: str = "off", value: str | None = None) -> Axes:
        """A panel for each metric, side by side; arguments as of :meth:`KnockoutCurves.plot`.

        The Axes given back are the first panel's, ``.figure`` has all. Needs matplotlib.
        """
        panels = new_panels(1, len(self), 5.0 * len(self), 3.8, shared=False).ravel()
        for axes, own in zip(panels, self._curves.values(), strict=True):
            own.plot(curve, value, ax=axes)
        first: Axes = panels[0]
        return first

    def save(self, folder: str | Path) -> None:
        """Write all into one folder, as :meth:`KnockoutCurves.save` does; ``mt.load`` gives them back."""
        each = {name: own.tables() for name, own in self._curves.items()}
        heads = next(iter(each.values()))["rows"]["sets"]
        rows = self.rows.assign(sets=np.tile(heads.to_numpy(), len(each)))
        cases = pd.concat([own["cases"].assign(metric=name) for name, own in each.items()], ignore_index=True)
        tables = {"rows": rows, "cases": cases, "failed": pd.DataFrame()}
        write_saved(folder, Saved(KnockoutCurves.kind, tables, self.provenance))

    @classmethod
    def from_saved(cls, saved: Saved) -> MetricCurves:
        """What :meth:`save` wrote."""
        facts = dict(saved.provenance)
        apart, names = facts.pop("by_metric"), facts.pop(_METRIC)
        found = {}
        for name in names:
            rows, cases = (
                own[own[_METRIC] == name].drop(columns=_METRIC).reset_index(drop=True)
                for own in (saved.tables["rows"], saved.tables["cases"])
            )
            tables = {"rows": rows.rename(columns={"value": name}), "cases": cases}
            found[name] = KnockoutCurves.from_tables(tables, {**facts, **apart[name]})
        return cls(found)

    def __repr__(self) -> str:
        return f"MetricCurves({', '.join(f'{name}: {own!r}' for name, own in self._curves.items())})"

    def _repr_html_(self) -> str:
        return result_html(f"Metrics {', '.join(self)}", self.areas(), None)
