"""Settings: the paper's presets, overrides by name, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

import moetrace as mt
from moetrace.errors import ArgumentError, ArgumentTypeError
from moetrace.protocol.settings import PRESETS, Settings


def test_the_paper_preset_is_table_2() -> None:
    s = Settings.of("paper")
    assert s == Settings()
    assert (s.n, s.fraction, s.seed, s.split) == (256, 0.5, 0, "shuffle")
    assert (s.margin, s.drop) == (1.0, 0.5)
    assert s.noise == mt.SubjectNoise(scale=3.0, seed=0, draws=1)
    assert (s.min_active, s.controls) == (0.5, "auto")
    assert (s.n_resamples, s.n_flips) == (5000, 10_000)
    assert [share * 128 for share in s.stability_thresholds] == [32, 48, 64, 80, 96]
    assert (s.stability_seeds, s.folds, s.scales) == ((0, 1, 2, 3, 4), 5, (1.0, 2.0, 3.0, 4.0))
    assert (s.relaxed, s.relaxed_n, s.relaxed_margin, s.relaxed_drop) == (True, 512, 0.5, 0.25)
    relaxed = Settings.of("relaxed")
    assert (relaxed.n, relaxed.margin, relaxed.drop, relaxed.split) == (512, 0.5, 0.25, "scan")


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_a_file(preset: str) -> None:
    s = Settings.of(preset, scales=[2, 0.5], min_active=7, noise=mt.SubjectNoise(1.5, 3, 2))
    assert Settings(**json.loads(json.dumps(s.json()))) == s
    assert (s.noise_scale, s.noise_seed, s.noise_draws) == (1.5, 3, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.n = 3  # type: ignore[misc]


def test_a_single_setting_of_the_noise_is_stronger_than_the_noise() -> None:
    assert Settings.of(noise=2.0, noise_seed=5).noise == mt.SubjectNoise(2.0, 5)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("marign", "margin"), ("min_actve", "min_active"), ("noise_scal", "noise_scale"), ("split_", "split")],
)
def test_the_nearest_name_is_told(name: str, nearest: str) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"no argument '{name}' \(did you mean '{nearest}'\?\)"):
        Settings.of(**{name: 1})
    with pytest.raises(ArgumentError, match=r"preset is 'papr' \(did you mean 'paper'\?\)"):
        Settings.of("papr")


@pytest.mark.parametrize("name", Settings.names())
@pytest.mark.parametrize(
    "value", [object(), -1.5, [], "nonsense\ud800", float("nan"), {"a": 1}, None, 1 + 2j]
)
def test_each_setting_is_checked_by_its_name(name: str, value: object) -> None:
    thresholds = ("margin", "drop", "relaxed_margin", "relaxed_drop")
    good = (name in ("foil", "compute_dtype", "corruption") and value is None) or (
        name in thresholds and value == -1.5
    )
    if good:
        kept = "noise" if name == "corruption" else value
        assert getattr(Settings.of(**{name: value}), name) == kept
    else:
        with pytest.raises(ArgumentError, match=name.replace("_", ".")):
            Settings.of(**{name: value})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("swap", ("swap", 3.0, 0, 1)),
        (mt.UniformNoise(2.0, 5, 3), ("uniform", 2.0, 5, 3)),
        (mt.SubjectNoise(1.5), ("noise", 1.5, 0, 1)),
        (mt.MeanEmbedding(), ("mean", 3.0, 0, 1)),
        (mt.ZeroEmbedding(), ("zero", 3.0, 0, 1)),
        (lambda case, rows: rows * 0, ("given", 3.0, 0, 1)),
    ],
)
def test_a_corruption_by_name_or_as_an_object(given: object, expected: tuple[object, ...]) -> None:
    s = Settings.of(corruption=given)
    assert (s.corruption, s.noise_scale, s.noise_seed, s.noise_draws) == expected
    assert Settings(**json.loads(json.dumps(s.json()))) == s
    assert ("corruption" in s.json()) == (s.corruption != "noise")


def test_corruptions_that_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"corruption is 'swop' \(did you mean 'swap'\?\)"):
        Settings.of(corruption="swop")
    with pytest.raises(ArgumentError, match="both noise and corruption"):
        Settings.of(corruption="mean", noise=2.0)
    with pytest.raises(ArgumentError, match=r"noise_draws is 4, and corruption 'mean' has none"):
        Settings.of(corruption="mean", noise_draws=4)
    with pytest.raises(ArgumentError, match=r"noise_scale is 2.0, and corruption 'swap' has none"):
        Settings.of(corruption="swap", noise_scale=2.0)
    with pytest.raises(ArgumentError, match="corruption is 'given'"):
        Settings.of(corruption="given")
    with pytest.raises(ArgumentTypeError, match="corruption"):
        Settings.of(corruption=7)
