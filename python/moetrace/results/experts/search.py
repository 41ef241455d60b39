"""Which experts of a trace are recurrent, and which to select."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moetrace.errors import LayerRangeError
from moetrace.results.experts.arrays import Bools, Counts, ExpertArrays, Floats
from moetrace.results.experts.errors import NoRecurrentExpertError
from moetrace.results.experts.expert import Expert
from moetrace.results.experts.select import Choice, required_cases, selection_order


@dataclass(frozen=True, eq=False)
class Search:
    """Selection on any of a trace's cases. ``effects`` and ``active``: (cases, sites)."""

    sites: pd.DataFrame
    effects: Floats
    active: Bools

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, ascending."""
        return tuple(sorted(set(self.sites.layer.tolist())))

    def expert(self, column: int) -> Expert:
        """The expert of a column."""
        return Expert(int(self.sites.layer.iloc[column]), int(self.sites.expert.iloc[column]))

    def columns(self, layer: int | None) -> Counts:
        """Columns of a layer, or all. LayerRangeError for a layer that wasn't traced."""
        if layer is not None and layer not in self.layers:
            raise LayerRangeError(
                f"layer {layer!r} isn't in this trace, which has layers {list(self.layers)}; trace it with "
                f"trace_experts(model, cases, layer={layer!r})"
            )
        every = np.arange(len(self.sites))
        return every if layer is None else every[(self.sites.layer == layer).to_numpy()]

    def order(self, layer: int | None, min_active: float, cases: Counts) -> Counts:
        """Columns of the recurrent experts, the one to select first, on the cases at these positions."""
        required = required_cases(min_active, len(cases))
        columns = self.columns(layer)
        grid = np.ix_(cases, columns)
        return columns[selection_order(self.effects[grid], self.active[grid], required)]

    def choice(self, layer: int | None, min_active: float, cases: Counts) -> Choice | None:
        """The expert to select; None where none is recurrent enough."""
        order = self.order(layer, min_active, cases)
        if not len(order):
            return None
        return Choice(
            star=self.expert(order[0]),
            recurrence=int(self.active[cases, order[0]].sum()),
            required=required_cases(min_active, len(cases)),
            rescue=float(self.effects[cases, order[0]].mean()),
        )

    def chosen(self, layer: int | None, min_active: float, cases: Counts) -> Choice:
        """The expert to select; NoRecurrentExpertError where none is recurrent enough."""
        choice = self.choice(layer, min_active, cases)
        if choice is None:
            raise self.refusal(layer, min_active, cases)
        return choice

    def refusal(self, layer: int | None, min_active: float, cases: Counts) -> NoRecurrentExpertError:
        """What to say where no expert is recurrent enough."""
        columns = self.columns(layer)
        count = self.active[np.ix_(cases, columns)].sum(axis=0)
        highest = int(count.max(initial=0))
        names = [str(self.expert(column)) for column in columns[count == highest]][:5]
        found = f"{highest}, by {', '.join(names)}" if highest else "0: no expert was ever active"
        where = "any traced layer" if layer is None else f"layer {layer}"
        required = required_cases(min_active, len(cases))
        return NoRecurrentExpertError(
            f"no expert of {where} is clean-active in at least {required} of {len(cases)} cases "
            f"(min_active={min_active!r}); the highest recurrence found is {found}. Lower min_active"
        )

    def table(self, columns: Counts, arrays: ExpertArrays) -> pd.DataFrame:
        """Name, recurrence and means of the experts of some columns, in their order."""
        active = self.active[:, columns]
        count = active.sum(axis=0)
        names = [str(self.expert(column)) for column in columns]
        return (
            self.sites.iloc[columns]
            .reset_index(drop=True)
            .assign(
                star=pd.Series(names, dtype=object),
                active=count,
                share=count / len(active),
                mean_rescue=self.effects[:, columns].mean(axis=0),
                mean_weight=np.where(active, arrays.clean_weight[:, columns], 0.0).sum(axis=0) / count,
                mean_delta_norm=np.where(active, arrays.delta_norm[:, columns], 0.0).sum(axis=0) / count,
            )
        )
