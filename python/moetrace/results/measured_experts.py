"""What an expert sweep measured: arrays, and the tables that are made of them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_number
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult
from moetrace.results.expert_arrays import (
    LOGITS,
    Counts,
    ExpertArrays,
    Floats,
    active_per_layer,
    close_calls,
    expert_rows,
    routing_table,
)
from moetrace.results.selection import Candidates


class MeasuredExperts(TraceResult):
    """The measurements of an :class:`ExpertTrace`, without what is asked of them."""

    kind: ClassVar[str] = "experts"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "expert")

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        arrays: ExpertArrays,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> None:
        pairs = list(zip(sites.layer.tolist(), sites.expert.tolist(), strict=True))
        if arrays.rescue.shape != (len(cases), len(pairs)):
            raise ArgumentError(
                f"expert arrays have shape {arrays.rescue.shape}; expected {(len(cases), len(pairs))} for "
                f"{len(cases)} cases and {len(pairs)} sites"
            )
        if pairs != sorted(set(pairs)):
            raise ArgumentError("sites repeat or aren't sorted; expected the order of layer and expert")
        super().__init__(cases, sites, arrays.patched, arrays.effects, failed, provenance)
        self.arrays = arrays
        self._column = {pair: column for column, pair in enumerate(pairs)}
        self._candidates = Candidates(sites, self.effects, arrays.clean_active, self._toward_recall)

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> Self:
        """As :meth:`save` wrote it."""
        width = len(rows) // max(1, len(cases))
        sites = rows[list(cls.site_columns)].iloc[:width].reset_index(drop=True)
        return cls(cases, sites, ExpertArrays.from_rows(rows, (len(cases), width)), failed, provenance)

    def _measured(self) -> dict[str, np.ndarray]:
        return {name: getattr(self.arrays, name) for name in self.arrays.names()}

    def _rebuilt(
        self,
        cases: pd.DataFrame,
        measured: dict[str, np.ndarray],
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> Self:
        return type(self)(cases, self._sites, ExpertArrays(**measured), failed, provenance)

    @property
    def direct(self) -> Floats | None:
        """(cases, sites): what of the rescue goes straight to the logits; 0 where not clean-active."""
        return self._where_active(self.arrays.direct)

    @property
    def direct_linear(self) -> Floats | None:
        """(cases, sites): the same with the final norm's scale as in the noised run; adds up over experts."""
        return self._where_active(self.arrays.direct_linear)

    @property
    def indirect(self) -> Floats | None:
        """(cases, sites): rescue minus direct."""
        return self._where_active(self.arrays.indirect)

    def _where_active(self, values: Floats | None) -> Floats | None:
        return None if values is None else np.where(self.arrays.clean_active, values, 0.0)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, ascending."""
        return self._candidates.layers

    @property
    def top_k(self) -> int:
        """How many experts the router takes: the most that are clean-active in a case and layer."""
        return active_per_layer(self.arrays, self._sites)

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: one row for each case and expert.

        case_id, relation_id, layer, expert, clean_active, noised_active, clean_weight, noised_weight,
        delta_norm, clean, noised, patched, rescue (logits; as measured, see ``effects``), direct, indirect
        (their sum is rescue) and direct_linear; after relation_id true and foil where the cases have their
        objects as text; and patched_active where experts of the noised routing were patched too.
        """
        return expert_rows(self._cases, self._sites, self.arrays)

    @property
    def routing(self) -> pd.DataFrame:
        """What the routers said: one row for each case and expert, routed or not.

        case_id, relation_id, layer, expert, clean_active, noised_active, clean_weight, noised_weight (as
        applied), clean_logit, noised_logit (as the router gives them; absent where it isn't recognised), and
        their softmax over the layer's experts as clean_probability and noised_probability.
        """
        return routing_table(self.rows, self.arrays, self._sites)

    def close_calls(self, margin: float | None = None) -> int:
        """Clean routings of a case and layer with a router-logit margin below ``margin`` (the noise floor).

        The margin is that of the weakest routed over the strongest unrouted expert; below the numerical
        floor rounding alone may swap them. 0 also where router logits aren't known.
        """
        limit = self.noise_floor if margin is None else as_number(margin, "margin", 0)
        return close_calls(self.arrays, self._sites, limit)

    def _saved_rows(self) -> pd.DataFrame:
        """Rows and, beside them, router logits."""
        known = {name: getattr(self.arrays, name) for name in LOGITS}
        return self.rows.assign(**{name: value.ravel() for name, value in known.items() if value is not None})

    @property
    def _every(self) -> Counts:
        return np.arange(len(self))
