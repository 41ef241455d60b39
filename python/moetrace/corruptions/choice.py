"""Which corruption a user asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moetrace.arguments import refuse_type
from moetrace.corruptions.corruptor import Corruption
from moetrace.corruptions.noise import NoiseLike, NoiseScales, SubjectNoise, as_noise
from moetrace.corruptions.replaced import CorruptionFunction, MeanEmbedding, ZeroEmbedding
from moetrace.corruptions.swap import SwapSubject
from moetrace.corruptions.uniform import UniformNoise
from moetrace.errors import ArgumentError

_NOISES = (SubjectNoise, NoiseScales, UniformNoise)
_REPLACEMENTS = (SwapSubject, MeanEmbedding, ZeroEmbedding, CorruptionFunction)
CorruptionLike = Corruption | Callable[..., Any] | None


def as_corruption(noise: NoiseLike = None, corruption: CorruptionLike = None) -> Corruption:
    """What makes the corrupted run: ``noise`` or ``corruption``, and the paper's noise where both are None.

    >>> as_corruption(noise=1.5)
    SubjectNoise(scale=1.5, seed=0, draws=1)
    """
    if corruption is None:
        return as_noise(noise)
    if noise is not None:
        raise ArgumentError(
            "both noise and corruption are given; expected one of them: corruption=mt.SubjectNoise(...) is "
            "the same as noise="
        )
    if isinstance(corruption, (*_NOISES, *_REPLACEMENTS)):
        return corruption
    if callable(corruption) and not isinstance(corruption, type):
        return CorruptionFunction(corruption)
    refuse_type(
        corruption,
        "corruption",
        "mt.SwapSubject(records), mt.MeanEmbedding(), mt.ZeroEmbedding(), mt.UniformNoise(), "
        "mt.SubjectNoise(), or a function of (case, embeddings)",
    )
