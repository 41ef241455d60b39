"""A fixed expert under several corruption strengths (Table 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from moetrace.arguments import as_choice
from moetrace.effects import drop
from moetrace.results.base import TraceResult, summarise
from moetrace.results.display import plain, refuse_groups, result_html, table_note
from moetrace.results.pictures import of_its_metric, plot_case_lines, plot_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_XLABEL = "noise scale (standard deviations of the embedding)"


class ScaleTrace(TraceResult):
    """Rescue of one expert and of its layer's block at each noise scale.

    ``cases`` has the logit difference of each scale's noised run in columns noised_<scale>, and whether the
    expert is clean-active; where it isn't, its rescue is exactly 0 and the row counts.
    """

    kind: ClassVar[str] = "scales"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "patch", "scale")

    @property
    def scales(self) -> tuple[float, ...]:
        """The noise scales, in units of the embedding's standard deviation."""
        return tuple(float(scale) for scale in self._sites.scale[self._sites.patch == "expert"])

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy, with each scale's own noised run."""
        rows = super().rows
        rows["noised"] = rows.patched - rows.rescue
        return rows

    def _noised_of_sites(self) -> np.ndarray:
        return self._patched - self.effects

    def table(self, patch: str = "expert", **summary: Any) -> pd.DataFrame:
        """Table 13: scale, active cases, mean drop, then the summary of the rescue.

        ``patch``: "expert", or "block" for its whole layer. ``summary``: arguments of :meth:`summary` but
        ``by``; a correction is over the scales.
        """
        patch = as_choice(patch, "patch", ("expert", "block"))
        refuse_groups(summary, "a row for each scale, over all cases", ".summary(by=...)")
        own = (self._sites.patch == patch).to_numpy()
        table = summarise(self.effects[:, own], self._sites.loc[own, ["scale"]], self._cases, **summary)
        noised = np.stack([self._cases[f"noised_{scale:g}"] for scale in self.scales], axis=1)
        table.insert(1, "active", int(np.sum(self._cases.clean_active)))
        table.insert(2, "drop", drop(self._cases.clean.to_numpy(), noised).mean(axis=0))
        return table

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str = "curve", **summary: Any) -> Axes:
        """Mean rescue of the expert and of its whole block by noise scale, with intervals.

        ``kind``: "curve", or "cases", a line for each case of the expert's rescue. ``summary``: arguments of
        :meth:`summary` but ``by``. Needs matplotlib.
        """
        kind = as_choice(kind, "kind", ("curve", "cases"))
        refuse_groups(summary)
        if kind == "cases":
            return self._case_lines(ax)
        table = self.summary(**summary).sort_values("scale", ignore_index=True)
        star = self.provenance["star"]
        lines = {
            name: (own.scale.to_numpy(), own)
            for patch, name in (("expert", f"expert {star}"), ("block", "its whole block"))
            for own in (table[table.patch == patch],)
        }
        title = f"{plain(star)} under several corruptions, {len(self)} cases"
        return plot_lines(lines, title, _XLABEL, self.noise_floor, ax, summary)

    def _case_lines(self, ax: Axes | None) -> Axes:
        columns = np.flatnonzero(self._sites.patch == "expert")
        order = columns[np.argsort(self._sites.scale.to_numpy()[columns])]
        title = f"{plain(self.provenance['star'])} under several corruptions, each of {len(self)} cases"
        place = self._sites.scale.to_numpy()[order]
        return plot_case_lines(place, self.effects[:, order], title, _XLABEL, self.noise_floor, ax)

    def __repr__(self) -> str:
        means = ", ".join(
            f"{scale:g}: {mean:+.3f}"
            for scale, mean in zip(self.scales, self.effects.mean(axis=0), strict=False)
        )
        return f"ScaleTrace({self.provenance['star']}, {len(self)} cases, mean rescue by scale {means})"

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.table(), self.failed, [table_note(len(self.scales), "scales")])
