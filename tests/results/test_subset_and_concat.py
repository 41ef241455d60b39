"""Traces of some cases, and of several traces' cases: what a trace of just those cases gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError, ArgumentTypeError, DuplicateCaseError, NoCasesError
from moetrace.results.positions import CaseMismatchError
from moetrace.results.settings import SettingsMismatchError
from tests.engines.tiny import make_cases, make_model
from tests.results.expert_traces import random_trace

KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "layers": lambda model, cases: mt.trace_layers(model, cases),
    "experts": lambda model, cases: mt.trace_experts(model, cases, union=True),
    "scales": lambda model, cases: mt.trace_noise_scales(model, cases, "L01E000", scales=(1.0, 2.0)),
    "coalitions": lambda model, cases: mt.trace_coalitions(model, cases, layer=1, sets="all"),
}
OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "map": lambda model, cases: mt.trace_layers(model, cases, position="all"),
    "matched": lambda model, cases: mt.trace_matched(model, cases, star_of(model, cases)),
    "knockout": lambda model, cases: mt.trace_knockout(model, cases, layers=1),
    "routes": lambda model, cases: mt.trace_routes(model, cases, layers=[1], experts=["L01E000"]),
    "paths": lambda model, cases: mt.trace_paths(model, cases, pairs=[(1, 2)]),
    "metrics": lambda model, cases: mt.trace_layers(model, cases, metric=["logit_diff", "prob"]),
}


def star_of(model: Any, cases: Any) -> mt.Expert:
    """An expert that is clean-active in some cases and not in others."""
    return mt.trace_experts(model, cases, layer=1).select(min_active=1)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


@pytest.fixture(scope="module")
def cases() -> mt.CaseSet:
    return mt.CaseSet(make_cases(6))


def wanted(table: pd.DataFrame, ids: list[int]) -> pd.DataFrame:
    """The rows of some cases, in the order of the ids, by a loop."""
    return pd.concat([table[table.case_id == case_id] for case_id in ids], ignore_index=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_is_the_trace_of_its_cases(kind: str, model: Any, cases: mt.CaseSet) -> None:
    trace = KINDS[kind](model, cases)
    some = cases.take([4, 0, 3])
    ids = [case.case_id for case in some]
    found, alone = trace.subset(ids), KINDS[kind](model, some)
    pd.testing.assert_frame_equal(found.rows, wanted(trace.rows, ids))
    pd.testing.assert_frame_equal(found.rows, alone.rows, check_exact=False, atol=1e-4)
    assert found.provenance["case_ids"] == alone.provenance["case_ids"] == ids
    assert trace.subset(some).rows.equals(found.rows)
    assert type(found) is type(trace)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_trace_joined_are_the_trace(
    kind: str, model: Any, cases: mt.CaseSet, tmp_path: Any
) -> None:
    trace = KINDS[kind](model, cases)
    joined = mt.concat([trace.subset(cases[:1]), trace.subset(cases[1:4]), trace.subset(cases[4:])])
    pd.testing.assert_frame_equal(joined.rows, trace.rows)
    pd.testing.assert_frame_equal(joined.cases, trace.cases)
    pd.testing.assert_frame_equal(joined.summary(), trace.summary())
    assert joined.provenance == trace.provenance
    joined.save(tmp_path / "joined")
    pd.testing.assert_frame_equal(mt.load(tmp_path / "joined").rows, trace.rows)


def test_a_matched_trace_keeps_count_of_inactive_cases(model: Any, cases: mt.CaseSet) -> None:
    trace = mt.trace_matched(model, cases, star_of(model, cases))
    active, inactive = trace.cases.case_id.tolist(), trace.provenance["inactive_case_ids"]
    assert active
    assert inactive
    part = trace.subset([inactive[0], active[-1]])
    assert part.cases.case_id.tolist() == [active[-1]]
    assert part.provenance["inactive_case_ids"] == [inactive[0]]
    np.testing.assert_array_equal(part.effects, trace.effects[-1:])


def test_selection_on_a_subset_is_that_of_its_rows() -> None:
    trace = random_trace(5, n=30)
    ids = trace.cases.case_id.tolist()[3:19]
    part = trace.subset(ids)
    assert part.candidates().equals(trace.subset(ids[:]).candidates())
    top = part.candidates(min_active=1).iloc[0]
    own = wanted(trace.rows, ids).query("clean_active").groupby(["layer", "expert"]).rescue.mean()
    assert own.max() == pytest.approx(top.mean_rescue)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_subset_without_cases_is_saved_and_read(
    kind: str, model: Any, cases: mt.CaseSet, tmp_path: Any
) -> None:
    trace = (KINDS | OTHERS)[kind](model, cases)
    none = trace.subset([])
    assert list(none.rows.columns) == list(trace.rows.columns)
    none.save(tmp_path / "none")
    found = mt.load(tmp_path / "none")
    assert type(found) is type(trace)
    assert len(found.rows) == len(found.cases) == 0
    assert list(found.rows.columns) == list(trace.rows.columns)


def test_nothing_is_best_of_no_cases(model: Any, cases: mt.CaseSet) -> None:
    layers = mt.trace_layers(model, cases).subset([])
    whole = mt.trace_layers(model, cases, position="all").subset([])
    for ask in (
        lambda: layers.best, layers.sharpness, lambda: whole.best, lambda: whole.best_position,
    ):  # fmt: skip
        with pytest.raises(NoCasesError, match="holds no cases"):
            ask()


def test_failed_cases_go_where_they_are_asked_for() -> None:
    trace = random_trace(1, n=4)
    trace.failed = pd.DataFrame({"case_id": [1000], "clean": [0.0], "noised": [0.0], "reason": ["x"]})
    trace.provenance = trace.provenance | {"failed_case_ids": [1000]}
    ids = trace.cases.case_id.tolist()
    with_it, without = trace.subset([1000, *ids[:2]]), trace.subset(ids[2:])
    assert with_it.failed.case_id.tolist() == with_it.provenance["failed_case_ids"] == [1000]
    assert without.failed.empty
    assert len(with_it) == 2
    joined = mt.concat([without, with_it])
    assert joined.failed.case_id.tolist() == [1000]
    with pytest.raises(DuplicateCaseError, match=r"ids \[1000\]"):
        mt.concat([with_it, trace.subset([1000, *ids[2:]])])


def test_what_a_subset_refuses() -> None:
    trace = random_trace(0, n=5)
    ids = trace.cases.case_id.tolist()
    with pytest.raises(CaseMismatchError, match=r"1 of the 2 cases .* ids \[-5\]"):
        trace.subset([ids[0], -5])
    with pytest.raises(DuplicateCaseError, match="more than once"):
        trace.subset([ids[0], ids[0]])
    for bad in (3, "ids", [1.5], None):
        with pytest.raises(ArgumentTypeError, match="case_ids"):
            trace.subset(bad)  # type: ignore[arg-type]
    assert len(trace.subset([])) == 0


def other(trace: Any, ids: list[int], **facts: Any) -> Any:
    """A part of a trace as if it had been made otherwise."""
    part = copy.copy(trace.subset(ids))
    part.provenance = part.provenance | facts
    return part


def test_what_a_join_refuses_and_what_it_tells() -> None:
    trace = random_trace(0, n=6)
    ids = trace.cases.case_id.tolist()
    first = other(trace, ids[:3], engine="tree", self_check=1e-6, versions={"torch": "2.13", "numpy": "2"})
    same = other(
        trace, ids[3:], engine="reference", self_check=3e-6, versions={"torch": "2.14", "numpy": "2"}
    )
    joined = mt.concat([first, same])
    assert joined.provenance["engine"] == "tree and reference"
    assert joined.provenance["versions"] == {"torch": "2.13 and 2.14", "numpy": "2"}
    assert joined.provenance["self_check"] == 3e-6
    for setting in ("model", "noise", "position", "readout", "star", "masks"):
        with pytest.raises(SettingsMismatchError, match=f"differ in {setting}"):
            mt.concat([first, other(trace, ids[3:], **{setting: "another"})])
    with pytest.raises(ArgumentError, match="aren't the same"):
        mt.concat([random_trace(0, layers=(1,)), random_trace(1, layers=(2,))])
    with pytest.raises(ArgumentError, match="patched_active"):
        mt.concat([random_trace(0), random_trace(1, union=True)])
    with pytest.raises(DuplicateCaseError, match="in several traces"):
        mt.concat([trace, trace.subset(ids[:1])])
    with pytest.raises(ArgumentError, match="traces is empty"):
        mt.concat([])
    for bad in (3, [3], trace):
        with pytest.raises(ArgumentTypeError, match="traces"):
            mt.concat(bad)  # type: ignore[arg-type]


def test_an_empty_subset_has_tables_and_nothing_that_is_best(model: Any, cases: mt.CaseSet) -> None:
    where = ["last", "subject_last"]
    traces = [
        mt.trace_layers(model, cases),
        mt.trace_layers(model, cases, layers=[0, 1], position=where),
        mt.trace_experts(model, cases),
        mt.trace_knockout(model, cases, layers=1),
        mt.screen_experts(model, cases, layers=1),
    ]
    for trace in traces:
        empty = trace.subset([])
        assert len(empty) == len(empty.rows) == len(empty.cases) == 0
        assert empty.rows.columns.tolist() == trace.rows.columns.tolist()
    layers, layer_map, experts, knock, screen = (trace.subset([]) for trace in traces)
    for call in (
        lambda: layers.best,
        layers.sharpness,
        lambda: layer_map.best,
        lambda: layer_map.best_position,
        experts.select,
        knock.important,
        screen.summary,
    ):
        with pytest.raises(NoCasesError, match="holds no cases"):
            call()
