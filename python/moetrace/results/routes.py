"""Rescue with later routers free, and held to the noised run's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from typing_extensions import Self

from moetrace.results.base import TraceResult, summarise
from moetrace.results.display import plain, refuse_groups, result_html, table_note
from moetrace.results.expert_arrays import Floats
from moetrace.results.further import read_only
from moetrace.results.pictures import of_its_metric, plot_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EFFECTS = ("rescue", "fixed", "routing")


class RouteTrace(TraceResult):
    """What of a rescue goes through the choice of later routers.

    >>> routes = mt.trace_routes(model, cases)
    >>> routes.summary(), routes.routing.mean(axis=0)

    A site is a patch: the block of a layer (``patch`` is "block"), or one expert of it (its name).
    ``effects``, ``fixed``, ``routing``: float64 (cases, sites), logits. ``effects`` is the rescue with later
    routers free (equation 4), ``fixed`` the same where every later layer routes the patched token, and those
    behind it, as the noised run does: same experts, same weights. ``routing`` is their difference, what the
    later routers' other choices carry.
    """

    kind: ClassVar[str] = "routes"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "patch")

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        fixed: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__(cases, sites, patched, effects, failed, provenance)
        self.fixed: Floats = read_only(fixed)

    @property
    def routing(self) -> Floats:
        """Rescue minus fixed."""
        return self.effects - self.fixed

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: as of every trace, and fixed and routing (their sum is rescue) in logits."""
        return super().rows.assign(fixed=self.fixed.ravel(), routing=self.routing.ravel())

    def _measured(self) -> dict[str, np.ndarray]:
        return {**super()._measured(), "fixed": self.fixed}

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> Self:
        """As :meth:`save` wrote it."""
        sites = rows[list(cls.site_columns)].drop_duplicates().reset_index(drop=True)
        names = ("patched", "rescue", "fixed")
        patched, effects, fixed = (rows[n].to_numpy().reshape(len(cases), len(sites)) for n in names)
        return cls(cases, sites, patched, effects, fixed, failed, provenance)

    def summary(self, **options: Any) -> pd.DataFrame:  # type: ignore[override]
        """Of every patch its rescue, fixed and routing (column ``effect``), with intervals and tests.

        ``options``: as of :meth:`TraceResult.summary`; a correction is over all rows.
        """
        sites = pd.concat([self._sites.assign(effect=name) for name in EFFECTS], ignore_index=True)
        values = np.concatenate([self.effects, self.fixed, self.routing], axis=1)
        count = len(self._sites)
        order = np.arange(3 * count).reshape(3, count).T.ravel()
        return summarise(values[:, order], sites.iloc[order], self._cases, **options)

    @of_its_metric
    def plot(self, ax: Axes | None = None, **summary: Any) -> Axes:
        """Mean rescue by patch, and what of it later routing carries, with intervals.

        ``summary``: arguments of :meth:`summary` but ``by``. Needs matplotlib.
        """
        refuse_groups(summary)
        table = self.summary(**summary)
        place = np.arange(len(self._sites))
        labels = {"rescue": "rescue", "routing": "of it by later routing"}
        lines = {label: (place, table[table.effect == name]) for name, label in labels.items()}
        title = f"What later routing carries, {len(self)} cases"
        axes = plot_lines(lines, title, "patch", self.noise_floor, ax, summary)
        names = [f"L{s.layer:02d}" if s.patch == "block" else s.patch for s in self._sites.itertuples()]
        axes.set_xticks(np.arange(len(names)), [plain(name) for name in names], rotation=90, fontsize=8)
        return axes

    def __repr__(self) -> str:
        if not len(self):
            return f"RouteTrace(0 cases x {len(self._sites)} patches)"
        share = self.routing.mean(axis=0)
        at = int(np.abs(share).argmax())
        where = self._sites.iloc[at]
        name = f"the block of layer {where.layer}" if where.patch == "block" else where.patch
        return (
            f"RouteTrace({len(self)} cases x {len(self._sites)} patches; later routing carries most of "
            f"{name}: {share[at]:+.3f} of {self.effects[:, at].mean():+.3f} {self.unit}; numerical floor "
            f"{self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        if len(self) < 2:
            return result_html(repr(self), self.summary(), self.failed)
        note = table_note(3 * len(self._sites), "effects", correction="max_t")
        return result_html(repr(self), self.summary(correction="max_t"), self.failed, [note])
