"""An expert against its gate-weight-matched control (appendix C)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from moetrace.arguments import as_choice
from moetrace.effects import gate_specificity
from moetrace.results.base import TraceResult, summarise
from moetrace.results.display import plain, refuse_groups, result_html, table_note
from moetrace.results.pictures import Pair, of_its_metric, plot_pairs, plot_points
from moetrace.results.pictures.axes import BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITES = (("selected", "raw"), ("matched", "raw"), ("selected", "equal_norm"), ("matched", "equal_norm"))


class MatchedTrace(TraceResult):
    """Rescue of an expert and of its matched control, raw and at equal norm, on anchor-active cases.

    >>> pairs = mt.trace_matched(model, validation, "L44E069")
    >>> pairs.table()

    ``cases`` also has the control expert of each case, and weight and norm of both.
    """

    kind: ClassVar[str] = "matched"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "role", "scaling")

    @property
    def star(self) -> str:
        """The expert, as "L44E069"."""
        return str(self.provenance["star"])

    def table(self, **summary: Any) -> pd.DataFrame:
        """Selected rescue, matched control and specificity (equation 9), raw and equal-norm (Tables 9, 11).

        ``summary``: arguments of :meth:`summary`.
        """
        values, names = [], []
        for scaling in ("raw", "equal_norm"):
            selected, matched = (self._rescue(role, scaling) for role in ("selected", "matched"))
            values += [selected, matched, gate_specificity(selected, matched)]
            names += [(quantity, scaling) for quantity in ("selected", "matched", "specificity")]
        heads = pd.DataFrame(names, columns=["quantity", "scaling"])
        return summarise(np.stack(values, axis=1), heads, self._cases, **summary)

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str = "paired", **summary: Any) -> Axes:
        """Rescue of the expert beside its control's, case by case, raw and at equal norm.

        ``kind``: "paired", a line for each case and below the mean difference (equation 9); or "means", the
        six rows of :meth:`table`. ``summary``: arguments of :meth:`summary` but ``by``. Needs matplotlib.
        """
        kind = as_choice(kind, "kind", ("paired", "means"))
        refuse_groups(summary)
        table = self.table(**summary)
        if kind == "paired":
            pairs = [
                Pair(name, self._rescue("selected", scaling), self._rescue("matched", scaling), own)
                for scaling, name in (("raw", "raw patch vectors"), ("equal_norm", "at equal norm"))
                for own in (table[table.scaling == scaling],)
            ]
            title = f"{plain(self.star)} against its weight-matched control, {len(self)} active cases"
            return plot_pairs(
                pairs, (plain(self.star), "control"), title, (6, "rows"), self.noise_floor, ax, summary
            )
        raw = (table.scaling == "raw").to_numpy()
        marks = [(raw, BLUE, "raw patch vectors"), (~raw, "white", "at equal norm")]
        title = f"{plain(self.star)} and its weight-matched control, {len(self)} active cases"
        return plot_points(
            table, table.quantity.tolist(), title, self.noise_floor, ax, marks, summary, (6, "rows")
        )

    def _rescue(self, role: str, scaling: str) -> np.ndarray:
        return self.effects[:, SITES.index((role, scaling))]

    def __repr__(self) -> str:
        raw, equal = (
            gate_specificity(self._rescue("selected", scaling), self._rescue("matched", scaling)).mean()
            for scaling in ("raw", "equal_norm")
        )
        return (
            f"MatchedTrace({self.star} on {len(self)} active cases: specificity {raw:+.3f} raw, "
            f"{equal:+.3f} at equal norm)"
        )

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.table(), self.failed, [table_note(6, "rows")])
