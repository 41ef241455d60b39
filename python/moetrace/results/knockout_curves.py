"""What a model can still do as more of its experts are switched off, and with few of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_choice
from moetrace.effects import cmd, cpr
from moetrace.metrics import METRICS
from moetrace.results.display import result_html
from moetrace.results.expert_name import Expert
from moetrace.results.knockout_pictures import draw_curves
from moetrace.results.pictures import of_its_metric
from moetrace.results.saved import Saved, write_saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = ("off", "keep")
HEADS = ("curve", "order", "draw", "count", "share")
SHARES_OF_CASES = ("accuracy", "top_1")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KnockoutCurves:
    """Experts switched off together, the most important first, and the opposite: only these kept.

    >>> curves = knock.greedy(8)
    >>> curves.rows, curves.areas(), curves.plot(), curves.plot("keep", "faithfulness")
    >>> curves.save("runs/curves"); mt.load("runs/curves").cpr

    Attributes:
        rows: tidy, one row for each curve, order, draw and count of experts. ``curve``: "off" or "keep";
            ``order``: "importance", "random" or "frequency" (controls of equal routing frequency, in "off"
            alone); ``draw``; ``count`` and ``share``, experts switched off or kept, and their part of all
            traced ones; over the cases ``accuracy`` (true above foil, of those that have a foil), ``top_1``
            (true, or its first token, above every token) and the metric's mean, under its name
            (``logit_diff`` in logits); and ``faithfulness``.
        sets: of each row the columns of the trace that it switches off or keeps.
        values: float64 (rows, cases), the metric case by case.
        provenance: that of the trace, and of the curves ``by``, ``draws``, ``curve_seed``, ``experts`` (the
            name of each column), ``full`` and ``empty``.

    Faithfulness is that of the MIB benchmark (Mueller et al. 2025): (m(C) - m(empty)) / (m(full) - m(empty)),
    m the metric's mean, C the traced experts that are on, "empty" none of them, "full" all. It means the same
    whichever way the metric points.
    """

    rows: pd.DataFrame
    sets: tuple[tuple[int, ...], ...]
    values: Floats
    provenance: dict[str, Any]

    kind: ClassVar[str] = "knockout_curves"

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return str(self.provenance["metric"])

    @property
    def unit(self) -> str:
        """The metric's unit; of a user's function its name."""
        known = METRICS.get(self.metric)
        return self.metric if known is None else known.unit

    @property
    def experts(self) -> list[Expert]:
        """The expert of each column that ``sets`` name."""
        return [Expert.of(name) for name in self.provenance["experts"]]

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

    @of_its_metric
    def plot(self, curve: str = "off", value: str | None = None, ax: Axes | None = None) -> Axes:
        """One value over the number of experts switched off, or over the part that is kept.

        >>> curves.plot(), curves.plot("keep", "faithfulness")

        ``curve``: "off" or "keep". ``value``: the metric's name, which None is; "accuracy", "top_1" or
        "faithfulness". Needs matplotlib.
        """
        curve = as_choice(curve, "curve", CURVES)
        known = (self.metric, *SHARES_OF_CASES, "faithfulness")
        value = self.metric if value is None else as_choice(value, "value", known)
        title = {"off": "Experts switched off", "keep": "Only some experts kept"}[curve]
        how = f"{title} (ablation {self.provenance['ablation']}), {self.values.shape[1]} cases"
        return draw_curves(self.rows, curve, value, how, ax)

    def save(self, folder: str | Path) -> None:
        """Write into a folder; ``mt.load`` gives the same back, verified.

        >>> curves.save("runs/curves"); mt.load("runs/curves").plot()

        Errors: as of :meth:`TraceResult.save`.
        """
        write_saved(folder, Saved(self.kind, self.tables(), self.provenance))

    def tables(self) -> dict[str, pd.DataFrame]:
        """What :meth:`save` writes: rows with their sets, and a row for each case with its values."""
        ids = self.provenance["case_ids"]
        sets = [" ".join(map(str, own)) for own in self.sets]
        columns = {f"row_{at}": own for at, own in enumerate(self.values)}
        cases = pd.DataFrame({"case_id": np.array(ids, np.int64), **columns})
        return {"rows": self.rows.assign(sets=sets), "cases": cases, "failed": pd.DataFrame()}

    @classmethod
    def from_tables(cls, tables: dict[str, pd.DataFrame], provenance: dict[str, Any]) -> KnockoutCurves:
        """What :meth:`tables` gave."""
        rows, cases = tables["rows"], tables["cases"]
        sets = tuple(tuple(map(int, own.split())) for own in rows["sets"])
        values = cases[[f"row_{at}" for at in range(len(rows))]].to_numpy(np.float64).T
        return cls(rows.drop(columns="sets"), sets, values, provenance)

    def __repr__(self) -> str:
        of = "" if self.metric == "logit_diff" else f", metric {self.metric}"
        return (
            f"KnockoutCurves({int(self.rows[self.rows.curve == 'off']['count'].max())} of "
            f"{len(self.provenance['experts'])} experts switched off, {self.values.shape[1]} cases{of}, cpr "
            f"{self.cpr:.3f}, cmd {self.cmd:.3f})"
        )

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.areas(), None, ["Areas as of .areas(); .rows has the curves."])
