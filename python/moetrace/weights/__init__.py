"""Where the weights of a model's decoder layers come from, when they aren't all in memory."""

from __future__ import annotations

from typing import Any, Protocol


class LayerSource(Protocol):
    """Brings one decoder layer's weights after the other into their modules, while a trace passes."""

    bytes_read: int

    def begin(self) -> None:
        """A sweep starts."""

    def enter(self, layer: int) -> None:
        """On return the layer's weights are in its modules."""

    def leave(self, layer: int) -> None:
        """Its modules hold what they held before."""

    def end(self) -> None:
        """The sweep is over."""


def source_of(model: Any) -> LayerSource | None:
    """None where all weights are in memory."""
    return getattr(model, "_moetrace_source", None)


def attach(model: Any, source: LayerSource) -> None:
    """Make a source the one of a model."""
    object.__setattr__(model, "_moetrace_source", source)


def detach(model: Any) -> None:
    """Take a model's source away."""
    vars(model).pop("_moetrace_source", None)
