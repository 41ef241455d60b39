"""The layer sweep's result (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.results.base import TraceResult, read_only
from moetrace.results.display import plot_layers, refuse_groups, result_html, table_note

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
        """The layer with the highest mean rescue; of equal ones the lowest."""
        means = self.effects.mean(axis=0)
        return min(layer for layer, mean in zip(self.layers, means, strict=True) if mean == means.max())

    def sharpness(self) -> Sharpness:
        """Top layer, next-highest layer and the gap between their mean rescues (Table 6)."""
        means = self.effects.mean(axis=0)
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

    def plot(self, ax: Axes | None = None, **summary: Any) -> Axes:
        """Mean rescue by layer with its interval (Figure 1, left); filled marks are below 0.05 in the test.

        Needs matplotlib (``pip install "moetrace[plot]"``). ``summary``: arguments of :meth:`summary` but
        ``by``; ``correction`` is "max_t" unless given. The labels say which were used.
        """
        options = {"correction": "max_t", **summary}
        refuse_groups(options)
        return plot_layers(self.summary(**options), self.noise_floor, ax, options)

    def __repr__(self) -> str:
        means = self.effects.mean(axis=0)
        best = self.best
        return (
            f"LayerTrace({len(self)} cases x {len(self.layers)} layers, best layer {best} with mean rescue "
            f"{means[self.layers.index(best)]:+.3f}, numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        return result_html(repr(self), self.summary(), self.failed, [table_note(len(self.layers), "layers")])
