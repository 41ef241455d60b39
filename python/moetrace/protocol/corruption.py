"""Which corruption a run of the protocol uses, as its settings name it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetrace.cases import CaseSet
from moetrace.corruptions import (
    Corruption,
    MeanEmbedding,
    SwapSubject,
    UniformNoise,
    ZeroEmbedding,
    as_corruption,
)
from moetrace.engines.job import embedding_of
from moetrace.models.anatomy import find_anatomy
from moetrace.protocol.settings import GIVEN, NOISE

if TYPE_CHECKING:
    import torch

    from moetrace.protocol.settings import Settings

_WORDS = {
    "mean": "The mean embedding over the vocabulary in the place of every subject token's.",
    "zero": "Zero in the place of every subject token's embedding.",
}


def corruption_of(
    settings: Settings, given: Any, cases: CaseSet, model: torch.nn.Module | None = None
) -> Corruption:
    """The corruption of a run. ``given``: what was passed in, where the settings can't make it themselves,
    and then the ``model`` is needed, too.

    Partners of "swap" are looked for among ``cases``.
    """
    scale, seed, draws = settings.noise_scale, settings.noise_seed, settings.noise_draws
    if settings.corruption == GIVEN:
        assert model is not None
        return as_corruption(None, given).measured(embedding_of(find_anatomy(model)))
    if settings.corruption == "swap":
        return SwapSubject(cases, seed, draws)
    if settings.corruption == "uniform":
        return UniformNoise(scale, seed, draws)
    if settings.corruption == "mean":
        return MeanEmbedding()
    return ZeroEmbedding() if settings.corruption == "zero" else settings.noise


def record_of(settings: Settings, corruption: Corruption) -> dict[str, Any]:
    """What a run's folder says of a corruption that isn't the paper's noise."""
    return {} if settings.corruption == NOISE else corruption.facts()


def described(settings: Settings, record: dict[str, Any]) -> tuple[str, str]:
    """Item and setting of Table 2. ``record``: as of :func:`record_of`."""
    s, many = settings, settings.noise_draws > 1
    seeds = f"per case; seed {s.noise_seed}+case_id"
    if s.corruption == NOISE:
        draws = f"{s.noise_draws} Gaussian draws" if many else "One Gaussian draw"
        return "Subject noise", f"{draws} {seeds}; scale {s.noise_scale:g} times embedding-matrix std."
    if s.corruption == "uniform":
        draws = f"{s.noise_draws} uniform draws" if many else "One uniform draw"
        return "Corruption", f"{draws} {seeds}; within {s.noise_scale:g} times embedding-matrix std."
    if s.corruption == "swap":
        draws = f"{s.noise_draws} other subjects" if many else "Another subject"
        return "Corruption", f"{draws} of the same relation and length {seeds}."
    told = record.get("corruption", {})
    name, draws_ = told.get("name", "a function"), told.get("draws", 1)
    of = "" if draws_ == 1 else f", {draws_} draws per case"
    return "Corruption", _WORDS.get(s.corruption, f"{name}{of}.")
