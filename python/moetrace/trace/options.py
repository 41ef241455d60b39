"""The arguments that every trace takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from moetrace.engines.job import Position
from moetrace.models.readout import ReadoutKind
from moetrace.noise import SubjectNoise
from moetrace.progress import Progress


class ScaleOptions(TypedDict, total=False):
    """Common arguments but for the noise; see :func:`moetrace.trace_layers`."""

    position: Position
    metric: str
    engine: str
    batch_tokens: int | str
    progress: Progress
    out: str | Path | None
    final_subject: Literal["refuse", "keep"]
    readout: ReadoutKind


class TraceOptions(ScaleOptions, total=False):
    """Common arguments; see :func:`moetrace.trace_layers`."""

    noise: SubjectNoise | None


DEFAULTS: dict[str, Any] = {
    "noise": None,
    "position": "last",
    "metric": "logit_diff",
    "engine": "auto",
    "batch_tokens": "auto",
    "progress": None,
    "out": None,
    "final_subject": "refuse",
    "readout": "exact",
}
F = TypeVar("F", bound=Callable[..., Any])


def shows_options(function: F) -> F:
    """Let ``help`` and notebooks show the common arguments in place of ``**options``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(TraceOptions)
    taken = {parameter.name for parameter in own}
    common = [
        inspect.Parameter(name, kind, default=default, annotation=hints[name])
        for name, default in DEFAULTS.items()
        if name not in taken
    ]
    function.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    return function
