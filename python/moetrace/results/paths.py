"""What single paths between a patch and a later block, router or expert carry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from typing_extensions import Self

from moetrace.results.base import TraceResult
from moetrace.results.display import plain, refuse_groups, sites_html
from moetrace.results.expert_arrays import Floats
from moetrace.results.further import read_only
from moetrace.results.pictures import of_its_metric, plot_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PathTrace(TraceResult):
    """Effects of paths, each from a sender to one receiver in a later layer.

    >>> paths = mt.trace_paths(model, cases, [("L12E003", "L20.router"), ("L12E003", 20)])
    >>> paths.summary(), paths.rows

    A site is a pair: ``sender`` and ``receiver`` by name: "L12" is a block, "L12E003" an expert, "L20.router"
    a router. ``effects``: float64 (cases, pairs), in the metric's unit: what the receiver makes of the
    sender's patch where nothing else in between changes, and whatever comes behind the receiver makes of
    that. ``rescue``: of the whole sender (equation 4), by all its paths.
    """

    kind: ClassVar[str] = "paths"
    site_columns: ClassVar[tuple[str, ...]] = ("sender", "receiver")

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        rescue: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__(cases, sites, patched, effects, failed, provenance)
        self.rescue: Floats = read_only(rescue)

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: one row for each case and pair, with path and the sender's rescue in the metric's unit.

        ``patched`` is the metric of the run in which the path alone is patched.
        """
        return super().rows.rename(columns={"rescue": "path"}).assign(rescue=self.rescue.ravel())

    def _measured(self) -> dict[str, np.ndarray]:
        return {**super()._measured(), "rescue": self.rescue}

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> Self:
        """As :meth:`save` wrote it."""
        sites = rows[list(cls.site_columns)].drop_duplicates().reset_index(drop=True)
        shape = (len(cases), len(sites))
        patched, effects, rescue = (rows[n].to_numpy().reshape(shape) for n in ("patched", "path", "rescue"))
        return cls(cases, sites, patched, effects, rescue, failed, provenance)

    @of_its_metric
    def plot(self, ax: Axes | None = None, **summary: Any) -> Axes:
        """Mean effect of every path with its interval. ``summary``: as :meth:`summary` but ``by``.

        Needs matplotlib.
        """
        refuse_groups(summary)
        options = {"correction": "max_t", **summary}
        names = [f"{plain(site.sender)} to {plain(site.receiver)}" for site in self._sites.itertuples()]
        title = f"What single paths carry, {len(self)} cases"
        tested = (len(self._sites), "paths")
        floor = self.noise_floor
        return plot_bars(
            self.summary(**options), names, title, "mean effect (logits)", tested, floor, ax, options
        )

    def __repr__(self) -> str:
        if not len(self):
            return f"PathTrace(0 cases x {len(self._sites)} paths)"
        means = self.effects.mean(axis=0)
        at = int(np.abs(means).argmax())
        best = self._sites.iloc[at]
        return (
            f"PathTrace({len(self)} cases x {len(self._sites)} paths; most by {best.sender} to "
            f"{best.receiver}: {means[at]:+.3f} of {self.rescue[:, at].mean():+.3f} {self.unit}; numerical "
            f"floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        return sites_html(self, "paths")
