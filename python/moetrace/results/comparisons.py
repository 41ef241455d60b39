"""An expert beside others, case by case: equations 7 and 11 to 13, Tables 3, 7 and 10."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from moetrace import effects
from moetrace.arguments import as_choice, refuse_type
from moetrace.cases import case_keys
from moetrace.errors import LayerRangeError
from moetrace.results.base import summarise
from moetrace.results.controls import Controls, ExpertInLayer
from moetrace.results.display import interval_label, plain, refuse_groups, result_html, table_note
from moetrace.results.expert_arrays import Floats
from moetrace.results.expert_name import Expert
from moetrace.results.layers import LayerTrace
from moetrace.results.pictures import Pair, of_its_metric, plot_counts, plot_pairs, plot_points
from moetrace.results.positions import CaseMismatchError
from moetrace.stats import bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """An expert's rescue beside that of others, case by case.

    ``rows``: one row for each case, with case_id and relation_id. ``star``: the expert.
    """

    star: Expert
    rows: pd.DataFrame
    unit: str = field(default="logits", kw_only=True)  # of the trace's metric

    # What the summary calls a quantity, and the column of rows that holds it; the contrast comes last.
    quantities: ClassVar[dict[str, str]] = {
        "rescue": "star_rescue",
        "control": "control_rescue",
        "specificity": "specificity",
    }

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mean(self) -> float:
        """Mean specificity over the cases, in logits."""
        return float(self.rows.specificity.mean())

    @property
    def positive_fraction(self) -> float:
        """Share of the cases with positive specificity."""
        known = self.rows.specificity.dropna()
        return float((known > 0).mean())

    def summary(self, **options: Any) -> pd.DataFrame:
        """Mean, interval and test of each quantity (Table 1; with ``by="relation_id"`` Table 5).

        >>> held.specificity(star).summary(by="relation_id")

        One row each for rescue, control and specificity: quantity, mean, positive_fraction, ci_low,
        ci_high, p_value, n. ``options`` are those of :meth:`ExpertTrace.summary`.
        """
        values = self.rows[list(self.quantities.values())].to_numpy(dtype=float)
        return summarise(values, pd.DataFrame({"quantity": list(self.quantities)}), self.rows, **options)

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str = "means", **summary: Any) -> Axes:
        """Mean of each quantity with its interval, or every case.

        ``kind``: "means", or "cases", a line for each case from the expert's rescue to its controls'.
        ``summary``: as :meth:`summary`, but ``by``. Needs matplotlib.
        """
        kind = as_choice(kind, "kind", ("means", "cases"))
        refuse_groups(summary)
        table = self.summary(**summary)
        if kind == "cases":
            known = self.rows.dropna(subset="specificity")
            title = f"{self._title}, each of {len(known)} cases"
            first, second = (known[name].to_numpy(float) for name in ("star_rescue", "control_rescue"))
            names = (plain(self.star), "mean of its controls")
            return plot_pairs(
                [Pair("", first, second, table)], names, title, (len(table), "quantities"), 0.0, ax, summary
            )
        tested = (len(table), "quantities")
        names = table.quantity.tolist()
        return plot_points(table, names, f"{self._title}, {len(self)} cases", 0.0, ax, (), summary, tested)

    @property
    def _title(self) -> str:
        return f"{plain(self.star)} against other active experts"

    def _means(self) -> str:
        means = (f"{name} {self.rows[column].mean():+.3f}" for name, column in self.quantities.items())
        return ", ".join(means)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.star}: {self._means()}; {len(self)} cases)"

    def _repr_html_(self) -> str:
        notes = [*self._remarks(), table_note(len(self.quantities), "quantities")]
        return result_html(repr(self), self.summary(), None, notes)

    def _remarks(self) -> list[str]:
        """What a reader should know beside the table."""
        return []


@dataclass(frozen=True, eq=False, repr=False)
class Specificity(Contrast):
    """Rescue of an expert minus the mean rescue of its controls, case by case (equation 7).

    >>> spec = held.specificity(star, seed=0)
    >>> spec.mean, spec.summary(), spec.summary(by="relation_id")

    Attributes:
        rows: case_id, relation_id, star_rescue (0 where the star isn't clean-active), control_rescue,
            specificity (logits), clean_active (the star's), controls (a tuple of expert numbers).
        short_cases: case_id, available, used: cases with fewer other clean-active experts than asked for.
            Those with none (used 0) have no specificity and no row.
        controls: how many were asked for. seed: of their draw.
    """

    short_cases: pd.DataFrame
    controls: int
    seed: int

    @classmethod
    def of(cls, drawn: Controls, seed: int) -> Specificity:
        """Over the cases that have a control."""
        rows = drawn.rows.dropna(subset="specificity").reset_index(drop=True)
        return cls(drawn.compared.star, rows, drawn.short, drawn.asked, seed)

    @property
    def _title(self) -> str:
        return f"{plain(self.star)} against {self.controls} random active expert{'s'[: self.controls != 1]}"

    def _remarks(self) -> list[str]:
        active = int(self.rows.clean_active.sum())
        remarks = [
            f"clean-active in {active} of {len(self)} cases; {self.controls} controls each, seed {self.seed}"
        ]
        if len(self.short_cases):
            without = int((self.short_cases.used == 0).sum())
            remarks.append(f"{len(self.short_cases)} cases have fewer controls, {without} of them none")
        return remarks

    def __repr__(self) -> str:
        return f"Specificity({self.star}: {self._means()}; {'; '.join(self._remarks())})"


class AllActive(Contrast):
    """Rescue of an expert minus the mean rescue of all other clean-active ones (equations 11 to 13).

    >>> held.all_active(star).summary()

    ``rows``: case_id, relation_id, star_rescue, control_rescue (equation 12), specificity (equation 13),
    others (how many); only the cases where the star and another expert of its layer are clean-active.
    """

    @property
    def _title(self) -> str:
        return f"{plain(self.star)} against all other active experts"

    @classmethod
    def of(cls, compared: ExpertInLayer) -> AllActive:
        """Over the cases where the contrast is defined."""
        told = (compared.rescue, compared.active, compared.column)
        rows = compared.cases[case_keys(compared.cases)].assign(
            star_rescue=compared.star_rescue,
            control_rescue=effects.all_active_rescue(*told),
            specificity=effects.all_active_specificity(*told),
            others=compared.others.sum(axis=1),
        )
        return cls(compared.star, rows.dropna(subset="specificity").reset_index(drop=True))


@dataclass(frozen=True, eq=False, repr=False)
class ActiveRanks:
    """Where an expert's rescue stands among the clean-active ones of its layer (Table 10).

    >>> held.ranks(star).mean_rank

    Attributes:
        rows: case_id, relation_id, rank (1 is the largest rescue; a tie counts against the expert),
            percentile (1 the best, 0 the worst), active (experts ranked, the star included), tied (others
            with the very same rescue); one row for each ranked case.
        n: cases of the trace. n_ranked: those where the star and another expert are clean-active.
        top_1, top_2: in how many of them the rank is at most 1, at most 2.
        mean_rank, mean_percentile: over the ranked cases.
        contrast: selected minus all other active experts, over the same cases.
    """

    star: Expert
    rows: pd.DataFrame
    n: int
    n_ranked: int
    top_1: int
    top_2: int
    mean_rank: float
    mean_percentile: float
    contrast: AllActive

    @classmethod
    def of(cls, compared: ExpertInLayer) -> ActiveRanks:
        """Ranks over the cases where the star is clean-active beside another expert."""
        found = effects.all_active_ranks(compared.rescue, compared.active, compared.column)
        keep = ~np.isnan(found.rank)
        rows = compared.cases.loc[keep, case_keys(compared.cases)].reset_index(drop=True)
        rows["rank"] = found.rank[keep].astype(np.int64)
        rows["percentile"] = found.percentile[keep]
        rows["active"] = compared.active.sum(axis=1)[keep]
        rows["tied"] = found.tied[keep]
        names = ("n", "n_ranked", "top_1", "top_2", "mean_rank", "mean_percentile")
        figures = {name: getattr(found, name) for name in names}
        return cls(star=compared.star, rows=rows, **figures, contrast=AllActive.of(compared))

    def summary(self, **options: Any) -> pd.DataFrame:
        """Table 10: metric, value, and for the contrast ci_low and ci_high.

        ``options``: those of :meth:`ExpertTrace.summary`, but ``by``.
        """
        refuse_groups(options, "one row for each metric, over all cases", ".contrast.summary(by=...)")
        own = self.contrast.summary(**options).set_index("quantity").loc["specificity"]
        nan = float("nan")
        return pd.DataFrame(
            [
                ("ranked_cases", float(self.n_ranked), nan, nan),
                ("top_1", float(self.top_1), nan, nan),
                ("top_2", float(self.top_2), nan, nan),
                ("mean_rank", self.mean_rank, nan, nan),
                ("mean_percentile", self.mean_percentile, nan, nan),
                ("selected_minus_others", float(own["mean"]), float(own.ci_low), float(own.ci_high)),
            ],
            columns=["metric", "value", "ci_low", "ci_high"],
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """In how many cases the expert has each rank; 1 is the largest rescue. Needs matplotlib.

        Beside it how many would have it if each rank among a case's active experts were as likely.
        """
        places = range(1, int(self.rows.active.max()) + 1)
        counts = self.rows["rank"].value_counts().reindex(places, fill_value=0)
        active = self.rows.active.to_numpy()
        chance = np.array([(1 / active[active >= place]).sum() for place in places])
        title = f"Rank of {plain(self.star)} among the active experts, {self.n_ranked} of {self.n} cases"
        return plot_counts(
            counts.index.tolist(), counts.tolist(), title, ("rank of its rescue (1 is the largest)", "cases"),
            ax, (chance, "if every rank were as likely"),
        )  # fmt: skip

    def _repr_html_(self) -> str:
        note = f"contrast: {interval_label()}, uncorrected; ranks are counts of cases"
        return result_html(repr(self), self.summary(), None, [note])

    def __repr__(self) -> str:
        return (
            f"ActiveRanks({self.star}: first in {self.top_1} and among the first two in {self.top_2} of "
            f"{self.n_ranked} ranked cases of {self.n}, mean rank {self.mean_rank:.2f}, mean percentile "
            f"{self.mean_percentile:.2f}, {self.contrast.mean:+.3f} above the other active experts)"
        )


@dataclass(frozen=True)
class Activity:
    """How often an expert is active, and how many zero rows its average keeps (Table 3): counts of cases.

    Attributes:
        active: the clean run's router selects the expert. n: all cases.
        noised_active: the noised run's router does.
        zero_rows: rescue is exactly 0. Every inactive case is one; an active one can be, too, where the
            logits are so coarse (bfloat16) that the patch moves neither.
        zero_while_active: those of the second kind.
    """

    star: Expert
    active: int
    n: int
    noised_active: int
    zero_rows: int
    zero_while_active: int

    @classmethod
    def of(cls, counted: ExpertInLayer) -> Activity:
        """Counts for the star."""
        zero = counted.star_rescue == 0
        return cls(
            star=counted.star,
            active=int(counted.star_active.sum()),
            n=len(zero),
            noised_active=int(counted.noised_active[:, counted.column].sum()),
            zero_rows=int(zero.sum()),
            zero_while_active=int((zero & counted.star_active).sum()),
        )

    def _repr_html_(self) -> str:
        counts = pd.DataFrame([{**vars(self), "star": str(self.star)}])
        return result_html(f"Activity of {self.star} (Table 3)", counts, None, ["counts of cases"])

    def __str__(self) -> str:
        return f"{self.star} clean-active in {self.active}/{self.n}, {self.zero_rows} zero rows"


def layer_share(
    compared: ExpertInLayer, layer: Floats, drawn: Controls | None, cluster: str | None, **options: Any
) -> pd.DataFrame:
    """Layer rescue, and the ratios of means with their intervals (Table 7); ``options``: the bootstrap's."""
    labels = None if cluster is None else compared.cases[cluster].to_numpy()
    found = [("layer_rescue", bootstrap(layer, cluster=labels, **options))]
    shares = [("rescue_over_layer", compared.star_rescue)]
    if drawn is not None:
        shares.append(("specificity_over_layer", drawn.specificity))
    for name, values in shares:
        keep = ~np.isnan(values)
        own = None if labels is None else labels[keep]
        found.append((name, effects.ratio_of_means(values[keep], layer[keep], cluster=own, **options)))
    return pd.DataFrame(
        [(name, result.estimate, result.ci_low, result.ci_high, result.n) for name, result in found],
        columns=["quantity", "value", "ci_low", "ci_high", "n"],
    )


def layer_rescue(compared: ExpertInLayer, layers: LayerTrace) -> Floats:
    """Block rescue of the star's layer, in the order of the expert trace's cases."""
    star = compared.star
    if not isinstance(layers, LayerTrace):
        refuse_type(layers, "layers", "a LayerTrace, as trace_layers gives it")
    if star.layer not in layers.layers:
        raise LayerRangeError(
            f"layer {star.layer} of {star} isn't in the layer trace, which has layers "
            f"{list(layers.layers)}; trace it with trace_layers(model, cases, layers={star.layer})"
        )
    mine = compared.cases.case_id.tolist()
    theirs = {case_id: position for position, case_id in enumerate(layers.cases.case_id.tolist())}
    only_mine = [case_id for case_id in mine if case_id not in theirs]
    only_theirs = sorted(set(theirs) - set(mine))
    if only_mine or only_theirs:
        raise CaseMismatchError(
            f"the expert trace has {len(mine)} cases and the layer trace {len(theirs)}; expected the same "
            f"ones. Only in the expert trace: {len(only_mine)}, ids {only_mine[:20]}; only in the layer "
            f"trace: {len(only_theirs)}, ids {only_theirs[:20]}. Trace both on the same cases"
        )
    column = layers.layers.index(star.layer)
    rescue: Floats = layers.effects[[theirs[case_id] for case_id in mine], column]
    return rescue
