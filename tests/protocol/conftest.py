"""One run of the whole protocol on the bundled model, for all tests that read it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import moetrace as mt

SMALL: dict[str, Any] = {
    "n": 40, "relaxed_n": 52, "min_active": 0.25, "n_resamples": 200, "n_flips": 200, "folds": 3,
    "label": "demo", "batch_tokens": 256, "stability_thresholds": (0.25, 5),
}  # fmt: skip


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    return mt.load_demo()


@pytest.fixture(scope="session")
def records() -> list[dict[str, Any]]:
    return mt.demo_records()[:300]


@pytest.fixture(scope="session")
def run(demo: Any, records: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    """The report and its folder."""
    out = tmp_path_factory.mktemp("protocol") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.errors.EngineWarning)
        return mt.run_protocol(*demo, records, out=out, **SMALL), out
