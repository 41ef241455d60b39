"""The layer sweep's result (section 3.3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_choice, as_count, shown
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult
from moetrace.results.display import LEVEL, result_html, sites_html, tested_label
from moetrace.results.further import read_only
from moetrace.results.pictures import CellMap, of_its_metric, plot_layers, plot_map, plot_panels, plot_strips

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sharpness:
    """How far the top layer stands out (Table 6): rescues and their gap in logits."""

    top_layer: int
    top_rescue: float
    next_layer: int | None
    next_rescue: float
    gap: float

    def _repr_html_(self) -> str:
        return result_html("Sharpness (Table 6)", pd.DataFrame([asdict(self)]), None, ["rescues in logits"])


class LayerTrace(TraceResult):
    """Rescue of the clean block output at each layer.

    >>> layers = mt.trace_layers(model, discovery)
    >>> layers.best, layers.summary(), layers.plot()
    >>> layers.direct.mean(axis=0), layers.indirect.mean(axis=0)      # writers and mediators

    ``direct``, ``direct_linear``, ``indirect``: float64 (cases, layers) as ``effects``, in logits; None in a
    result that an earlier version saved. The patch changes its layer's output at the final token by delta.

    - ``direct``: what of the rescue goes straight to the logits. With h the noised run's residual stream
      behind the last layer, it is the logit difference (equation 1) of norm(h + delta) minus that of norm(h):
      every later layer is frozen to what it wrote in the noised run.
    - ``direct_linear``: the same with the final norm's scale, and the slope of a soft cap on the logits, as
      they are at h, so that the effects of patches add up.
    - ``indirect``: rescue - direct, what later layers make of the patch.

    Where the patched token isn't the final one, direct effects are 0. Where a model doesn't allow them they
    are NaN, and ``provenance["direct"]`` says why.
    """

    kind: ClassVar[str] = "layers"
    site_columns: ClassVar[tuple[str, ...]] = ("layer",)

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
        direct: np.ndarray | None = None,
        direct_linear: np.ndarray | None = None,
    ) -> None:
        super().__init__(cases, sites, patched, effects, failed, provenance)
        self.direct: Floats | None = None if direct is None else read_only(direct)
        self.direct_linear: Floats | None = None if direct_linear is None else read_only(direct_linear)

    @property
    def indirect(self) -> Floats | None:
        """Rescue minus direct."""
        return None if self.direct is None else self.effects - self.direct

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: as of every trace, and direct, indirect (their sum is rescue) and direct_linear in logits."""
        return super().rows.assign(**{name: values.ravel() for name, values in self._straight().items()})

    def _straight(self) -> dict[str, np.ndarray]:
        """Direct effects, where they are known."""
        known = {"direct": self.direct, "indirect": self.indirect, "direct_linear": self.direct_linear}
        return {name: values for name, values in known.items() if values is not None}

    def _measured(self) -> dict[str, np.ndarray]:
        straight = {name: values for name, values in self._straight().items() if name != "indirect"}
        return {**super()._measured(), **straight}

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> LayerTrace:
        """As :meth:`save` wrote it."""
        sites = rows[["layer"]].drop_duplicates().reset_index(drop=True)
        names = ("patched", "rescue", "direct", "direct_linear")
        values = {n: rows[n].to_numpy().reshape(len(cases), len(sites)) for n in names if n in rows}
        effects = values.pop("rescue")
        return cls(cases, sites, effects=effects, failed=failed, provenance=provenance, **values)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, in the order of the columns of ``effects``."""
        return tuple(int(layer) for layer in self._sites.layer)

    @property
    def best(self) -> int:
        """The layer with the highest mean rescue (for kl and rank, and with ``mode="noise"``, the lowest); of
        equal ones the lowest. NoCasesError for an empty subset."""
        self._refuse_no_cases()
        means = self._toward_recall * self.effects.mean(axis=0)
        return min(layer for layer, mean in zip(self.layers, means, strict=True) if mean == means.max())

    def sharpness(self) -> Sharpness:
        """Top layer, next-highest layer and the gap between their mean rescues (Table 6), or between what
        noising them takes away.
        """
        self._refuse_no_cases()
        means = self._toward_recall * self.effects.mean(axis=0)
        order = sorted(range(len(means)), key=lambda i: (-means[i], self.layers[i]))
        top = order[0]
        if len(order) == 1:
            return Sharpness(self.layers[top], float(means[top]), None, float("nan"), float("nan"))
        runner_up = order[1]
        return Sharpness(
            self.layers[top],
            float(means[top]),
            self.layers[runner_up],
            float(means[runner_up]),
            float(means[top] - means[runner_up]),
        )

    @of_its_metric
    def plot(
        self,
        ax: Axes | None = None,
        kind: str = "curve",
        by: str | None = None,
        limit: int = 12,
        **summary: Any,
    ) -> Axes:
        """Mean rescue by layer with its interval (Figure 1, left); filled marks are below 0.05 in the test.

        >>> layers.plot()
        >>> layers.plot(by="relation_id")                    # a panel for each relation
        >>> layers.plot(by="relation_id", kind="heatmap")    # layer x relation
        >>> layers.plot(kind="cases")                        # every case

        ``kind``: "curve"; "cases", a strip of dots for each layer; or "heatmap", layer x relation, with dots
        where the test within the relation is below 0.05. ``by="relation_id"`` gives one panel of curves for
        each relation, the mean of all cases dashed beside it; the Axes given back are the first panel's,
        ``.figure`` has all, and ``ax`` can't be given. At most the ``limit`` relations with the most cases
        are shown. ``summary``: arguments of :meth:`summary`; ``correction`` is "max_t" unless given. The
        labels say which were used. Needs matplotlib (``pip install "moetrace[plot]"``).
        """
        kind = as_choice(kind, "kind", ("curve", "cases", "heatmap"))
        by = as_choice(by, "by", (None, "relation_id"))
        limit = as_count(limit, "limit")
        options = {"correction": "max_t", **summary}
        if kind == "heatmap":
            return self._relation_map(ax, limit, options)
        if by is not None:
            return self._panels(ax, kind, limit, options)
        if kind == "curve":
            title = f"{self._what}, {len(self)} cases"
            table, toward = self.summary(**options), self._toward_recall
            return plot_layers(table, self.noise_floor, ax, options, title, self.noises, toward)
        order = np.argsort(self.layers)
        table = self.summary(**options).iloc[order]
        title = f"{self._what}, each of {len(self)} cases"
        names, effects = [self.layers[column] for column in order], self.effects[:, order]
        return plot_strips(effects, table, names, title, self.noise_floor, ax, None, "layer", options)

    @property
    def _what(self) -> str:
        done = "Noised block output put in" if self.noises else "Clean block output restored"
        return f"{done} at one layer"

    def _panels(self, ax: Axes | None, kind: str, limit: int, options: dict[str, Any]) -> Axes:
        if kind != "curve" or ax is not None:
            found, remedy = ("kind", "'curve' or 'heatmap'") if kind != "curve" else ("ax", "None")
            raise ArgumentError(
                f"{found} is {shown(kind if kind != 'curve' else ax)}; by='relation_id' draws a figure of "
                f"several panels, and {found} must be {remedy}"
            )
        shown_relations, title = self._relations(limit)
        table = self.summary(by="relation_id", **options)
        panels = [(name, table[table.relation_id == name]) for name in shown_relations]
        title = f"{self._what}, {title}"
        return plot_panels(panels, self.summary(**options), title, self.noise_floor, options)

    def _relation_map(self, ax: Axes | None, limit: int, options: dict[str, Any]) -> Axes:
        relations, title = self._relations(limit)
        table = self.summary(by="relation_id", **options)
        columns = sorted(self.layers)
        means = table.pivot(index="relation_id", columns="layer", values="mean").loc[relations, columns]
        p = "p_adjusted" if "p_adjusted" in table else "p_value"
        below = table.pivot(index="relation_id", columns="layer", values=p).loc[relations, columns] < LEVEL
        counts = self._cases.relation_id.value_counts()
        cells = CellMap(
            values=means.to_numpy(),
            marked=below.to_numpy(),
            rows=[f"{name or '(none)'} ({counts[name]})" for name in relations],
            columns=columns,
            labels=("layer", "relation (cases)"),
            mark_label=f"{tested_label(len(columns), 'layers', **options)} within a relation",
            empty_label="",
            upward=False,
            cell=(0.16, 0.24),
        )
        return plot_map(cells, f"Rescue by layer and relation, {title}", ax)

    def _relations(self, limit: int) -> tuple[list[str], str]:
        """The relations with the most cases, and what a title says of them."""
        counts = self._cases.relation_id.value_counts()
        order = sorted(counts.index, key=lambda name: (-counts[name], name))
        which = f"{limit} of {len(order)} relations" if len(order) > limit else f"{len(order)} relations"
        return order[:limit], f"{len(self)} cases of {which}" if len(
            order
        ) <= limit else f"the largest {which}"

    def __repr__(self) -> str:
        if not len(self):
            return f"LayerTrace(0 cases x {len(self.layers)} layers)"
        means = self.effects.mean(axis=0)
        best = self.best
        return (
            f"LayerTrace({len(self)} cases x {len(self.layers)} layers, best layer {best} with mean rescue "
            f"{means[self.layers.index(best)]:+.3f}, numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        return sites_html(self, "layers")
