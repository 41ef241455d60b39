from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moetrace.cases import Record, Records, load_records
from moetrace.errors import NoCasesError, RecordError

# Three facts, by hand, and the same in every published layout.
FACTS = [
    Record(0, "P103", "The mother tongue of {} is", "Danielle Darrieux", "French", "English"),
    Record(1, "P1303", "{}, the", "Toko Yasuda", "guitar", "piano"),
    Record(2, "P37", "In {}, they speak", "São Tomé", "Portuguese", "NA"),
]


def flat(record: Record, **change: Any) -> dict[str, Any]:
    row = {
        "case_id": record.case_id,
        "relation_id": record.relation_id,
        "prompt": record.prompt,
        "subject": record.subject,
        "target_true": record.target_true,
        "target_new": record.target_new,
    }
    return row | change


def original(record: Record) -> dict[str, Any]:
    return {
        "case_id": record.case_id,
        "pararel_idx": 2796,
        "requested_rewrite": {
            "prompt": record.prompt,
            "relation_id": record.relation_id,
            "target_new": {"str": record.target_new, "id": "Q1860"},
            "target_true": {"str": record.target_true, "id": "Q150"},
            "subject": record.subject,
        },
        "paraphrase_prompts": ["Shayna does this and Yossel goes still and dies. It is"],
        "neighborhood_prompts": [],
        "attribute_prompts": [],
        "generation_prompts": [],
    }


def tracing(record: Record) -> dict[str, Any]:
    prefix, suffix = record.prompt.split("{}")
    subject = f" {record.subject}" if prefix else record.subject
    return {
        "relation": record.prompt,
        "relation_prefix": prefix.rstrip(),
        "relation_suffix": suffix,
        "prompt": f"{prefix.rstrip()}{subject}{suffix}",
        "relation_id": record.relation_id,
        "target_false_id": "Q1860",
        "target_true_id": "Q150",
        "target_true": f" {record.target_true}",
        "target_false": f" {record.target_new}",
        "subject": subject,
    }


KNOWN = {
    "known_id": 7,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica. It is the largest of the three",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}


@pytest.mark.parametrize("layout", [flat, original, tracing])
def test_the_same_facts_from_every_layout(layout: Any) -> None:
    assert list(load_records([layout(record) for record in FACTS])) == FACTS


def test_known_1000_takes_the_prompt_and_the_place_that_the_template_tells() -> None:
    (record,) = load_records([KNOWN])
    assert record == Record(
        7, "P30", "{} is located in the continent of", "Vinson Massif", "Antarctica", target_new=""
    )
    (elsewhere,) = load_records([KNOWN | {"template": "The {}"}])
    assert elsewhere.prompt == KNOWN["prompt"]
    without = {name: value for name, value in KNOWN.items() if name not in ("template", "known_id")}
    assert load_records([without])[0] == Record(0, "P30", KNOWN["prompt"], "Vinson Massif", "Antarctica", "")


def test_the_flat_file_of_all_counterfact(counterfact: Records) -> None:
    assert len(counterfact) == 21_919
    assert counterfact[0] == FACTS[0]
    assert all(record.case_id == index for index, record in enumerate(counterfact))


@pytest.mark.parametrize("layout", [flat, original, tracing])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "parquet"])
def test_files(tmp_path: Path, layout: Any, suffix: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    rows = [layout(record) for record in FACTS]
    if suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif suffix == "json":
        path.write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert list(load_records(path)) == FACTS
    assert list(load_records(str(path))) == FACTS


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables_keep_words_that_look_like_gaps(tmp_path: Path, suffix: str, separator: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    pd.DataFrame([flat(record) for record in FACTS]).to_csv(path, sep=separator, index=False)
    assert list(load_records(path)) == FACTS
    assert load_records(path)[2].target_new == "NA"


def test_json_lines_under_another_suffix(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("\n".join(json.dumps(flat(record)) for record in FACTS))
    assert list(load_records(path)) == FACTS


def test_a_data_frame_and_its_way_back() -> None:
    records = load_records(pd.DataFrame([flat(record) for record in FACTS]))
    assert list(records) == FACTS
    assert load_records(records.frame()) == records
    gaps = pd.DataFrame([flat(FACTS[0]), flat(FACTS[1], target_new=None, relation_id=np.nan)])
    gaps["case_id"] = gaps["case_id"].astype(float)
    assert load_records(gaps)[1] == Record(1, "", "{}, the", "Toko Yasuda", "guitar", "")


def test_records_and_lists_of_them_pass_through() -> None:
    records = Records(FACTS)
    assert load_records(records) is records
    assert list(load_records(FACTS)) == FACTS
    assert records[1:] == Records(FACTS[1:])
    assert "3" in repr(records)


def test_case_ids_come_from_the_order_where_there_are_none() -> None:
    rows = [flat(record) for record in FACTS]
    for row in rows:
        del row["case_id"], row["relation_id"]
    assert [(r.case_id, r.relation_id) for r in load_records(rows)] == [(0, ""), (1, ""), (2, "")]
    assert load_records([flat(FACTS[0], case_id="12"), flat(FACTS[1], case_id=13.0)])[0].case_id == 12


def test_target_false_is_a_foil_too_and_null_reads_as_empty() -> None:
    row = flat(FACTS[0])
    row["target_false"] = row.pop("target_new")
    assert list(load_records([row])) == FACTS[:1]
    assert load_records([flat(FACTS[0], target_new=None)])[0].target_new == ""
    assert load_records([flat(FACTS[0], subject=float("nan"))])[0].subject == ""


@pytest.mark.parametrize("field", ["prompt", "subject", "target_true", "target_new"])
def test_a_missing_field_is_named_with_its_record(field: str) -> None:
    rows = [flat(record) for record in FACTS]
    del rows[1][field]
    with pytest.raises(RecordError, match=f"record 1 lacks the field {field}.*it has case_id"):
        load_records(rows)


def test_a_missing_field_of_the_first_record() -> None:
    row = flat(FACTS[0])
    del row["subject"]
    with pytest.raises(RecordError, match="record 0 lacks the field subject"):
        load_records([row])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("subject",), "record 2, in requested_rewrite, lacks the field subject"),
        (("target_true",), "record 2, in requested_rewrite, lacks the field target_true"),
    ],
)
def test_a_missing_nested_field_is_named(path: tuple[str], message: str) -> None:
    rows = [original(record) for record in FACTS]
    del rows[2]["requested_rewrite"][path[0]]
    with pytest.raises(RecordError, match=message):
        load_records(rows)
    rows[2]["requested_rewrite"] = None
    with pytest.raises(RecordError, match="record 2: requested_rewrite is a NoneType; expected a mapping"):
        load_records(rows)


@pytest.mark.parametrize("layout", [tracing, lambda _: KNOWN])
def test_missing_fields_of_the_other_layouts(layout: Any) -> None:
    row = dict(layout(FACTS[0]))
    del row["subject"]
    with pytest.raises(RecordError, match="record 1 lacks the field subject"):
        load_records([layout(FACTS[0]), row])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "record 0: prompt is null; expected text"),
        ({"target_true": 3}, "record 0: target_true is 3; expected text"),
        ({"case_id": "a7"}, "record 0: case_id is 'a7'; expected a whole number"),
        ({"case_id": None}, "record 0: case_id is None; expected a whole number"),
        ({"case_id": 1.5}, "record 0: case_id is 1.5; expected a whole number"),
    ],
)
def test_a_field_of_the_wrong_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        load_records([flat(FACTS[0], **change)])


def test_an_unknown_layout_lists_what_was_found() -> None:
    with pytest.raises(
        RecordError, match="unknown layout, record 0 has the fields question, answer; expected"
    ):
        load_records([{"question": "?", "answer": "!"}])
    with pytest.raises(RecordError, match="record 1 is a str; expected a mapping"):
        load_records([flat(FACTS[0]), "text"])


@pytest.mark.parametrize("source", [3, None, {"prompt": "one record alone"}])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(RecordError, match="is no source of records"):
        load_records(source)


def test_no_records() -> None:
    with pytest.raises(NoCasesError, match="the given list holds no records"):
        load_records([])
