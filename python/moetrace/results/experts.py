"""The expert sweep's result (section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from moetrace.arguments import as_choice, as_count
from moetrace.cases import case_keys
from moetrace.effects import Mean, control_count
from moetrace.results import resplit
from moetrace.results.base import summarise_first
from moetrace.results.comparisons import (
    ActiveRanks,
    Activity,
    AllActive,
    Specificity,
    layer_rescue,
    layer_share,
)
from moetrace.results.controls import ControlledRows, Controls, ExpertInLayer, warn_of_short
from moetrace.results.display import expert_notes, result_html
from moetrace.results.expert_arrays import Counts
from moetrace.results.expert_name import Expert, ExpertLike, ExpertRangeError
from moetrace.results.expert_pictures import Asked, draw
from moetrace.results.measured_experts import MeasuredExperts
from moetrace.results.pictures import of_its_metric
from moetrace.results.resplit import HeldOut, Stability
from moetrace.results.selection import SelectionRule
from moetrace.results.settings import refuse_other_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from moetrace.results.layers import LayerTrace


class ExpertTrace(MeasuredExperts):
    """Rescue of every routed expert's patch vector (equations 5 and 6).

    >>> experts = mt.trace_experts(model, discovery, layer=layers.best)
    >>> star = experts.select(min_active=0.5)
    >>> held = mt.trace_experts(model, validation, layer=star.layer)
    >>> held.specificity(star).summary()

    A site is an expert; all experts of the traced layers are sites, in the order of layer and expert.
    ``effects``: float64 (cases, sites), logits; exactly 0 where the expert isn't clean-active, and the row
    counts (appendix A). ``arrays``: everything measured, see :class:`ExpertArrays`. Where experts of the
    noised routing were patched too, their rescue is in ``arrays.rescue`` and ``rows``, not in ``effects``.
    ``direct``, ``direct_linear``, ``indirect``: as of :class:`LayerTrace`, shaped and masked as ``effects``.
    An expert whose rescue is direct writes the fact's contrast itself, one whose is indirect hands it on.
    ``star``, in any method: an Expert, a name such as "L44E069", or the pair (44, 69).
    """

    def candidates(
        self, layer: int | None = None, min_active: float = 1, mean: Mean = "active"
    ) -> pd.DataFrame:
        """Recurrent experts, the one that :meth:`select` takes first; empty where there are none.

        layer, expert, star (its name), active (cases in which it is clean-active), share, mean_rescue (by
        ``mean``, which orders the rows), mean_rescue_active, mean_rescue_all, and over the cases where it is
        active mean_weight (clean routing weight) and mean_delta_norm.
        """
        order = self._candidates.order(SelectionRule(layer, min_active, mean), self._every)
        return self._candidates.table(order, self.arrays, mean)

    @overload
    def select(
        self, layer: int | None = ..., min_active: float = ..., top: Literal[1] = ..., mean: Mean = ...
    ) -> Expert: ...
    @overload
    def select(
        self, layer: int | None = ..., min_active: float = ..., top: int = ..., mean: Mean = ...
    ) -> Expert | list[Expert]: ...
    def select(
        self, layer: int | None = None, min_active: float = 0.5, top: int = 1, mean: Mean = "active"
    ) -> Expert | list[Expert]:
        """Recurrence-first selection (section 3.4): of the recurrent experts, the highest mean rescue.

        >>> star = experts.select(layer=44, min_active=0.5)

        ``layer``: None for all traced layers. ``min_active``: in at least which part of the cases an expert
        must be clean-active: a float in (0, 1] is a share, rounded up, an integer a number of cases (64 of
        the paper's 128). ``mean``: "active", over the cases in which the expert is clean-active, or "all",
        zero rows included. Of equal means the expert with the higher recurrence is taken, then the lower
        layer, then the lower expert.
        ``top``: with more than 1 a list of so many experts, best first, or of all the recurrent ones if they
        are fewer.

        Raises:
            NoRecurrentExpertError: no expert is that recurrent; it names the highest recurrence found.
            LayerRangeError: a layer that wasn't traced.
            ArgumentError: ``min_active``, ``top`` or ``mean`` out of range.
        """
        top = as_count(top, "top")
        rule = SelectionRule(layer, min_active, mean)
        columns = self._candidates.order(rule, self._every)
        if not len(columns):
            raise self._candidates.refusal(rule, self._every)
        chosen = [self._candidates.expert(column) for column in columns[:top]]
        return chosen[0] if top == 1 else chosen

    def specificity(
        self, star: ExpertLike, controls: int | Literal["auto"] = "auto", seed: int = 0
    ) -> Specificity:
        """The star's rescue minus that of other clean-active experts of its layer (equation 7, Table 1).

        >>> held.specificity(star, controls=3, seed=0).summary()

        For each case up to ``controls`` experts are drawn without replacement from the other clean-active
        ones, by the counter-based generator from (``seed``, case id). "auto" is 3, or 1 where the router
        takes two (Table 2). A case in which the star isn't clean-active counts with rescue 0 minus its
        controls'. A case with fewer others uses all it has; one with none has no specificity and is left out.
        Both are in ``.short_cases``, and a FewControlsWarning says so.

        Raises:
            NeverActiveError: the star is clean-active in no case.
            NoControlsError: it is alone wherever it is clean-active.
            ExpertRangeError, LayerRangeError: it wasn't traced.
        """
        drawn = Controls.draw(self._compared(star), control_count(controls, self.top_k), seed)
        warn_of_short(drawn.short, drawn.asked, len(self), stacklevel=2)
        return replace(Specificity.of(drawn, seed), unit=self.unit)

    def all_active(self, star: ExpertLike) -> AllActive:
        """The star against all other clean-active experts of its layer (equations 11 to 13).

        >>> held.all_active(star).summary()

        Over the cases where the star and another expert are clean-active. Errors: see :meth:`specificity`.
        """
        return replace(AllActive.of(self._compared(star)), unit=self.unit)

    def ranks(self, star: ExpertLike) -> ActiveRanks:
        """Rank of the star's rescue among the clean-active experts of its layer (Table 10).

        >>> held.ranks(star).summary()

        Over the cases where the star and another are clean-active. Errors: see :meth:`specificity`.
        """
        return ActiveRanks.of(self._compared(star))

    def activity(self, star: ExpertLike) -> Activity:
        """In how many cases the star is clean-active, and its zero rows (Table 3).

        >>> held.activity(star).active
        """
        return Activity.of(self._in_layer(star))

    def layer_share(
        self,
        star: ExpertLike,
        layers: LayerTrace,
        controls: int | Literal["auto"] | None = "auto",
        seed: int = 0,
        *,
        ci: str = "percentile",
        n_resamples: int = 5000,
        confidence: float = 0.95,
        cluster: str | None = None,
    ) -> pd.DataFrame:
        """The star's rescue and specificity as shares of its layer's rescue (Table 7).

        >>> held.layer_share(star, mt.trace_layers(model, validation))

        Rows layer_rescue (a mean, logits), rescue_over_layer and specificity_over_layer (ratios of means
        over cases); columns quantity, value, ci_low, ci_high (bootstrap), n. ``layers`` must hold the same
        cases, in any order. ``controls``, ``seed``: as in :meth:`specificity`; None leaves its row out. The
        seed is the bootstrap's, too. ``cluster="relation_id"`` resamples whole relations.

        Raises:
            CaseMismatchError: the traces' cases differ.
            SettingsMismatchError: their model, noise, position or read-out does.
            LayerRangeError: the star's layer isn't in ``layers``.
            Others: see :meth:`specificity`.
        """
        as_choice(cluster, "cluster", (None, "relation_id"))
        refuse_other_settings(self, "the expert trace", layers, "the layer trace")
        compared = self._in_layer(star) if controls is None else self._compared(star)
        layer = layer_rescue(compared, layers)
        drawn = None
        if controls is not None:
            drawn = Controls.draw(compared, control_count(controls, self.top_k), seed)
            warn_of_short(drawn.short, drawn.asked, len(self), stacklevel=2)
        options = {"ci": ci, "n_resamples": n_resamples, "confidence": confidence, "seed": seed}
        return layer_share(compared, layer, drawn, cluster, **options)

    def stability(
        self,
        seeds: Iterable[int] = range(5),
        thresholds: Iterable[float] = (0.25, 0.375, 0.5, 0.625, 0.75),
        layer: int | None = None,
        controls: int | Literal["auto"] = "auto",
        seed: int = 0,
        fraction: float = 0.5,
        mean: Mean = "active",
    ) -> Stability:
        """Select on one half of these cases and evaluate on the other, in 25 settings (appendix D).

        >>> usable_trace.stability().modal_count

        For each of ``seeds`` the cases, in the order they were traced, are split as :meth:`CaseSet.split`
        does; for each of ``thresholds`` an expert is selected on the discovery part with that ``min_active``
        (the defaults are 32, 48, 64, 80 and 96 of 128) and evaluated on the rest. ``layer``: None for all
        traced layers. ``mean``: as in :meth:`select`. ``controls``, ``seed``: as in :meth:`specificity`.
        A setting in which no expert is recurrent enough has a row without a star.
        """
        controlled = ControlledRows(self._in_layer, control_count(controls, self.top_k), seed)
        rule = SelectionRule(layer, mean=mean)
        found = resplit.stability(
            self._cases, self._candidates, rule, controlled, seeds, thresholds, fraction
        )
        warn_of_short(found.short_cases, controlled.asked, len(self), stacklevel=2)
        return found

    def held_out(
        self,
        by: str = "relation_id",
        folds: int = 5,
        seed: int = 0,
        min_active: float = 0.5,
        layer: int | None = None,
        controls: int | Literal["auto"] = "auto",
        mean: Mean = "active",
    ) -> HeldOut:
        """Select on some relations and evaluate on the others, each held out once (Table 12).

        >>> usable_trace.held_out(folds=5).summary()

        The folds are those of :meth:`CaseSet.folds` with the same ``by``, ``folds`` and ``seed``, which is
        also the controls'. ``min_active`` applies to the cases that select. ``mean``: as in :meth:`select`.

        Raises:
            NoRecurrentExpertError: in some fold no expert is recurrent enough.
            ArgumentError: ``folds`` doesn't fit the number of relations.
        """
        as_choice(by, "by", ("relation_id",))
        controlled = ControlledRows(self._in_layer, control_count(controls, self.top_k), seed)
        rule = SelectionRule(layer, min_active, mean)
        found = resplit.held_out(self._cases, self._candidates, rule, controlled, folds, seed)
        warn_of_short(found.short_cases, controlled.asked, len(self), stacklevel=2)
        return found

    @of_its_metric
    def plot(
        self,
        layer: int | None = None,
        ax: Axes | None = None,
        min_active: float = 0.5,
        limit: int = 30,
        kind: str = "experts",
        by: str | None = None,
        **summary: Any,
    ) -> Axes:
        """Mean rescue of the experts that are ever clean-active, sorted, with intervals.

        >>> experts.plot(layer=44)
        >>> experts.plot(kind="heatmap")        # layer x expert
        >>> experts.plot(by="relation_id")      # relation x expert

        ``kind``: "experts", at most the ``limit`` best by this mean, filled where clean-active in at least
        ``min_active`` of the cases; "cases", the same with a dot for each case; or "heatmap", layer x expert.
        Stars and dots: the test is below 0.05, corrected ("max_t" unless given) over all experts of the
        layers that are ever clean-active, so that choosing the best is accounted for.
        ``by="relation_id"``: a map of the ``limit`` best by relation. ``summary``: other arguments of
        :meth:`summary`. Needs matplotlib.
        """
        found = self.candidates(layer, mean="all")
        asked = Asked(layer, min_active, limit, kind, by, {"correction": "max_t", **summary})
        drawn = draw(self, found, self._columns_of(found), asked, ax)
        if self.noises:
            drawn.set_ylabel(drawn.get_ylabel().replace("rescue", "effect"))
        return drawn

    def __repr__(self) -> str:
        layers = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        best = self._candidates.select(SelectionRule(), self._every) if len(self) else None
        top = "no expert clean-active in half of them"
        if best is not None:
            top = (
                f"best recurrent {best.star} with mean rescue {best.rescue:+.3f}, active in {best.recurrence}"
            )
        return (
            f"ExpertTrace({len(self)} cases x {len(self._sites)} experts of {layers}; {top}; "
            f"numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        if not len(self):
            return result_html(repr(self), pd.DataFrame(), self.failed)
        found = self.candidates()
        options = {"correction": "max_t"}
        effects = self.effects[:, self._columns_of(found)]
        table = summarise_first(effects, found[["star", "active"]], self._cases, 10, **options)
        notes = expert_notes(len(table), len(found), **options)
        return result_html(repr(self), table, self.failed, notes)

    def _columns_of(self, experts: pd.DataFrame) -> Counts:
        """Columns of ``effects`` and ``arrays`` of the experts in a table with layer and expert."""
        pairs = zip(experts.layer, experts.expert, strict=True)
        return np.array([self._column[pair] for pair in pairs], dtype=np.int64)

    def _in_layer(self, star: ExpertLike) -> ExpertInLayer:
        expert = Expert.of(star)
        columns = self._candidates.columns(expert.layer)
        experts = self._sites.expert.to_numpy()[columns]
        if (expert.layer, expert.expert) not in self._column:
            raise ExpertRangeError(
                f"{expert} doesn't exist: layer {expert.layer} has experts {experts[0]} to {experts[-1]}"
            )
        return ExpertInLayer(
            star=expert,
            column=int(np.flatnonzero(experts == expert.expert)[0]),
            experts=experts,
            cases=self._cases[case_keys(self._cases)].reset_index(drop=True),
            rescue=self.effects[:, columns],
            active=self.arrays.clean_active[:, columns],
            noised_active=self.arrays.noised_active[:, columns],
        )

    def _compared(self, star: ExpertLike) -> ExpertInLayer:
        """A star that can be compared with others."""
        found = self._in_layer(star)
        found.refuse_incomparable()
        return found
