"""The expert sweep at several positions: layer x position x expert (section 3.4)."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_choice
from moetrace.effects import Mean
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult
from moetrace.results.display import result_html
from moetrace.results.expert_arrays import LOGITS, ExpertArrays, Floats, expert_rows
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.further import read_only
from moetrace.results.map_pictures import plot_best_experts
from moetrace.results.map_sites import at_position, map_from_rows, of_all, with_positions
from moetrace.results.pictures import of_its_metric
from moetrace.results.roles import ROLES, by_role, roles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ExpertMap(TraceResult):
    """Rescue of every routed expert's patch vector at each layer and position.

    >>> everywhere = mt.trace_experts(model, cases, position="all")
    >>> everywhere.plot(), everywhere.candidates().head()
    >>> everywhere.at(5).specificity("L2E7")                       # one position as an ExpertTrace
    >>> named = mt.trace_experts(model, cases, position=["subject", "last"])
    >>> named.select("last")

    A site is a layer, a position and an expert; positions as of :class:`LayerMap`. ``effects``: float64
    (cases, sites), logits; exactly 0 where the expert isn't clean-active at the position, and the row counts;
    NaN where a prompt is too short to have the token, and such cases don't count. ``arrays``: everything
    measured, with False and 0 where there is no token. ``tokens``: int64 (cases, sites), the token's index,
    the last one of a position with several; -1 where there is none.
    """

    kind: ClassVar[str] = "experts"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "position", "expert")
    nothing: ClassVar[dict[str, float]] = {"": 0, **dict.fromkeys(LOGITS, np.nan)}  # where there is no token

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        arrays: ExpertArrays,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
        tokens: np.ndarray,
    ) -> None:
        effects = np.where(np.asarray(tokens) >= 0, arrays.effects, np.nan)
        super().__init__(cases, sites, arrays.patched, effects, failed, provenance)
        self.arrays = arrays
        self.tokens: npt.NDArray[np.int64] = read_only(np.asarray(tokens, dtype=np.int64))

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> ExpertMap:
        """As :meth:`save` wrote it."""
        names = [own.name for own in fields(ExpertArrays)]
        sites, tokens, values = map_from_rows(rows, cls.site_columns, names, len(cases))
        return cls(cases, sites, ExpertArrays(**values), failed, provenance, tokens)

    def _measured(self) -> dict[str, np.ndarray]:
        return {**{name: getattr(self.arrays, name) for name in self.arrays.names()}, "tokens": self.tokens}

    def _rebuilt(
        self,
        cases: pd.DataFrame,
        measured: dict[str, np.ndarray],
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> Self:
        own = {name: values for name, values in measured.items() if name != "tokens"}
        arrays = ExpertArrays(**own)
        return type(self)(cases, self._sites, arrays, failed, provenance, measured["tokens"])

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: as of an expert trace, with position and the token's index; none where a case lacks it."""
        rows = self._every_row()
        return rows[rows.token >= 0].reset_index(drop=True)

    def _every_row(self) -> pd.DataFrame:
        rows = expert_rows(self._cases, self._sites, self.arrays)
        rows.insert(rows.columns.get_loc("layer") + 1, "position", np.tile(self._sites.position, len(self)))
        return with_positions(rows, self.tokens)

    def _saved_rows(self) -> pd.DataFrame:
        known = {name: getattr(self.arrays, name) for name in LOGITS}
        values = {name: own.ravel() for name, own in known.items() if own is not None}
        return self._every_row().assign(**values)

    @property
    def direct(self) -> Floats | None:
        """(cases, sites): what of the rescue goes straight to the logits; 0 but at the final token."""
        values = self.arrays.direct
        return None if values is None else np.where(self.arrays.clean_active, values, 0.0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, ascending."""
        return tuple(int(layer) for layer in self._sites.layer.drop_duplicates())

    @property
    def positions(self) -> list[Any]:
        """The positions traced: indices, or names."""
        return list(self._sites.position.drop_duplicates().tolist())

    def at(self, position: Any) -> ExpertTrace:
        """One position as an expert trace by itself, of the cases that have it.

        >>> named.at("last").select()

        ArgumentError for a position that wasn't traced.
        """
        columns, there, facts, cases = at_position(self, position)
        cut = {n: getattr(self.arrays, n)[np.ix_(there, columns)] for n in self.arrays.names()}
        sites = self._sites.iloc[columns][["layer", "expert"]].reset_index(drop=True)
        found = ExpertTrace(cases, sites, ExpertArrays(**cut), self.failed, facts)
        return found.with_draws(None if self.by_draw is None else self.by_draw[np.ix_(there, columns)])

    def candidates(self, min_active: float = 1, mean: Mean = "active") -> pd.DataFrame:
        """Recurrent experts of every position, those of the highest mean first (for kl and rank, and with
        ``mode="noise"``, of the lowest): as of an expert trace, with the position in front.
        """
        tables = []
        for position in self.positions:
            own = self.at(position)
            table = own.candidates(min_active=min_active, mean=mean) if len(own) else pd.DataFrame()
            if len(table):
                tables.append(table.assign(position=position))
        if not tables:
            return pd.DataFrame(columns=["position"])
        found = pd.concat(tables, ignore_index=True).sort_values(
            "mean_rescue", ascending=self._toward_recall < 0, kind="stable"
        )
        return found[["position", *found.columns.drop("position")]].reset_index(drop=True)

    def select(self, position: Any, **options: Any) -> Expert | list[Expert]:
        """:meth:`ExpertTrace.select` at one position.

        >>> named.select("subject_last", min_active=0.5)
        """
        found: Expert | list[Expert] = self.at(position).select(**options)
        return found

    def roles(self) -> pd.DataFrame:
        """Mean rescue of every expert by layer and the token's role (see :meth:`LayerMap.roles`).

        layer, position (the role), expert, mean and n, the cases that have such a token. ArgumentError unless
        the trace is of ``position="all"``.
        """
        of_all(self)
        pairs = self._sites[["layer", "expert"]].drop_duplicates().reset_index(drop=True)
        number = {pair: at for at, pair in enumerate(pairs.itertuples(index=False, name=None))}
        sites = self._sites[["layer", "expert"]].itertuples(index=False, name=None)
        groups = np.array([number[pair] for pair in sites])
        values = by_role(self.effects, roles_of(self.tokens, self._cases), groups)
        n = (~np.isnan(values)).sum(axis=0)
        table = pairs.loc[pairs.index.repeat(len(ROLES))].reset_index(drop=True)
        table.insert(1, "position", np.tile(ROLES, len(pairs)))
        table["mean"] = np.nansum(values, axis=0) / np.maximum(n, 1)
        table["n"] = n
        return table[table.n > 0].reset_index(drop=True)

    @of_its_metric
    def plot(
        self, ax: Axes | None = None, kind: str = "heatmap", position: Any = None, **options: Any
    ) -> Axes:
        """Layer x position: in each cell the highest mean rescue of an expert (for kl and rank, and with
        ``mode="noise"``, the lowest); by role of ``position="all"``.

        >>> everywhere.plot()
        >>> named.plot(position="last")          # one position, as an expert trace draws it

        ``options``: with ``position`` those of :meth:`ExpertTrace.plot`. Needs matplotlib.
        """
        if position is not None:
            return self.at(position).plot(ax=ax, kind="experts" if kind == "heatmap" else kind, **options)
        as_choice(kind, "kind", ("heatmap",))
        if options:
            raise ArgumentError(
                f"{sorted(options)} are arguments of one position's picture; give position=, too"
            )
        if self.provenance.get("position") == "all":
            return plot_best_experts(self, self.roles(), list(ROLES), ax)
        table = self.sites
        n = (~np.isnan(self.effects)).sum(axis=0)
        table["mean"] = np.nansum(self.effects, axis=0) / np.maximum(n, 1)
        return plot_best_experts(self, table, self.positions, ax)

    def __repr__(self) -> str:
        return (
            f"ExpertMap({len(self)} cases x {len(self.layers)} layers x {len(self.positions)} positions, "
            f"{len(self._sites)} sites; numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.candidates().head(10), self.failed)
