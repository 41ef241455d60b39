"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client


def shared_folder() -> Path:
    """The folder with CounterFact, the paper's figures and the small real model."""
    return Path(os.environ.get("MOETRACE_SHARED", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as skipped, visibly, what needs data that is not part of the repository."""
    if shared_folder().is_dir():
        return
    absent = pytest.mark.skip(reason="needs the shared data folder (set MOETRACE_SHARED)")
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(absent)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models in the tests are tiny: a second thread costs more than it gives, above all on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    return shared_folder()
