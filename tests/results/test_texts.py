"""Objects as text: in every table that has a row for each case, and in files, where the cases have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import moetrace as mt
from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    model = make_model("qwen3_moe")
    cases = mt.CaseSet(
        dataclasses.replace(case, true=f"true {case.case_id}", foil=f"<i>{case.case_id}")
        for case in make_cases(6)
    )
    experts = mt.trace_experts(model, cases, layer=1)
    star = experts.select(min_active=1)
    return {
        "layers": mt.trace_layers(model, cases),
        "experts": experts,
        "matched": mt.trace_matched(model, cases, star),
        "scales": mt.trace_noise_scales(model, cases, star, scales=[1.0, 2.0]),
        "coalitions": mt.trace_coalitions(model, cases, layer=1, sets="all"),
    }


def check(table: Any) -> None:
    assert table.columns[:4].tolist() == ["case_id", "relation_id", "true", "foil"]
    assert len(table)
    assert table.true.tolist() == [f"true {case_id}" for case_id in table.case_id]
    assert table.foil.tolist() == [f"<i>{case_id}" for case_id in table.case_id]


@pytest.mark.parametrize("kind", ["layers", "experts", "matched", "scales", "coalitions"])
def test_rows_and_files_have_them(made: dict[str, Any], kind: str, tmp_path: Path) -> None:
    check(made[kind].rows)
    check(made[kind].cases)
    made[kind].save(tmp_path / kind)
    back = mt.load(tmp_path / kind)
    check(back.rows)
    check(back.cases)


def test_what_is_worked_out_has_them(made: dict[str, Any]) -> None:
    coalitions, experts = made["coalitions"], made["experts"]
    for table in (
        coalitions.shapley(),
        coalitions.interactions(),
        coalitions.smallest(),
        coalitions.additivity(),
    ):
        check(table)
    star = experts.select(min_active=1)
    check(experts.routing)
    check(experts.specificity(star, controls=1).rows)
    check(experts.all_active(star).rows)
    check(experts.ranks(star).rows)
    check(experts.held_out(folds=2, min_active=1, controls=1).rows)


def test_without_them_tables_have_no_empty_columns() -> None:
    rows = mt.trace_layers(make_model("qwen3_moe"), make_cases(2)).rows
    assert rows.columns.tolist() == [
        "case_id",
        "relation_id",
        "layer",
        "clean",
        "noised",
        "patched",
        "rescue",
        "direct",
        "indirect",
        "direct_linear",
    ]
