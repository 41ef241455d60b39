"""Rescue of coalitions of experts, and what follows from it (appendix G)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from moetrace import coalition
from moetrace.cases import case_keys
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult, summarise
from moetrace.results.display import plot_lines, plot_points, refuse_groups, result_html, table_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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

    def plot(self, ax: Axes | None = None, **summary: Any) -> Axes:
        """Mean rescue of each coalition; of subsets of the slots, by how many slots they take.

        Of subsets each dot is one's mean over the cases, and the line with its interval the mean over all
        patched ones of that size. ``summary``: arguments of :meth:`summary` but ``by``. Needs matplotlib.
        """
        refuse_groups(summary)
        layer, count = int(self._sites.layer.iloc[0]), self.effects.shape[1]
        if not self.players:
            title = f"Coalitions of experts of layer {layer}, {len(self)} cases"
            names = self._sites.coalition.tolist()
            return plot_points(self.summary(**summary), names, title, self.noise_floor, ax, (), summary)
        sizes = np.array([int(mask).bit_count() for mask in self.provenance["masks"]])
        found = np.unique(sizes)
        means = np.stack([self.effects[:, sizes == size].mean(axis=1) for size in found], axis=1)
        table = summarise(means, pd.DataFrame({"size": found}), self._cases, **summary)
        which = "all" if self.complete else f"{count} sampled"
        title = f"Coalitions of {self.players} routed experts of layer {layer} ({which}), {len(self)} cases"
        lines = {"mean of the coalitions of a size": (found, table)}
        ax = plot_lines(lines, title, "slots in the coalition", self.noise_floor, ax, summary)
        ax.plot(sizes, self.effects.mean(axis=0), ".", color="#777777", alpha=0.6, label="one coalition")
        ax.set_xticks(found)
        ax.legend(frameon=False, fontsize=8)
        return ax

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
        means = self.effects.mean(axis=0)
        top = int(means.argmax())
        return (
            f"CoalitionTrace(layer {int(self._sites.layer.iloc[0])}, {len(self)} cases x {len(means)} "
            f"coalitions, highest mean rescue {means[top]:+.3f} of {self._sites.coalition.iloc[top]})"
        )

    def _repr_html_(self) -> str:
        return result_html(
            repr(self), self.summary(), self.failed, [table_note(self.effects.shape[1], "coalitions")]
        )
