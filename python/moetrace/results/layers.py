"""The layer sweep's result (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from moetrace.results.base import TraceResult
from moetrace.results.display import plot_layers, refuse_groups, result_html, table_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    """

    kind: ClassVar[str] = "layers"
    site_columns: ClassVar[tuple[str, ...]] = ("layer",)

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
