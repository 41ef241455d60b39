"""The modules of a model in one loop."""

from __future__ import annotations

import pytest
from torch import nn

from moetrace.weights.walk import walk
from tests.engines.tiny import FAMILIES, make_model


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gemma3", "jamba"])
def test_the_order_and_names_are_torchs(family):
    assert family in FAMILIES
    model = make_model(family)
    assert list(walk(model).items()) == [(module, name) for name, module in model.named_modules()]


def test_a_module_in_two_places_is_met_once_and_nothing_is_no_module():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(nn.ReLU(), shared), shared, nn.ModuleDict({"again": shared}))
    model.register_module("absent", None)
    assert list(walk(model).items()) == [(module, name) for name, module in model.named_modules()]
    assert list(walk(model).values()).count("0.1") == 1
