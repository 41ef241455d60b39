from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetrace.cases import Case, CaseSet
from moetrace.errors import ArgumentError, RecordError

CASES = CaseSet(
    [
        Case([1, 2, 3], (0, 2), 4, 5, 11, "P17", "Zürich – “here” is"),
        Case([7, 8, 9, 10], (1, 2), 4, 6, 3, "P30", "in\u2028two lines"),
    ],
    funnel={"records": 9, "single_token": 5, "usable": 2},
    dropped={"no_foil": 4},
    record_indices=[8, 3],
    n_records=9,
)


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet", "new/folder/cases.json"])
def test_a_saved_set_comes_back_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    CASES.save(path)
    back = CaseSet.load(str(path))
    assert back == CASES
    assert (back.dropped, back.record_indices, back.n_records) == (CASES.dropped, (8, 3), 9)
    assert list(back.funnel.items()) == list(CASES.funnel.items())
    assert back.record_order(5) == CASES.record_order(5)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet"])
def test_an_empty_set_comes_back(tmp_path: Path, name: str) -> None:
    empty = CaseSet([], {"records": 3}, {"no_foil": 3}, n_records=3)
    empty.save(tmp_path / name)
    back = CaseSet.load(tmp_path / name)
    assert (len(back), back.funnel, back.n_records) == (0, {"records": 3}, 3)


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet"])
def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    CASES[:1].save(path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CASES.save(path)
    assert CaseSet.load(path) == CASES[:1]
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    CASES.save(path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-1], b""):
        path.write_bytes(part)
        with pytest.raises(RecordError, match=f"{name}: not a whole .* cut short"):
            CaseSet.load(path)


def test_a_missing_file_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no such file"):
        CaseSet.load(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(RecordError, match=r"a JSON list; expected the object that CaseSet\.save writes"):
        CaseSet.load(tmp_path / "list.json")
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(RecordError, match="format 'something', version None"):
        CaseSet.load(tmp_path / "other.json")
    CASES.frame().to_parquet(tmp_path / "frame.parquet")
    with pytest.raises(RecordError, match="format None"):
        CaseSet.load(tmp_path / "frame.parquet")


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    CASES.save(tmp_path / "cases.json")
    document = json.loads((tmp_path / "cases.json").read_text())
    (tmp_path / "cases.json").write_text(json.dumps(document | {"version": 3}))
    with pytest.raises(RecordError, match=r"version 3; expected 'moetrace\.cases', version 2"):
        CaseSet.load(tmp_path / "cases.json")


def test_a_changed_or_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    CASES.save(path)
    document = json.loads(path.read_text())
    document["cases"]["true_id"][0] = 99
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="cases changed after the set was saved"):
        CaseSet.load(path)
    for damage in ({"cases": {}}, {"cases": {**document["cases"], "true_id": [1]}}, {"n_records": "many"}):
        path.write_text(json.dumps(document | damage))
        with pytest.raises(RecordError, match="incomplete or damaged"):
            CaseSet.load(path)


@pytest.mark.parametrize("version", [1, True, "2", None])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    CASES.save(tmp_path / "cases.json")
    document = json.loads((tmp_path / "cases.json").read_text())
    (tmp_path / "cases.json").write_text(json.dumps(document | {"version": version}))
    remedy = "Make the cases anew" if version == 1 else "as CaseSet.save writes it"
    with pytest.raises(RecordError, match=f"version {version!r}; expected .*{remedy}"):
        CaseSet.load(tmp_path / "cases.json")


def swapped(values: list[object]) -> list[object]:
    return values[::-1]


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet"])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("record_index", swapped),
        ("funnel", lambda funnel: dict(reversed(funnel.items()))),
        ("funnel", lambda funnel: funnel | {"usable": 3}),
        ("dropped", lambda dropped: {}),
        ("n_records", lambda n: n + 1),
        ("cases", None),
    ],
)
def test_an_edited_origin_or_order_is_refused_by_name(
    tmp_path: Path, name: str, field: str, change: Callable[[Any], Any] | None
) -> None:
    path = tmp_path / name
    CASES.save(path)
    if name == "cases.json":
        document = json.loads(path.read_text())
        columns = document["cases"]
    else:
        table = pq.read_table(path)
        document, columns = json.loads(table.schema.metadata[b"moetrace.cases"]), table.to_pydict()
    if field == "cases":
        columns = {column: values[::-1] for column, values in columns.items()}
    elif field == "record_index":
        columns["record_index"] = change(columns["record_index"])
    else:
        document[field] = change(document[field])
    if name == "cases.json":
        path.write_text(json.dumps(document | {"cases": columns}))
    else:
        head = {b"moetrace.cases": json.dumps(document)}
        pq.write_table(pa.table(columns, schema=table.schema).replace_schema_metadata(head), path)
    with pytest.raises(RecordError, match=rf"{name}: .*{field}.* changed after the set was saved"):
        CaseSet.load(path)


TOLD = CaseSet(
    [Case([1, 2], (0, 1), 4, 5, 11, true="Zürich", foil="<i>Bern"), Case([1, 2], (0, 1), 4, 5, 12)]
)


@pytest.mark.parametrize("name", ["cases.json", "cases.parquet"])
def test_objects_as_text_come_back_and_are_verified(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    TOLD.save(path)
    assert [(case.true, case.foil) for case in CaseSet.load(path)] == [("Zürich", "<i>Bern"), ("", "")]
    if name == "cases.json":
        path.write_text(path.read_text().replace("<i>Bern", "<i>Genf"))
    else:
        table = pq.read_table(path)
        place = table.schema.get_field_index("foil")
        pq.write_table(table.set_column(place, "foil", pa.array(["<i>Genf", ""])), path)
    with pytest.raises(RecordError, match=r"cases\.\w+: texts changed after the set was saved"):
        CaseSet.load(path)


def test_a_file_from_before_texts_were_kept_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    CASES.save(path)
    document = json.loads(path.read_text())
    assert "texts" not in document["sha256"]
    for name in ("true", "foil"):
        assert document["cases"].pop(name) == ["", ""]
    path.write_text(json.dumps(document))
    assert CaseSet.load(path) == CASES
    TOLD.save(path)
    document = json.loads(path.read_text())
    del document["cases"]["true"]
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="texts changed"):
        CaseSet.load(path)


def test_what_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RecordError, match="can't be written"):
        CASES.save(tmp_path / "file" / "cases.json")
    with pytest.raises(RecordError, match="can't be written"):
        CASES.save(tmp_path)
    for bad in ("", None, 3, "a\0b"):
        for call in (CASES.save, CaseSet.load):
            with pytest.raises(ArgumentError, match=r"expected .* path"):
                call(bad)
    with pytest.raises(RecordError, match="can't be written"):
        CASES.save(tmp_path / ("a" * 5000))
    with pytest.raises(RecordError, match="can't be read"):
        CaseSet.load(tmp_path / ("a" * 5000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_parquet_file_is_a_plain_table(tmp_path: Path) -> None:
    CASES.save(tmp_path / "cases.parquet")
    table = pq.read_table(tmp_path / "cases.parquet").to_pandas()
    assert list(table["case_id"]) == [11, 3]
    assert list(table["input_ids"][1]) == [7, 8, 9, 10]
