"""What a run of the protocol is asked for (Table 2, and the choices where the paper is silent)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from moetrace.arguments import (
    as_choice,
    as_count,
    as_flag,
    as_fraction,
    as_integer,
    as_list,
    as_number,
    as_seed,
    is_integer,
    known_names,
    refuse_type,
)
from moetrace.cases.positions import ORDERS
from moetrace.corruptions import (
    MeanEmbedding,
    NoiseScales,
    SubjectNoise,
    UniformNoise,
    ZeroEmbedding,
    as_corruption,
    as_noise,
)
from moetrace.effects import MEANS, control_count, required_cases
from moetrace.engines.engine_choice import ENGINES
from moetrace.errors import ArgumentError
from moetrace.models.float32 import COMPUTE_DTYPES
from moetrace.models.readout import READOUTS
from moetrace.results.base import INTERVALS
from moetrace.trace.options import as_batch_tokens

NOISE, GIVEN = "noise", "given"
CORRUPTIONS = (NOISE, "mean", "zero", "uniform", "swap")
_NOISES = ("noise_scale", "noise_seed", "noise_draws")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers. The defaults are the paper's (Table 2).

    >>> Settings.of("relaxed", min_active=0.25).margin
    0.5

    Attributes:
        preset: the preset that the settings began with.
        label: what tables call the model; empty for its own name.
        n: usable cases to collect. margin, drop: least clean logit difference, least clean minus noised.
        seed: of record order, split, folds. split: "shuffle" (Table 8) or "scan". fraction: for discovery.
        final_subject: "drop" or "keep" cases whose prompt ends with the subject. foil: None, the record's
            own, or "relation".
        corruption: what makes the noised run: "noise" (the paper's), "mean", "zero", "uniform" or "swap" (see
            :func:`moetrace.trace_layers`; partners are looked for among the run's own cases); "given" in the
            record of a run that was given a function, or a SwapSubject of its own.
        noise_scale, noise_seed, noise_draws: of the subject noise (equation 2) and the uniform one; of "swap"
            seed and draws.
        min_active, mean: recurrence threshold and mean of the expert selection (section 3.4).
        controls, controls_seed: active-random controls of a case.
        scales: noise scales of Table 13.
        stability_seeds, stability_thresholds: settings of appendix D. folds: of Table 12.
        shapley: patch every subset of the routed experts too. expert_map: trace the experts of every layer
            on the validation cases. Both go beyond the paper.
        relaxed: add the relaxed scale-up (appendix F), with its n, thresholds and split.
        ci, confidence, n_resamples, n_flips, statistics_seed: intervals and tests.
        engine, readout, compute_dtype, batch_tokens: as :func:`moetrace.trace_layers` takes them.

    Raises:
        ArgumentError: a setting is out of its range; the message names it.
    """

    preset: str = "paper"
    label: str = ""
    n: int = 256
    margin: float = 1.0
    drop: float = 0.5
    seed: int = 0
    split: str = "shuffle"
    fraction: float = 0.5
    final_subject: str = "drop"
    foil: str | None = None
    corruption: str = NOISE
    noise_scale: float = 3.0
    noise_seed: int = 0
    noise_draws: int = 1
    min_active: float = 0.5
    mean: str = "active"
    controls: int | str = "auto"
    controls_seed: int = 0
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    stability_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    stability_thresholds: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75)
    folds: int = 5
    shapley: bool = True
    expert_map: bool = True
    relaxed: bool = True
    relaxed_n: int = 512
    relaxed_margin: float = 0.5
    relaxed_drop: float = 0.25
    relaxed_split: str = "scan"
    ci: str = "percentile"
    confidence: float = 0.95
    n_resamples: int = 5000
    n_flips: int = 10_000
    statistics_seed: int = 0
    engine: str = "auto"
    readout: str = "exact"
    compute_dtype: str | None = None
    batch_tokens: int | str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            checked = _CHECKS[field.name](getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, checked)
        SubjectNoise(self.noise_scale, self.noise_seed, self.noise_draws)
        NoiseScales(self.scales, 0)
        ignored = {"swap": _NOISES[:1], "mean": _NOISES, "zero": _NOISES, GIVEN: _NOISES}
        for name in ignored.get(self.corruption, ()):
            default = next(field.default for field in fields(self) if field.name == name)
            if getattr(self, name) != default:
                raise ArgumentError(
                    f"{name} is {getattr(self, name)!r}, and corruption {self.corruption!r} has none; leave "
                    "it out, or take corruption='noise' or 'uniform'"
                )

    @classmethod
    def of(cls, preset: str = "paper", **overrides: Any) -> Settings:
        """A preset with some settings changed.

        ``noise=`` sets scale, seed and draws at once, and so does a ``corruption=`` that is an object:
        ``mt.UniformNoise(2.0)``, ``mt.MeanEmbedding()``. ArgumentTypeError for a name that is no setting,
        with the nearest that is.
        """
        preset = as_choice(preset, "preset", tuple(PRESETS))
        known_names(overrides, [*cls.names(), "noise"], "run_protocol")
        noise = overrides.pop("noise", None)
        corruption = overrides.pop("corruption", None)
        if corruption is not None:
            if noise is not None:
                as_corruption(noise, corruption if not isinstance(corruption, str) else as_noise(noise))
            overrides = {**_settings_from(corruption), **overrides}
        if noise is not None:
            given = as_noise(noise)
            if not isinstance(given, SubjectNoise):
                refuse_type(noise, "noise", "a SubjectNoise or its scale; scales= takes several")
            own = {"noise_scale": given.scale, "noise_seed": given.seed, "noise_draws": given.draws}
            overrides = {**own, **overrides}
        return replace(cls(preset=preset), **{**PRESETS[preset], **overrides})

    @classmethod
    def names(cls) -> list[str]:
        """Names of the settings that can be overridden."""
        return [field.name for field in fields(cls) if field.name != "preset"]

    def json(self) -> dict[str, Any]:
        """The settings as JSON values; the corruption where it isn't the paper's."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.corruption == NOISE:
            del values["corruption"]
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def noise(self) -> SubjectNoise:
        """The subject noise."""
        return SubjectNoise(self.noise_scale, self.noise_seed, self.noise_draws)

    @property
    def statistics(self) -> dict[str, Any]:
        """Arguments of a summary."""
        return {
            "ci": self.ci,
            "confidence": self.confidence,
            "n_resamples": self.n_resamples,
            "n_flips": self.n_flips,
            "seed": self.statistics_seed,
        }


def _settings_from(corruption: Any) -> dict[str, Any]:
    """The settings that say a corruption, by its name or as an object."""
    if isinstance(corruption, str):
        return {"corruption": as_choice(corruption, "corruption", CORRUPTIONS)}
    own = as_corruption(None, corruption)
    if isinstance(own, SubjectNoise | UniformNoise):
        name = NOISE if isinstance(own, SubjectNoise) else "uniform"
        values = (name, own.scale, own.seed, own.draws)
        return dict(zip(("corruption", *_NOISES), values, strict=True))
    if isinstance(own, NoiseScales):
        refuse_type(corruption, "corruption", "a corruption of one scale; scales= takes several")
    if isinstance(own, MeanEmbedding | ZeroEmbedding):
        return {"corruption": "mean" if isinstance(own, MeanEmbedding) else "zero"}
    return {"corruption": GIVEN}


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "relaxed": {"n": 512, "margin": 0.5, "drop": 0.25, "split": "scan", "relaxed": False},
    "quick": {
        "n": 64, "relaxed": False, "expert_map": False, "scales": (1.0, 3.0), "n_resamples": 2000,
        "n_flips": 2000,
    },
}  # fmt: skip


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        refuse_type(value, name, "a text")
    return value


def _share(value: Any, name: str) -> float:
    try:
        required_cases(value, 1)
    except ArgumentError as failure:
        raise type(failure)(str(failure).replace("min_active", name)) from None
    return int(value) if is_integer(value) else float(value)


def _controls(value: Any, name: str) -> int | str:
    return "auto" if isinstance(value, str) and value == "auto" else control_count(value, 3)


def _each(check: Callable[[Any, str], Any], value: Any, name: str) -> tuple[Any, ...]:
    return tuple(check(item, name) for item in as_list(value, name, "a list"))


def _some(check: Callable[[Any, str], Any], value: Any, name: str) -> tuple[Any, ...]:
    found = _each(check, value, name)
    if not found:
        raise ArgumentError(f"{name} is empty; expected at least one")
    return found


def _one_of(words: Any, value: Any, name: str) -> Any:
    return as_choice(value, name, words)


_scale = partial(as_number, low=0)
_cases = partial(as_count, least=4)  # two for each half: fewer give no interval
_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "preset": lambda value, name: as_choice(value, name, tuple(PRESETS)),
    "label": _text,
    "n": _cases,
    "margin": as_number,
    "drop": as_number,
    "seed": as_seed,
    "split": partial(_one_of, ORDERS),
    "fraction": as_fraction,
    "final_subject": partial(_one_of, ("drop", "keep")),
    "foil": partial(_one_of, (None, "relation")),
    "corruption": partial(_one_of, (*CORRUPTIONS, GIVEN)),
    "noise_scale": _scale,
    "noise_seed": as_integer,
    "noise_draws": as_count,
    "min_active": _share,
    "mean": partial(_one_of, MEANS),
    "controls": _controls,
    "controls_seed": as_seed,
    "scales": partial(_some, _scale),
    "stability_seeds": partial(_some, as_seed),
    "stability_thresholds": partial(_some, _share),
    "folds": partial(as_count, least=2),
    "shapley": as_flag,
    "expert_map": as_flag,
    "relaxed": as_flag,
    "relaxed_n": _cases,
    "relaxed_margin": as_number,
    "relaxed_drop": as_number,
    "relaxed_split": partial(_one_of, ORDERS),
    "ci": partial(_one_of, INTERVALS),
    "confidence": as_fraction,
    "n_resamples": partial(as_count, most=10**7),
    "n_flips": partial(as_count, most=10**8),
    "statistics_seed": as_seed,
    "engine": partial(_one_of, ENGINES),
    "readout": partial(_one_of, READOUTS),
    "compute_dtype": partial(_one_of, COMPUTE_DTYPES),
    "batch_tokens": lambda value, _: as_batch_tokens(value),
}
