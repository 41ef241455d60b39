"""Rescue of coalitions of experts, and what follows from it (appendix G)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from moetrace import coalition
from moetrace.arguments import as_choice, as_count
from moetrace.cases import case_keys
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult, summarise, summarise_first
from moetrace.results.display import refuse_groups, result_html, table_note
from moetrace.results.expert_name import Expert
from moetrace.results.pictures import of_its_metric, plot_bars, plot_lines, plot_strips
from moetrace.results.pictures.axes import GREY, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_BARS = 16


class CoalitionTrace(TraceResult):
    """Rescue of coalitions of a layer's routed experts.

    >>> coal = mt.trace_coalitions(model, validation, layer=19, sets="all")
    >>> coal.shapley(), coal.interactions(), coal.smallest(0.8), coal.additivity()

    A coalition "slots 0+2" takes the experts that each case's clean run routes to first and third.
    """

    kind: ClassVar[str] = "coalitions"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "coalition")

    @property
    def players(self) -> int:
        """Slots of the router that the coalitions are subsets of; 0 where they are named sets or lists."""
        return int(self.provenance["players"])

    @property
    def complete(self) -> bool:
        """Whether every subset of the slots was patched."""
        return self.players > 0 and self.effects.shape[1] == 2**self.players - 1

    def values(self) -> np.ndarray:
        """float64 (cases, 2^k): rescue of every subset, column = bitmask of the slots, column 0 zero."""
        if not self.complete:
            raise ArgumentError(
                "the value of every subset is needed, but only "
                f"{self.effects.shape[1]} coalitions were patched; trace with sets='all', or for "
                "Shapley values with standard errors with sets='sampled'"
            )
        values = np.zeros((len(self), 2**self.players))
        values[:, self.provenance["masks"]] = self.effects
        return values

    def shapley(self) -> pd.DataFrame:
        """Shapley value of every expert in every case: exact after sets="all", sampled after "sampled".

        Columns case_id, relation_id, layer, expert, slot, shapley, and standard_error where sampled. The
        values of a case sum to its grand coalition's rescue; a sum that doesn't is an error.
        """
        if self.provenance["orders"] is not None:
            orders = np.asarray(self.provenance["orders"])
            masks = np.asarray(self.provenance["masks"], dtype=np.uint64)
            found = coalition.sampled_shapley(orders, masks, self.effects)
            return self._by_player({"shapley": found.mean, "standard_error": found.standard_error})
        values = self.values()
        shares = coalition.shapley(values)
        gap = float(np.abs(shares.sum(axis=1) - values[:, -1]).max(initial=0.0))
        if gap > 1e-9 * max(1.0, float(np.abs(values).max(initial=0.0))):
            raise ArithmeticError(f"Shapley values miss the grand coalition's rescue by {gap:.2g}")
        return self._by_player({"shapley": shares})

    def banzhaf(self) -> pd.DataFrame:
        """Banzhaf value of every expert in every case (after sets="all")."""
        return self._by_player({"banzhaf": coalition.banzhaf(self.values())})

    def interactions(self) -> pd.DataFrame:
        """Pairwise Shapley and Banzhaf interaction indices (after sets="all").

        One row for each case and pair: above 0 the two experts help each other, below 0 they overlap.
        """
        values = self.values()
        first, second = np.triu_indices(self.players, k=1)
        table = self._keys.loc[self._cases.index.repeat(len(first))]
        table = table.reset_index(drop=True)
        experts = self._experts()
        table["expert_a"] = experts[:, first].ravel()
        table["expert_b"] = experts[:, second].ravel()
        table["shapley_interaction"] = coalition.shapley_interaction(values)[:, first, second].ravel()
        table["banzhaf_interaction"] = coalition.banzhaf_interaction(values)[:, first, second].ravel()
        return table

    def smallest(self, share: float = 0.8) -> pd.DataFrame:
        """The fewest experts that reach ``share`` of the full rescue in each case (after sets="all").

        ``size`` -1 and no experts where the full rescue isn't positive.
        """
        found = coalition.smallest_coalition(self.values(), share)
        experts = self._experts()
        chosen = [
            [int(e) for slot, e in enumerate(line) if int(mask) >> slot & 1]
            for line, mask in zip(experts, found.coalition, strict=True)
        ]
        table = self._keys
        return table.assign(size=found.size, experts=chosen, rescue=found.value)

    def additivity(self) -> pd.DataFrame:
        """Sum of single rescues against the grand coalition's in each case: how far from additive."""
        masks = np.asarray(self.provenance["masks"], dtype=np.uint64)
        if not self.players:
            raise ArgumentError("single experts weren't patched; trace with sets='all' or 'sampled'")
        found = coalition.additivity(self.effects, coalitions=masks)
        table = self._keys
        return table.assign(singles=found.singles, grand=found.grand, difference=found.difference)

    def shapley_summary(self, by: str = "expert", limit: int | None = None, **summary: Any) -> pd.DataFrame:
        """Mean Shapley value of each expert, or of each slot, with interval and test; the largest first.

        >>> coal.shapley_summary(correction="max_t")

        ``by="expert"``: a case in which an expert isn't among the players counts as 0, so that the means add
        up to the mean rescue of the grand coalition; ``cases`` says in how many it is one. ``by="slot"``: of
        the expert that each case's router weighs highest (slot 0), second and so on, in this order.
        ``limit``: the first so many, whose p_adjusted is still over all. ``summary``: arguments of
        :meth:`summary` but ``by``.
        """
        by = as_choice(by, "by", ("expert", "slot"))
        table = self.shapley()
        values = table.pivot_table(index="case_id", columns=by, values="shapley", sort=True)
        values = values.reindex(self._cases.case_id)
        heads = pd.DataFrame({by: values.columns, "cases": values.notna().sum().to_numpy()})
        effects = values.fillna(0.0).to_numpy()
        order = np.argsort(-effects.mean(axis=0), kind="stable") if by == "expert" else np.arange(len(heads))
        count = len(order) if limit is None else as_count(limit, "limit")
        heads = heads.iloc[order].reset_index(drop=True)
        return summarise_first(effects[:, order], heads, self._cases, count, **summary)

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str | None = None, limit: int = 20, **summary: Any) -> Axes:
        """Mean rescue of each coalition, or what each expert contributes to it.

        >>> coal.plot(), coal.plot(kind="shapley")

        ``kind``: "bars", one for each coalition, at most ``limit`` with the highest mean; "sizes", of subsets
        of the slots: a dot for each one's mean, and the mean of all patched ones of a size as a line with its
        interval; "shapley", bars of the ``limit`` experts with the highest mean Shapley value; "slots", the
        same by rank of routing weight; "cases", a dot for each case and coalition. None is "sizes" where
        there are more than 16 subsets, else "bars". Stars: the test is below 0.05, corrected ("max_t" unless
        given) over all coalitions, experts or slots. ``summary``: arguments of :meth:`summary` but ``by``.
        Needs matplotlib.
        """
        kind = as_choice(kind, "kind", (None, "bars", "sizes", "shapley", "slots", "cases"))
        limit = as_count(limit, "limit")
        refuse_groups(summary)
        summary.pop("by", None)
        given = {"correction": "max_t", **summary}
        if kind is None:
            kind = "sizes" if self.players and self.effects.shape[1] > _MOST_BARS else "bars"
        if kind == "sizes":
            return self._by_size(ax, summary)
        if kind in ("shapley", "slots"):
            return self._shapley_bars(ax, "expert" if kind == "shapley" else "slot", limit, given)
        means = self.effects.mean(axis=0)
        order = np.sort(np.argsort(-means, kind="stable")[:limit])
        if self.players:  # by size, then by slots
            masks = [int(mask) for mask in self.provenance["masks"]]
            order = np.array(sorted(order, key=lambda column: (masks[column].bit_count(), masks[column])))
        table = self.summary(**given).iloc[order]
        names, count = self._sites.coalition.iloc[order].tolist(), len(means)
        which = f", best {limit} of {count}" if count > limit else ""
        title = f"Coalitions of experts of layer {self._layer}, {len(self)} cases{which}"
        if kind == "cases":
            effects = self.effects[:, order]
            return plot_strips(effects, table, names, title, self.noise_floor, ax, None, "", given)
        tested = (count, "coalitions")
        return plot_bars(table, names, title, "mean rescue (logits)", tested, self.noise_floor, ax, given)

    def _by_size(self, ax: Axes | None, summary: dict[str, Any]) -> Axes:
        if not self.players:
            raise ArgumentError(
                "kind is 'sizes', and these coalitions are named sets or lists, not subsets of the slots; "
                "take kind='bars', or trace with sets='all' or 'sampled'"
            )
        sizes = np.array([int(mask).bit_count() for mask in self.provenance["masks"]])
        found = np.unique(sizes)
        means = np.stack([self.effects[:, sizes == size].mean(axis=1) for size in found], axis=1)
        table = summarise(means, pd.DataFrame({"size": found}), self._cases, **summary)
        which = "all" if self.complete else f"{self.effects.shape[1]} sampled"
        title = f"Coalitions of {self.players} experts of layer {self._layer} ({which}), {len(self)} cases"
        ax = axes_of(ax, 6.0, 3.6)
        spread = sizes + 0.24 * ((np.arange(len(sizes)) * 0.618) % 1 - 0.5)
        ax.plot(spread, self.effects.mean(axis=0), ".", color=GREY, alpha=0.5, mew=0, label="one coalition")
        lines = {"mean of the coalitions of a size": (found, table)}
        ax = plot_lines(lines, title, "experts in the coalition", self.noise_floor, ax, summary)
        ax.set_xticks(found)
        return ax

    def _shapley_bars(self, ax: Axes | None, by: str, limit: int, options: dict[str, Any]) -> Axes:
        table = self.shapley_summary(by, limit, **options)
        count = self.shapley()[by].nunique()
        if by == "slot":
            names = [f"slot {slot}" for slot in table.slot]
        else:
            stars = [str(Expert(self._layer, int(expert))) for expert in table.expert]
            names = [f"{star} ({cases} cases)" for star, cases in zip(stars, table.cases, strict=True)]
        which = f", best {limit} of {count}" if count > limit else ""
        sampled = "" if self.complete else "sampled "
        title = f"{sampled}Shapley value by {by}, layer {self._layer}, {len(self)} cases{which}"
        label, tested = "mean Shapley value (logits)", (count, f"{by}s")
        return plot_bars(
            table, names, title[0].upper() + title[1:], label, tested, self.noise_floor, ax, options
        )

    @property
    def _layer(self) -> int:
        return int(self._sites.layer.iloc[0])

    @property
    def _keys(self) -> pd.DataFrame:
        return self._cases[case_keys(self._cases)].copy()

    def _experts(self) -> np.ndarray:
        """(cases, players): expert of each slot."""
        return np.stack([np.asarray(line)[: self.players] for line in self._cases.experts])

    def _by_player(self, columns: dict[str, np.ndarray]) -> pd.DataFrame:
        """Tidy: one row for each case and player that is there."""
        k = self.players
        table = self._keys.loc[self._cases.index.repeat(k)].reset_index(drop=True)
        table["layer"] = int(self._sites.layer.iloc[0])
        table["expert"] = self._experts().ravel()
        table["slot"] = np.tile(np.arange(k), len(self))
        for name, values in columns.items():
            table[name] = values.ravel()
        valid = np.stack([np.asarray(line)[:k] for line in self._cases.valid]).ravel()
        return table[valid].reset_index(drop=True)

    def __repr__(self) -> str:
        size = f"{len(self)} cases x {self.effects.shape[1]} coalitions"
        start = f"CoalitionTrace(layer {int(self._sites.layer.iloc[0])}, {size}"
        if not len(self):
            return start + ")"
        means = self.effects.mean(axis=0)
        top = int((self._toward_recall * means).argmax())
        which = "highest" if self._toward_recall > 0 else "lowest"
        return f"{start}, {which} mean rescue {means[top]:+.3f} of {self._sites.coalition.iloc[top]})"

    def _repr_html_(self) -> str:
        options: dict[str, Any] = {} if len(self) < 2 else {"correction": "max_t"}
        note = table_note(self.effects.shape[1], "coalitions", **options)
        return result_html(repr(self), self.summary(**options), self.failed, [note])
