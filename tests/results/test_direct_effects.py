"""Direct effects in results: arrays, rows, files, run folders, subsets and joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.layers import LayerTrace
from moetrace.trace.session import trace
from tests.engines.tiny import make_cases, make_model
from tests.engines.wide import make_wide
from tests.results.expert_traces import random_trace

NAMES = ("direct", "direct_linear", "indirect")
CASES = make_cases(4)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


def traced(kind: str, model: Any, cases: Any = CASES, **options: Any) -> Any:
    if kind == "layers":
        return mt.trace_layers(model, cases, **options)
    return mt.trace_experts(model, cases, union=kind == "union", **options)


def same(found: Any, expected: Any) -> None:
    assert (found.provenance["direct"], found.rows.shape) == (
        expected.provenance["direct"],
        expected.rows.shape,
    )
    pd.testing.assert_frame_equal(found.rows, expected.rows)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("kind", ["layers", "experts", "union"])
def test_arrays_and_rows_say_the_same(kind: str, model: Any) -> None:
    found = traced(kind, model)
    rows = found.rows
    for name in NAMES:
        values = getattr(found, name)
        assert values.shape == found.effects.shape
        shown = rows[name].to_numpy()
        if kind == "union":  # experts of the noised routing have theirs in the rows
            assert np.abs(shown[~rows.clean_active & rows.patched_active]).max() > 0.01
            shown = np.where(rows.clean_active, shown, 0.0)
        np.testing.assert_array_equal(values.ravel(), shown)
    np.testing.assert_allclose(found.direct + found.indirect, found.effects, atol=1e-12)
    np.testing.assert_allclose(rows.direct + rows.indirect, rows.rescue, atol=1e-12)
    assert np.abs(found.indirect).max() > 0.01


@pytest.mark.parametrize("kind", ["layers", "experts", "union"])
def test_they_are_means_over_draws(kind: str, model: Any) -> None:
    many = traced(kind, model, noise=mt.SubjectNoise(draws=2))
    first = traced(kind, model, noise=mt.SubjectNoise(draws=1))
    assert np.abs(many.direct - first.direct).max() > 1e-3
    np.testing.assert_allclose(many.direct + many.indirect, many.effects, atol=1e-12)


@pytest.mark.parametrize("family", ["qwen3_moe", "hy_v4"])
@pytest.mark.parametrize("kind", ["layers", "experts", "union"])
def test_they_are_saved_and_a_run_goes_on_with_them(kind: str, family: str, tmp_path: Path) -> None:
    model = make_wide(family) if family == "hy_v4" else make_model(family)
    options = {"layers": [1, 2], "batch_tokens": 1}
    expected = traced(kind, model, **options)
    assert np.isnan(expected.direct).any() == (family == "hy_v4")
    expected.save(tmp_path / "saved")
    same(mt.load(tmp_path / "saved"), expected)
    traced(kind, model, **options, out=tmp_path / "run")
    parts = sorted((tmp_path / "run" / "parts").glob("*.parquet"))
    assert {"direct", "direct_linear"} <= set(pq.read_table(parts[0]).column_names)
    for part in parts[:2]:
        part.unlink()
    again = traced(kind, model, **options, out=tmp_path / "run")
    same(again, expected)
    same(mt.load(tmp_path / "run"), expected)


@pytest.mark.parametrize("kind", ["layers", "experts", "union"])
def test_subsets_and_joins_keep_them(kind: str, model: Any) -> None:
    whole = traced(kind, model, batch_tokens=1)
    ids = [case.case_id for case in CASES]
    first, second = whole.subset(ids[:1]), whole.subset(ids[1:])
    for name in NAMES:
        np.testing.assert_array_equal(getattr(second, name), getattr(whole, name)[1:])
    joined = mt.concat([first, second])
    pd.testing.assert_frame_equal(joined.rows, whole.rows)


def test_a_result_of_an_earlier_version_has_none(model: Any) -> None:
    new = mt.trace_layers(model, CASES[:2])
    old = new.rows.drop(columns=list(NAMES))
    found = LayerTrace.from_files(old, new.cases, new.failed, new.provenance)
    assert found.direct is found.direct_linear is found.indirect is None
    pd.testing.assert_frame_equal(found.rows, old)
    experts = random_trace(0)
    assert experts.direct is experts.direct_linear is experts.indirect is None
    assert not set(NAMES) & set(experts.rows.columns)


def test_what_was_measured_cant_be_written_to(model: Any) -> None:
    found = mt.trace_layers(model, CASES[:1])
    for values in (found.direct, found.direct_linear):
        with pytest.raises(ValueError, match="read-only"):
            values[0, 0] = 1.0


@pytest.mark.parametrize("name", ["direct", "direct_linear"])
def test_nothing_is_direct_where_nothing_was_patched(name: str) -> None:
    arrays = random_trace(0).arrays
    values = {own: getattr(arrays, own) for own in arrays.names()}
    wrong = np.zeros(arrays.rescue.shape)
    column = int(np.flatnonzero(~arrays.clean_active[0])[0])
    for value in (0.5, np.nan):
        wrong[0, column] = value
        with pytest.raises(ArgumentError, match=f"1 {name} effects aren't 0 where nothing was patched"):
            ExpertArrays(**values, **{name: wrong})


def test_other_traces_dont_measure_them(model: Any) -> None:
    found = mt.trace_coalitions(model, CASES, layer=1)
    assert found.provenance["direct"] == "not asked for"
    assert "direct" not in found.rows
    assert trace.__kwdefaults__["direct"] is True
