"""Traces that share a pass are the traces of the single calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.counts import counting
from moetrace.trace.together import trace_around
from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


@pytest.fixture(scope="module")
def cases() -> mt.CaseSet:
    return mt.CaseSet(make_cases(6))


def test_what_stands_beside_an_expert_is_each_single_trace(model: Any, cases: mt.CaseSet) -> None:
    star = mt.trace_experts(model, cases, layer=1).select(min_active=1)
    around = trace_around(model, cases, star)
    singles = (
        mt.trace_experts(model, cases, layer=1),
        mt.trace_matched(model, cases, star),
        mt.trace_coalitions(model, cases, layer=1),
        mt.trace_coalitions(model, cases, layer=1, sets="all"),
    )
    own = (around.experts, around.matched, around.coalitions, around.shapley)
    for found, alone in zip(own, singles, strict=True):
        assert found is not None
        assert found.kind == alone.kind
        pd.testing.assert_frame_equal(found.rows, alone.rows, check_exact=False, atol=1e-4)
    assert around.shapley is not None
    np.testing.assert_allclose(around.shapley.shapley().shapley, singles[3].shapley().shapley, atol=1e-4)
    assert trace_around(model, cases, star, shapley=False).shapley is None


def test_passes_and_rows_are_counted(model: Any, cases: mt.CaseSet) -> None:
    mt.trace_layers(model, cases)  # what is found out about a model once isn't counted below
    with counting() as outer:
        with counting() as few:
            mt.trace_layers(model, cases, batch_tokens=10**6)
        with counting() as many:
            mt.trace_layers(model, cases, batch_tokens=10**6, engine="reference")
    assert 1 <= few.forwards < many.forwards
    assert few.rows < many.rows
    assert (outer.forwards, outer.rows) == (few.forwards + many.forwards, few.rows + many.rows)
    base = sum(2 * len(case.input_ids) - case.subject[0] for case in cases)  # prefix once, two branches
    layers = len(model.model.layers)
    assert few.rows >= base + len(cases) * layers


def test_what_was_interrupted_goes_on_with_the_same_batches(
    model: Any, cases: mt.CaseSet, tmp_path: Any
) -> None:
    whole = mt.trace_experts(model, cases, batch_tokens=60, out=tmp_path / "whole")
    mt.trace_experts(model, cases, batch_tokens=60, out=tmp_path / "cut")
    parts = sorted((tmp_path / "cut" / "parts").glob("*.parquet"))
    assert len(parts) > 2
    for part in parts[::2]:
        part.unlink()
    again = mt.trace_experts(model, cases, batch_tokens=60, out=tmp_path / "cut")
    assert sorted((tmp_path / "cut" / "parts").glob("*.parquet")) == parts
    np.testing.assert_array_equal(again.effects, whole.effects)
