"""The arguments that every trace takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from moetrace.arguments import as_choice, as_count, as_path, known_names, refuse_type
from moetrace.corruptions import CorruptionLike, NoiseLike, as_corruption
from moetrace.engines.engine_choice import ENGINES
from moetrace.engines.places import Positions, as_positions
from moetrace.metrics import MetricLike, as_metrics
from moetrace.models.float32 import COMPUTE_DTYPES, ComputeDtype
from moetrace.models.readout import READOUTS, ReadoutKind
from moetrace.progress import Progress


class ScaleOptions(TypedDict, total=False):
    """Common arguments but for the noise; see :func:`moetrace.trace_layers`."""

    position: Positions
    metric: MetricLike
    engine: str
    batch_tokens: int | str
    progress: Progress
    out: str | Path | None
    final_subject: Literal["refuse", "keep"]
    readout: ReadoutKind
    compute_dtype: ComputeDtype | None


class TraceOptions(ScaleOptions, total=False):
    """Common arguments; see :func:`moetrace.trace_layers`."""

    noise: NoiseLike
    corruption: CorruptionLike


DEFAULTS: dict[str, Any] = {
    "noise": None,
    "corruption": None,
    "position": "last",
    "metric": "logit_diff",
    "engine": "auto",
    "batch_tokens": "auto",
    "progress": None,
    "out": None,
    "final_subject": "refuse",
    "readout": "exact",
    "compute_dtype": None,
}
FINAL_SUBJECTS = ("refuse", "keep")
F = TypeVar("F", bound=Callable[..., Any])


def shows_options(function: F, without: tuple[str, ...] = ()) -> F:
    """Let ``help`` and notebooks show the common arguments, but some, in place of ``**options``."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    kind = inspect.Parameter.KEYWORD_ONLY
    hints = get_type_hints(TraceOptions)
    taken = {parameter.name for parameter in own}
    common = [
        inspect.Parameter(name, kind, default=default, annotation=hints[name])
        for name, default in DEFAULTS.items()
        if name not in taken and name not in without
    ]
    function.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]
    return function


def checked(options: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """The common arguments as a trace takes them. ArgumentError where it doesn't have or can't take one."""
    known_names(options, list(inspect.signature(function).parameters), function.__name__)
    given = DEFAULTS | options
    return {
        "corruption": as_corruption(given["noise"], given["corruption"]),
        "position": as_positions(given["position"]),
        "metric": as_metrics(given["metric"]),
        "engine": as_choice(given["engine"], "engine", ENGINES),
        "batch_tokens": as_batch_tokens(given["batch_tokens"]),
        "progress": as_progress(given["progress"]),
        "out": None if given["out"] is None else as_path(given["out"], "out"),
        "final_subject": as_choice(given["final_subject"], "final_subject", FINAL_SUBJECTS),
        "readout": as_choice(given["readout"], "readout", READOUTS),
        "compute_dtype": as_compute_dtype(given["compute_dtype"]),
    }


def as_batch_tokens(batch_tokens: Any) -> int | Literal["auto"]:
    """Token rows of a batch: "auto" or a number of 1 or more."""
    if isinstance(batch_tokens, str):
        return as_choice(batch_tokens, "batch_tokens", ("auto",))
    return as_count(batch_tokens, "batch_tokens", 1, 2**62)


def as_compute_dtype(compute_dtype: Any) -> ComputeDtype | None:
    """None for the model's own, or "float32"."""
    return as_choice(compute_dtype, "compute_dtype", COMPUTE_DTYPES)


def as_progress(progress: Any) -> Progress:
    """None, a boolean, or a function of (done, total)."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        refuse_type(progress, "progress", "None, True, False or a function of (done, total)")
    found: Progress = progress
    return found
