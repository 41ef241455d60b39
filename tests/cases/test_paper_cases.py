"""The paper's record order, filter counts, split and relation counts, from its Table 8."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest

from moetrace.cases import Case, CaseSet, Records
from moetrace.trace.select_cases import select_cases

MODELS = ["qwen3", "mixtral"]


def table8(published: dict[str, Any], model: str) -> tuple[list[int], list[int]]:
    lists = published["table8"][model]
    return lists["discovery"], lists["validation"]


@pytest.mark.parametrize(("model", "single_token"), [("qwen3", 21_321), ("mixtral", 10_646)])
def test_how_many_records_pass_the_single_token_filter(
    model: str, single_token: int, all_cases: dict[str, CaseSet]
) -> None:
    cases = all_cases[model]
    assert cases.n_records == 21_919
    assert cases.funnel["single_token"] == single_token
    dropped = cases.dropped
    assert 21_919 - single_token == dropped["true_not_single_token"] + dropped["foil_not_single_token"]


@pytest.mark.parametrize("model", MODELS)
def test_no_case_of_table_8_is_dropped(
    model: str, published: dict[str, Any], all_cases: dict[str, CaseSet]
) -> None:
    discovery, validation = table8(published, model)
    assert len(discovery) == len(validation) == 128
    assert {*discovery, *validation} <= {case.case_id for case in all_cases[model]}


@pytest.mark.parametrize(("model", "scanned"), [("qwen3", 390), ("mixtral", 581)])
def test_table_8_lies_at_the_front_of_the_record_order(
    model: str, scanned: int, published: dict[str, Any], all_cases: dict[str, CaseSet], counterfact: Records
) -> None:
    everything = CaseSet([Case([0, 1], (0, 1), 0, 1, record.case_id) for record in counterfact])
    front = [everything[place].case_id for place in everything.record_order(seed=0)[:scanned]]
    ids = set().union(*table8(published, model))
    assert ids <= set(front)
    assert front[-1] in ids
    # With the dropped records gone, the rest follow each other as before.
    kept = all_cases[model]
    order = [kept[place].case_id for place in kept.record_order(seed=0)]
    here = {case.case_id for case in kept}
    assert order[: len(here & set(front))] == [case_id for case_id in front if case_id in here]


@pytest.mark.parametrize(("model", "scanned"), [("qwen3", 390), ("mixtral", 581)])
def test_with_its_usable_cases_the_split_is_table_8_in_order(
    model: str, scanned: int, published: dict[str, Any], all_cases: dict[str, CaseSet]
) -> None:
    """A scorer that finds just Table 8's cases usable stands for the model."""
    expected = table8(published, model)
    usable = set().union(*expected)

    def score(_: object, cases: CaseSet, **options: object) -> pd.DataFrame:
        clean = [1.0 if case.case_id in usable else 0.99 for case in cases]
        return pd.DataFrame(
            {"case_id": [case.case_id for case in cases], "clean": clean, "noised": [x - 0.5 for x in clean]}
        )

    selected = select_cases(None, all_cases[model], n=256, progress=False, _score=score)
    discovery, validation = selected.split(seed=0)
    assert [case.case_id for case in discovery] == expected[0]
    assert [case.case_id for case in validation] == expected[1]
    assert selected.funnel["scanned"] == scanned


@pytest.mark.parametrize("model", MODELS)
def test_halves_in_scan_order_can_have_the_overlap_of_table_15(
    model: str, published: dict[str, Any], all_cases: dict[str, CaseSet]
) -> None:
    """15 of 256 relaxed validation cases are strict: so it is if the scan meets 15 relaxed ones on its way.

    Table 8's cases are strict; the first 15 others, and all after the last of Table 8, pass the relaxed
    thresholds alone.
    """
    cases = all_cases[model]
    strict = set().union(*table8(published, model))
    order = [cases[place].case_id for place in cases.record_order(seed=0)]
    last = max(order.index(case_id) for case_id in strict)
    others = [case_id for case_id in order[:last] if case_id not in strict]
    relaxed = strict | set(others[:15]) | set(order[last + 1 :])

    def score(_: object, batch: CaseSet, **options: object) -> pd.DataFrame:
        rows = [
            (case.case_id, *((1.0, 0.5) if case.case_id in strict else (0.5, 0.25)))
            if case.case_id in relaxed
            else (case.case_id, 0.0, 0.0)
            for case in batch
        ]
        return pd.DataFrame(rows, columns=["case_id", "clean", "noised"])

    usable = select_cases(None, cases, n=512, margin=0.5, drop=0.25, progress=False, _score=score)
    discovery, validation = usable.split(order="scan")
    assert len(discovery) == len(validation) == 256
    assert sum(case.case_id in strict for case in validation) == 15
    assert [*discovery, *validation] == list(usable)


@pytest.mark.parametrize("model", MODELS)
def test_shuffled_halves_cannot_have_the_overlap_of_table_15(
    model: str, published: dict[str, Any], all_cases: dict[str, CaseSet]
) -> None:
    """Whichever of the cases between Table 8's are usable when relaxed, far more than 15 are validated.

    The fewest, by dynamic programming over the scan: ``fewest[j]`` after j relaxed cases.
    """
    cases = all_cases[model]
    strict = set().union(*table8(published, model))
    order = [cases[place].case_id for place in cases.record_order(seed=0)]
    scanned = order[: max(order.index(case_id) for case_id in strict) + 1]
    assert len(scanned) < 512  # so every strict case is among the 512
    _, validation = CaseSet([Case([0, 1], (0, 1), 0, 1, place) for place in range(512)]).split(seed=0)
    validated = {case.case_id for case in validation}
    fewest = {0: 0}
    for case_id in scanned:
        taken = {j + 1: count + (case_id in strict and j in validated) for j, count in fewest.items()}
        left = {} if case_id in strict else fewest
        fewest = {j: min(kept[j] for kept in (taken, left) if j in kept) for j in {*taken, *left}}
    assert min(fewest.values()) > 80


@pytest.mark.parametrize("model", MODELS)
def test_relation_counts_of_tables_4_and_5(
    model: str, published: dict[str, Any], counterfact: Records
) -> None:
    discovery, validation = table8(published, model)
    retained = Counter(counterfact[case_id].relation_id for case_id in [*discovery, *validation])
    table4 = published["table4"][model]
    assert len(table4) == 12
    assert {relation: retained[relation] for relation in table4} == table4
    assert max(count for name, count in retained.items() if name not in table4) <= min(table4.values())
    held = Counter(counterfact[case_id].relation_id for case_id in validation)
    table5 = {row[0]: row[1] for row in published["table5"][model]}
    assert len(table5) == 10
    assert {relation: held[relation] for relation in table5} == table5


def test_folds_over_the_relations_of_table_12(
    published: dict[str, Any], all_cases: dict[str, CaseSet]
) -> None:
    ids = set().union(*table8(published, "qwen3"))
    cases = all_cases["qwen3"]
    usable = cases.take(place for place in cases.record_order() if cases[place].case_id in ids)
    folds = usable.folds(by="relation_id", k=5, seed=0)
    assert sum(len(held_out) for _, held_out in folds) == 256
    assert all(len(rest) + len(held_out) == 256 for rest, held_out in folds)
    assert max(len(held_out) for _, held_out in folds) <= 60
