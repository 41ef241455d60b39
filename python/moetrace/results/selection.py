"""Recurrence-first selection on any of a trace's cases (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moetrace.arguments import as_integer, shown
from moetrace.effects import Mean, mean_rescue, recurrence_first, required_cases
from moetrace.errors import ArgumentError, LayerRangeError
from moetrace.results.expert_arrays import Bools, Counts, ExpertArrays, Floats
from moetrace.results.expert_name import Expert


class NoRecurrentExpertError(ArgumentError):
    """No expert is clean-active in as many cases as asked for."""


@dataclass(frozen=True)
class SelectionRule:
    """What :meth:`ExpertTrace.select` is asked for: layer (None is all), least recurrence, and which mean."""

    layer: int | None = None
    min_active: float = 0.5
    mean: Mean = "active"


@dataclass(frozen=True)
class Selection:
    """A selected expert, in how many cases it was clean-active of how many required, and its mean rescue.

    ``rescue`` is over all cases, as a summary has it, whichever mean the expert was selected by.
    """

    star: Expert
    recurrence: int
    required: int
    rescue: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """The experts to select from. ``effects`` and ``active``: (cases, sites).

    ``toward``: 1, or -1 where the most negative effect is the best (kl, rank).
    """

    sites: pd.DataFrame
    effects: Floats
    active: Bools
    toward: int = 1

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, ascending."""
        return tuple(sorted(set(self.sites.layer.tolist())))

    def expert(self, column: int) -> Expert:
        """The expert of a column."""
        return Expert(int(self.sites.layer.iloc[column]), int(self.sites.expert.iloc[column]))

    def columns(self, layer: int | None) -> Counts:
        """Columns of a layer, or all. LayerRangeError for a layer that wasn't traced."""
        if layer is not None:
            layer = as_integer(layer, "layer", "a layer's number, or None for all")
            if layer not in self.layers:
                raise LayerRangeError(
                    f"layer {shown(layer)} isn't in this trace, which has layers {list(self.layers)}; trace "
                    f"it with trace_experts(model, cases, layer={shown(layer)})"
                )
        every = np.arange(len(self.sites))
        return every if layer is None else every[(self.sites.layer == layer).to_numpy()]

    def order(self, rule: SelectionRule, cases: Counts) -> Counts:
        """Columns of the recurrent experts, the one to select first, on the cases at these positions."""
        required = required_cases(rule.min_active, len(cases))
        columns = self.columns(rule.layer)
        grid = np.ix_(cases, columns)
        effects = self.toward * self.effects[grid]
        return columns[recurrence_first(effects, self.active[grid], required, rule.mean)]

    def select(self, rule: SelectionRule, cases: Counts) -> Selection | None:
        """The expert to select; None where none is recurrent enough."""
        order = self.order(rule, cases)
        if not len(order):
            return None
        return Selection(
            star=self.expert(order[0]),
            recurrence=int(self.active[cases, order[0]].sum()),
            required=required_cases(rule.min_active, len(cases)),
            rescue=float(self.effects[cases, order[0]].mean()),
        )

    def refusal(self, rule: SelectionRule, cases: Counts) -> NoRecurrentExpertError:
        """What to say where no expert is recurrent enough."""
        columns = self.columns(rule.layer)
        count = self.active[np.ix_(cases, columns)].sum(axis=0)
        highest = int(count.max(initial=0))
        names = [str(self.expert(column)) for column in columns[count == highest]][:5]
        found = f"{highest}, by {', '.join(names)}" if highest else "0: no expert was ever active"
        where = "any traced layer" if rule.layer is None else f"layer {rule.layer}"
        required = required_cases(rule.min_active, len(cases))
        return NoRecurrentExpertError(
            f"no expert of {where} is clean-active in at least {required} of {len(cases)} cases "
            f"(min_active={shown(rule.min_active)}); the highest recurrence found is {found}. "
            "Lower min_active"
        )

    def table(self, columns: Counts, arrays: ExpertArrays, mean: Mean) -> pd.DataFrame:
        """Name, recurrence and means of the experts of some columns, in their order."""
        effects, active = self.effects[:, columns], self.active[:, columns]
        count = active.sum(axis=0)
        names = [str(self.expert(column)) for column in columns]
        return (
            self.sites.iloc[columns]
            .reset_index(drop=True)
            .assign(
                star=pd.Series(names, dtype=object),
                active=count,
                share=count / len(active),
                mean_rescue=mean_rescue(effects, active, mean),
                mean_rescue_active=mean_rescue(effects, active, "active"),
                mean_rescue_all=mean_rescue(effects, active, "all"),
                mean_weight=np.where(active, arrays.clean_weight[:, columns], 0.0).sum(axis=0) / count,
                mean_delta_norm=np.where(active, arrays.delta_norm[:, columns], 0.0).sum(axis=0) / count,
            )
        )
