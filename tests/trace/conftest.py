"""The model and the cases that most traces of this folder are made with."""

from __future__ import annotations

import pytest

from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def model():
    return make_model("qwen3_moe")


@pytest.fixture(scope="module")
def cases():
    return make_cases(6)
