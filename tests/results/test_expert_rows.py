"""Rows, effects and files of an expert trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moetrace.errors import ArgumentError
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.experts import ExpertTrace
from moetrace.stats import summary_table
from tests.results.expert_traces import case_table, make_trace, random_trace, small_trace

COLUMNS = [
    "case_id", "relation_id", "layer", "expert", "clean_active", "noised_active", "clean_weight",
    "noised_weight", "delta_norm", "clean", "noised", "patched", "rescue",
]  # fmt: skip


def test_rows_have_the_contracts_columns_and_every_case_and_expert() -> None:
    trace = random_trace(0)
    rows = trace.rows
    assert list(rows) == COLUMNS
    assert len(rows) == 12 * 2 * 6
    assert not rows.duplicated(["case_id", "layer", "expert"]).any()
    assert np.array_equal(rows.rescue.to_numpy().reshape(12, 12), trace.effects)
    cases = trace.cases.set_index("case_id")
    for name in ("relation_id", "clean", "noised"):
        assert (rows[name].to_numpy() == cases.loc[rows.case_id, name].to_numpy()).all()


def test_each_row_holds_its_own_site_and_case() -> None:
    trace = small_trace([[1, 0, 1], [0, 1, 1]], [[0.5, 0, -1], [0, 2, 0.25]], layer=7)
    rows = trace.rows.set_index(["case_id", "layer", "expert"])
    assert rows.loc[(100, 7, 2), "rescue"] == -1
    assert rows.loc[(101, 7, 1), "rescue"] == 2
    assert rows.loc[(101, 7, 1), "patched"] == 1
    assert rows.loc[(101, 7, 0), "patched"] == rows.loc[(101, 7, 0), "noised"] == -1
    assert not rows.loc[(101, 7, 0), "clean_active"]


def test_noised_only_experts_keep_their_rescue_in_rows_and_count_zero_in_effects() -> None:
    trace = random_trace(1, union=True)
    rows = trace.rows
    only_noised = rows.noised_active & ~rows.clean_active
    assert (rows.rescue[only_noised] != 0).any()
    assert (trace.effects.ravel()[only_noised] == 0).all()
    assert np.array_equal(trace.effects.ravel(), rows.rescue.where(rows.clean_active, 0.0))
    assert (rows.patched_active == (rows.clean_active | rows.noised_active)).all()


@pytest.mark.parametrize("union", [False, True])
def test_files_give_the_same_trace_back(tmp_path: Path, union: bool) -> None:
    trace = random_trace(2, union=union)
    trace.save(tmp_path)
    assert json.loads((tmp_path / "meta.json").read_text())["kind"] == "experts"
    tables = [pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("rows", "cases", "failed")]
    again = ExpertTrace.from_files(*tables, trace.provenance)
    pd.testing.assert_frame_equal(again.rows, trace.rows)
    pd.testing.assert_frame_equal(again.cases, trace.cases)
    pd.testing.assert_frame_equal(again.sites, trace.sites)
    assert np.array_equal(again.effects, trace.effects)
    assert np.array_equal(again.arrays.was_patched, trace.arrays.was_patched)
    assert (again.arrays.patched_active is None) == (not union)


def test_summary_is_of_the_all_case_effects() -> None:
    trace = random_trace(3, union=True)
    summary = trace.summary(n_resamples=200, n_flips=200, correction="max_t")
    expected = summary_table(trace.effects, n_resamples=200, n_flips=200, correction="max_t")
    pd.testing.assert_frame_equal(summary[list(expected)], expected)
    pd.testing.assert_frame_equal(summary[["layer", "expert"]], trace.sites)


def test_groups_average_the_all_case_effects() -> None:
    trace = random_trace(4, union=True)
    found = trace.by("relation_id").set_index(["relation_id", "layer", "expert"])
    cases = trace.cases
    assert len(found) == cases.relation_id.nunique() * 12
    for relation in set(cases.relation_id):
        own = [place for place, name in enumerate(cases.relation_id) if name == relation]
        for column, (layer, expert) in enumerate(trace.sites.itertuples(index=False)):
            values = [trace.effects[place, column] for place in own]
            row = found.loc[(relation, layer, expert)]
            assert row["mean"] == pytest.approx(sum(values) / len(own), abs=1e-15)
            assert row.positive_fraction == sum(value > 0 for value in values) / len(own)
            assert row.n == len(own)
    with pytest.raises(ArgumentError, match="relation_id"):
        trace.by("clean")


def test_arrays_of_several_shapes_are_refused() -> None:
    bools, floats = np.ones((2, 3), bool), np.zeros((2, 3))
    with pytest.raises(ArgumentError, match="expected \\(cases, sites\\) of all"):
        ExpertArrays(bools, bools, floats, floats, floats[:, :2], floats, floats)


def test_a_rescue_where_nothing_was_patched_is_refused() -> None:
    rng = np.random.default_rng(0)
    cases = case_table(2, rng, 2)
    active = np.array([[True, False], [False, True]])
    for stray in (0.5, np.nan):
        with pytest.raises(ArgumentError, match="1 rescues aren't 0"):
            make_trace(cases, [(0, 0), (0, 1)], clean_active=active, rescue=np.array([[1, stray], [0, 1.0]]))


def test_a_clean_active_expert_without_a_patch_is_refused() -> None:
    cases = case_table(1, np.random.default_rng(0), 1)
    with pytest.raises(ArgumentError, match="lack a patch"):
        make_trace(cases, [(0, 0)], clean_active=np.array([[True]]), patched_active=np.array([[False]]))


def test_sites_that_do_not_fit_are_refused() -> None:
    cases = case_table(2, np.random.default_rng(0), 2)
    active = np.zeros((2, 2), bool)
    for sites in ([(0, 1), (0, 0)], [(0, 1), (0, 1)]):
        with pytest.raises(ArgumentError, match="order of layer and expert"):
            make_trace(cases, sites, clean_active=active)
    trace = make_trace(cases, [(0, 0), (0, 1)], clean_active=active)
    with pytest.raises(ArgumentError, match=r"expected \(2, 1\)"):
        ExpertTrace(cases, trace.sites.iloc[:1], trace.arrays, trace.failed, {})
