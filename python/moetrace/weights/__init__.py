"""Where a decoder layer's weights come from when they aren't all in memory."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

_PLACE = "_moetrace_layer_source"


class LayerSource(Protocol):
    """Brings the weights of one decoder layer at a time into its modules.

    >>> source = source_of(model)
    >>> source.begin()
    >>> for layer in range(48):
    ...     source.enter(layer)
    ...     ...  # forwards of that layer
    ...     source.leave(layer)
    >>> source.end()

    ``enter`` and ``leave`` count: a layer entered twice is read once, and gone when it was left twice.
    """

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk so far."""

    def begin(self) -> None:
        """A sweep over the layers starts: files are checked, and the first layer is read ahead."""

    def enter(self, layer: int) -> None:
        """The layer's weights are in its modules on return, and the next layer's are being read."""

    def leave(self, layer: int) -> None:
        """The layer's modules hold what they held before, tensors on the meta device."""

    def end(self) -> None:
        """The sweep is over, also after an exception: no layer is entered any more, no thread reads."""


def source_of(model: nn.Module) -> LayerSource | None:
    """Where the model's layers come from; None where all weights are in memory."""
    found: LayerSource | None = vars(model).get(_PLACE)
    return found


def attach(model: nn.Module, source: LayerSource) -> None:
    """Make a source the one of a model."""
    object.__setattr__(model, _PLACE, source)


def detach(model: nn.Module) -> None:
    """Take a model's source away."""
    vars(model).pop(_PLACE, None)


def origin(weight: Any) -> Any:
    """What tells a weight that comes and goes from others, there or not; None for one in memory."""
    return getattr(weight, "moetrace_origin", None)
