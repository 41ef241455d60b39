"""A screening by gradient: first-order estimates of every expert's rescue, and exact ones of the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_choice, as_count
from moetrace.cases import case_keys
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult, summarise_first
from moetrace.results.display import result_html, table_note
from moetrace.results.expert_arrays import Bools, Floats
from moetrace.results.expert_map import ExpertMap
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.further import read_only
from moetrace.results.pictures import of_its_metric, plot_points
from moetrace.results.pictures.agreement import plot_agreement
from moetrace.results.pictures.axes import DARK, dress, in_unit
from moetrace.results.positions import positions_of
from moetrace.results.settings import refuse_other_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANKS: tuple[Literal["mean", "abs"], ...] = ("mean", "abs")


def screen_sites(experts: Mapping[str, int], tokens: int | None) -> pd.DataFrame:
    """A row for each site: ``experts`` by layer, and each of the first ``tokens`` tokens where given."""
    parts = []
    for layer, count in experts.items():
        own = pd.DataFrame({"layer": int(layer), "expert": np.repeat(np.arange(count), tokens or 1)})
        parts.append(own if tokens is None else own.assign(position=np.tile(np.arange(tokens), count)))
    return pd.concat(parts, ignore_index=True)


def _columns(verified: str | list[int], count: int) -> np.ndarray:
    """Columns of the sites that were patched exactly: "all", or these."""
    return np.arange(count) if verified == "all" else np.array(verified, dtype=np.int64)


class NotVerifiedError(ArgumentError):
    """The exact sweep that a figure is to be compared with wasn't run."""


class ScreenTrace(TraceResult):
    """First-order estimates of every routed expert's rescue (attribution patching).

    >>> screen = mt.screen_experts(model, cases, top=20)
    >>> screen.top(5), screen.summary()
    >>> mt.screen_experts(model, cases, verify="all").recall(20)

    ``effects``: float64 (cases, sites), the estimate g · delta_e in the metric's unit; exactly 0 where the
    expert isn't clean-active. ``rescue``: the same by exact patches (equation 4), NaN in columns that
    weren't verified. ``clean_active``: bool, of the same shape. A site is an expert of a layer; with
    ``position="all"`` it is one at one token, by its index in the prompt, and a case without such a token
    counts with 0.
    """

    kind: ClassVar[str] = "screen"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "expert")

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        effects: np.ndarray,
        clean_active: np.ndarray,
        rescue: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> None:
        patched = cases.noised.to_numpy()[:, None] + rescue
        super().__init__(cases, sites, patched, effects, failed, provenance)
        self.clean_active: Bools = read_only(clean_active)
        self.rescue: Floats = read_only(rescue)

    def _measured(self) -> dict[str, np.ndarray]:
        return {"effects": self.effects, "clean_active": self.clean_active, "rescue": self.rescue}

    @property
    def verified(self) -> Bools:
        """bool (sites,): which were patched exactly."""
        found = np.zeros(len(self._sites), bool)
        found[_columns(self.provenance["verified"], len(found))] = True
        return found

    @property
    def noise_floor(self) -> float:
        """That of the exact patches, in the metric's unit (see :class:`LayerTrace`); NaN where none ran."""
        return super().noise_floor if self.verified.any() else float("nan")

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy, one row for each case and expert.

        case_id, relation_id, layer, expert, [position,] clean_active, clean, noised, estimate, rescue.
        With ``position="all"`` only where the expert is clean-active: all others are 0. Rescue is NaN where
        it wasn't verified.
        """
        n, m = self.effects.shape
        kept = self.clean_active.ravel() if "position" in self._sites else np.ones(n * m, bool)
        case, site = np.divmod(np.flatnonzero(kept), max(m, 1))
        names = [*case_keys(self._cases), *self._sites, "clean_active", "clean", "noised"]
        table = {name: self._cases[name].to_numpy()[case] for name in case_keys(self._cases)}
        table |= {str(name): self._sites[name].to_numpy()[site] for name in self._sites}
        table |= {name: self._cases[name].to_numpy()[case] for name in ("clean", "noised")}
        table["clean_active"] = self.clean_active.ravel()[kept]
        values = {"estimate": self.effects.ravel()[kept], "rescue": self.rescue.ravel()[kept]}
        return pd.DataFrame({name: table[name] for name in names} | values)

    def top(self, k: int | None = None, by: Literal["mean", "abs"] | None = None) -> pd.DataFrame:
        """The experts with the highest estimates, best first.

        The highest, but of "kl" the lowest: nearest to the clean run. layer, expert, [position,] star (its
        name), active (cases in which it is clean-active), estimate and rescue (means over all cases; NaN
        where it wasn't verified). ``k``: how many; None for as many as were
        verified, or all. ``by``: "mean" or "abs", the mean of magnitudes; None as it was screened. Of equal
        ones the lower layer and expert comes first. Experts that are never clean-active are left out.
        """
        order = self.order(by)
        limit = int(self.verified.sum()) or len(order) if k is None else as_count(k, "k")
        order = order[:limit]
        found = self._sites.iloc[order].reset_index(drop=True)
        stars = [str(Expert(layer, expert)) for layer, expert in zip(found.layer, found.expert, strict=True)]
        return found.assign(
            star=stars,
            active=self.clean_active[:, order].sum(axis=0),
            estimate=self.effects[:, order].mean(axis=0),
            rescue=self.rescue[:, order].mean(axis=0),
        )

    def summary(self, limit: int | None = None, **options: Any) -> pd.DataFrame:  # type: ignore[override]
        """Estimates of the best experts with intervals and tests, and the exact mean rescue beside them.

        Rows and ``limit`` as :meth:`top`; ``options`` as of :meth:`TraceResult.summary`, whose columns follow
        star, active and rescue. They were chosen on these cases: a ``correction`` is over all experts that
        are ever clean-active.
        """
        self._refuse_no_cases()
        table = self.top(limit)
        heads = self.top(len(self.order())).drop(columns=["estimate"])
        by = options.pop("by", None)
        if by is not None:
            raise ArgumentError(f"by is {by!r}; a table of the best experts is over all cases: use .by()")
        return summarise_first(self.effects[:, self.order()], heads, self._cases, len(table), **options)

    def recall(self, k: int, exact: ExpertTrace | ExpertMap | None = None) -> float:
        """Of the ``k`` experts with the highest exact mean rescue, the share among the ``k`` best estimates.

        ``exact``: a :func:`moetrace.trace_experts` of these cases and layers; None where the exact sweep was
        run with it (``verify="all"``). Errors: NotVerifiedError without either; CaseMismatchError and
        SettingsMismatchError for a trace of other cases, model or arguments.
        """
        k = as_count(k, "k")
        rescue, columns = self._exact(exact)
        best = columns[np.argsort(-self._toward_recall * rescue.mean(axis=0)[columns], kind="stable")][:k]
        return len(set(best) & set(self.order("mean")[: len(best)])) / max(1, len(best))

    def correlation(
        self,
        exact: ExpertTrace | ExpertMap | None = None,
        method: Literal["spearman", "pearson"] = "spearman",
        over: Literal["experts", "cases"] = "experts",
    ) -> float:
        """Correlation of estimates with exact rescues, over experts that are ever clean-active.

        ``over``: "experts", of means over cases; "cases", of every case and clean-active expert. ``exact``
        and errors: as :meth:`recall`.
        """
        as_choice(method, "method", ("spearman", "pearson"))
        as_choice(over, "over", ("experts", "cases"))
        rescue, columns = self._exact(exact)
        if over == "experts":
            pair = [self.effects[:, columns].mean(axis=0), rescue[:, columns].mean(axis=0)]
        else:
            active = self.clean_active[:, columns]
            pair = [self.effects[:, columns][active], rescue[:, columns][active]]
        if method == "spearman":
            pair = [pd.Series(values).rank().to_numpy() for values in pair]
        return float(np.corrcoef(pair[0], pair[1])[0, 1])

    @of_its_metric
    def plot(self, ax: Axes | None = None, kind: str = "experts", limit: int = 30, **summary: Any) -> Axes:
        """Estimates of the best experts with intervals, and the exact mean rescues beside them.

        >>> screen.plot()
        >>> screen.plot(kind="agreement")       # estimate against exact rescue of every case and expert

        ``summary``: arguments of :meth:`summary`; ``correction`` is "max_t" unless given. Needs matplotlib.
        """
        as_choice(kind, "kind", ("experts", "agreement"))
        if kind == "agreement":
            shown = self.clean_active & self.verified
            if not shown.any():
                raise NotVerifiedError(
                    "no expert was patched exactly; screen with verify=True or verify='all'"
                )
            return plot_agreement(self.effects[shown], self.rescue[shown], self._title(), ax)
        options = {"correction": "max_t", **summary}
        table = self.summary(min(as_count(limit, "limit"), len(self.order())), **options)
        names = (
            [f"{star} at {at}" for star, at in zip(table.star, table.position, strict=True)]
            if ("position" in table)
            else table.star.tolist()
        )
        floor = 0.0 if np.isnan(self.noise_floor) else self.noise_floor
        axes = plot_points(
            table, names, self._title(), floor, ax, (), options, (len(self.order()), "experts")
        )
        axes.plot(np.arange(len(table)), table.rescue, "x", color=DARK, ms=5, label="exact mean rescue")
        axes.set_ylabel(in_unit("mean estimate (logits)"), fontsize=9)
        return dress(axes, self._title())

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> ScreenTrace:
        """As :meth:`save` wrote it."""
        sites = screen_sites(provenance["experts"], provenance["tokens"])
        case = pd.Series(np.arange(len(cases)), index=cases.case_id)[rows.case_id].to_numpy()
        names = list(sites)
        places = pd.MultiIndex.from_frame(sites).get_indexer(pd.MultiIndex.from_frame(rows[names]))
        shape = (len(cases), len(sites))
        effects, active = np.zeros(shape), np.zeros(shape, bool)
        rescue = np.full(shape, np.nan)
        rescue[:, _columns(provenance["verified"], shape[1])] = 0.0
        effects[case, places], active[case, places] = rows.estimate, rows.clean_active
        rescue[case, places] = rows.rescue
        return cls(cases, sites, effects, active, rescue, failed, provenance)

    def _rebuilt(
        self,
        cases: pd.DataFrame,
        measured: dict[str, np.ndarray],
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> Self:
        return type(self)(cases, self._sites, failed=failed, provenance=provenance, **measured)

    def order(self, by: Literal["mean", "abs"] | None = None) -> np.ndarray:
        """Columns of ``effects`` of experts that are ever clean-active, the best first (see :meth:`top`)."""
        by = as_choice(self.provenance.get("rank", "mean") if by is None else by, "by", RANKS)
        scores = (np.abs(self.effects) if by == "abs" else self._toward_recall * self.effects).mean(axis=0)
        ever = np.flatnonzero(self.clean_active.any(axis=0))
        found: np.ndarray = ever[np.argsort(-scores[ever], kind="stable")]
        return found

    def _exact(self, exact: ExpertTrace | ExpertMap | None) -> tuple[np.ndarray, np.ndarray]:
        """Exact rescues (cases, sites), and the columns of experts that are ever clean-active."""
        columns = np.sort(self.order())
        if exact is None:
            if not self.verified[columns].all():
                raise NotVerifiedError(
                    f"the exact sweep wasn't run: {int(self.verified.sum())} of {len(columns)} experts are "
                    "verified. Give a trace_experts of these cases, or screen with verify='all'"
                )
            return self.rescue, columns
        if not isinstance(exact, ExpertTrace | ExpertMap):
            raise ArgumentError(f"exact is a {type(exact).__name__}; expected what trace_experts gives")
        refuse_other_settings(self, "the screening", exact, "the exact trace")
        same = set(exact.sites) == set(self._sites)
        names = list(self._sites)
        sites = pd.MultiIndex.from_frame(exact.sites[names]) if same else pd.MultiIndex.from_arrays([[]])
        where = sites.get_indexer(pd.MultiIndex.from_frame(self._sites)) if same else np.array([-1])
        if (where < 0).any():
            raise ArgumentError(
                "the exact trace has other experts than the screening; trace the same layers and positions"
            )
        places, _ = positions_of(self._cases.case_id.tolist(), exact.cases.case_id.tolist(), set())
        return np.nan_to_num(exact.effects[places][:, where]), columns

    def _title(self) -> str:
        tokens = ", every token" if "position" in self._sites else ""
        return f"First-order estimates of experts{tokens}, {len(self)} cases"

    def __repr__(self) -> str:
        layers = self._sites.layer.nunique()
        found = self.top(1)
        best = f"; best {found.star[0]} with {found.estimate[0]:+.3f}" if len(found) else ""
        if len(found) and not np.isnan(found.rescue[0]):
            best += f" (exact {found.rescue[0]:+.3f})"
        known = f"{int(self.verified.sum())} verified"
        if self.provenance["verified"] == "all" and len(found):
            k = min(self.provenance["top"], len(self.order()))
            known = f"all verified, recall@{k} {self.recall(k):.2f}"
        return f"ScreenTrace({len(self)} cases x {len(self._sites)} sites of {layers} layers{best}; {known})"

    def _repr_html_(self) -> str:
        if len(self) < 2:
            return result_html(repr(self), self.top(10), self.failed)
        notes = [
            "mean: the first-order estimate, g · delta_e. rescue: by exact patches, where they ran.",
            table_note(len(self.order()), "experts", correction="max_t"),
        ]
        count = min(10, len(self.order()))
        return result_html(repr(self), self.summary(count, correction="max_t"), self.failed, notes)
