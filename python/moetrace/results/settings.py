"""Two traces in one figure must have been made alike."""

from __future__ import annotations

from typing import Any

from moetrace.arguments import refuse_type, shown
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult

# What of the provenance changes the numbers beyond floating point: not the engine, batches or versions.
SETTINGS = ("model", "noise", "corruption", "position", "metric", "readout", "compute_dtype")


class SettingsMismatchError(ArgumentError):
    """Two traces that are to be compared were made with other models or other arguments."""


def refuse_other_settings(mine: TraceResult, name: str, other: Any, other_name: str) -> None:
    """SettingsMismatchError where two traces differ in what their numbers depend on.

    >>> refuse_other_settings(experts, "the expert trace", layers, "the layer trace")
    """
    if not isinstance(other, TraceResult):
        refuse_type(other, other_name, "a result of moetrace")
    for setting in SETTINGS:
        own, others = mine.provenance.get(setting), other.provenance.get(setting)
        if own != others:
            raise SettingsMismatchError(
                f"{name} and {other_name} differ in {setting}: {_difference(own, others)} against "
                f"{_difference(others, own)}; trace both with the same model and arguments"
            )


def _difference(own: Any, others: Any) -> str:
    """What one has and the other hasn't."""
    if isinstance(own, dict) and isinstance(others, dict):
        own = {key: value for key, value in own.items() if others.get(key, None) != value}
    return shown(own)
