"""The bundled model and its facts, loaded once."""

from __future__ import annotations

from typing import Any

import pytest

from moetrace.demo import demo_records, load_demo


@pytest.fixture(scope="session")
def demo() -> tuple[Any, Any]:
    return load_demo()


@pytest.fixture(scope="session")
def records() -> list[dict[str, Any]]:
    return demo_records()
