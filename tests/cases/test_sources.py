from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from test_records import FACTS, KNOWN, flat, original, tracing

from moetrace.cases import load_records
from moetrace.errors import NoCasesError, RecordError


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def azhx() -> datasets.DatasetDict:
    """The layout of azhx/counterfact: nested, cut into two splits that don't follow the case ids."""
    parts = {"train": [FACTS[2], FACTS[0]], "test": [FACTS[1]]}
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_list([original(fact) for fact in facts])
            for name, facts in parts.items()
        }
    )


@pytest.fixture
def neel() -> datasets.Dataset:
    """The layout of NeelNanda/counterfact-tracing."""
    return datasets.Dataset.from_list([tracing(fact) for fact in FACTS])


def hub_copy(dataset: datasets.DatasetDict, folder: Path) -> Path:
    """A local copy of a hub data set, as its repository holds it."""
    for name, part in dataset.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def test_a_local_copy_of_the_nested_hub_set_comes_in_case_order(
    azhx: datasets.DatasetDict, tmp_path: Path
) -> None:
    folder = hub_copy(azhx, tmp_path / "counterfact")
    assert list(load_records(folder)) == FACTS
    assert list(load_records(folder, split="test")) == [FACTS[1]]
    assert list(load_records(folder, split="train")) == [FACTS[2], FACTS[0]]
    with pytest.raises(RecordError, match="no split 'dev'; expected one of train, test"):
        load_records(folder, split="dev")


def test_a_local_copy_of_the_tracing_hub_set(neel: datasets.Dataset, tmp_path: Path) -> None:
    folder = hub_copy(datasets.DatasetDict(train=neel), tmp_path / "tracing")
    assert list(load_records(str(folder))) == FACTS


def test_folders_that_save_to_disk_wrote(
    azhx: datasets.DatasetDict, neel: datasets.Dataset, tmp_path: Path
) -> None:
    azhx.save_to_disk(tmp_path / "azhx")
    neel.save_to_disk(tmp_path / "neel")
    assert list(load_records(tmp_path / "azhx")) == FACTS
    assert list(load_records(tmp_path / "neel")) == FACTS


def test_data_sets_in_memory(azhx: datasets.DatasetDict, neel: datasets.Dataset) -> None:
    assert list(load_records(azhx)) == FACTS
    assert list(load_records(neel)) == FACTS
    assert list(load_records(neel.with_format("numpy"))) == FACTS
    assert list(load_records(neel.to_iterable_dataset())) == FACTS


@pytest.mark.parametrize(
    ("source", "hub_id"),
    [
        ("counterfact", "azhx/counterfact"),
        ("azhx/counterfact", "azhx/counterfact"),
        ("some/facts", "some/facts"),
    ],
)
def test_hub_ids(
    source: str, hub_id: str, azhx: datasets.DatasetDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", {hub_id: azhx}.__getitem__)
    records = load_records(source)
    assert list(records) == FACTS
    assert records.source == hub_id


def test_a_hub_set_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> Any:
        raise ConnectionError(f"no way to {name}")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(RecordError, match="datasets can't load it \\(ConnectionError: no way to some/facts"):
        load_records("some/facts")


def test_the_package_datasets_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecordError, match=r"needs the package datasets; pip install 'moetrace\[data\]'"):
        load_records("counterfact")


@pytest.mark.parametrize("source", ["facts.json", "data/facts.json", "a/b/c", "facts", Path("some/facts")])
def test_a_path_that_leads_nowhere(source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecordError, match="there is no such file"):
        load_records(source)


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "facts.xml").write_text("<facts/>")
    with pytest.raises(RecordError, match=r"unknown kind of file '\.xml'; expected one of \.json, \.jsonl"):
        load_records(tmp_path / "facts.xml")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    rows = [flat(fact) for fact in FACTS]
    if suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif suffix == "csv":
        pd.DataFrame(rows).drop(columns="target_new").to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    whole = path.read_bytes()
    cut = whole.rindex(b",") if suffix != "parquet" else len(whole) - 20
    path.write_bytes(whole[:cut])
    with pytest.raises(RecordError, match=rf"facts\.{suffix}: .*cut short"):
        load_records(path)


def test_csv_rows_of_the_wrong_length_are_told_by_record(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "prompt,subject,target_true,target_new\nIn {} they speak,Rome,Latin,Thai\nIn {}, is,a,b,c\n"
    )
    with pytest.raises(RecordError, match="record 1 has more fields than the header's 4"):
        load_records(path)
    path.write_text('prompt,subject,target_true,target_new\n"In {} they speak,Rome,Latin,Thai\n')
    with pytest.raises(RecordError, match="is not whole CSV"):
        load_records(path)


def test_a_broken_line_is_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(flat(FACTS[0])) + '\n\n{"prompt": \n')
    with pytest.raises(RecordError, match="line 3 is not whole JSON"):
        load_records(path)


def test_json_of_another_shape_and_text_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"prompt": "x"}')
    with pytest.raises(RecordError, match="a JSON dict; expected a list of records"):
        load_records(path)
    path.write_bytes("[“Zürich”]".encode("utf-16"))
    with pytest.raises(RecordError, match="can't be read as UTF-8 text"):
        load_records(path)


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "[]"), ("a.jsonl", "\n"), ("a.csv", ""), ("a.tsv", "prompt\tsubject\n")]
)
def test_an_empty_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NoCasesError, match=f"{name} holds no records"):
        load_records(tmp_path / name)


def test_known_1000_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "known_1000.json").write_text(json.dumps([KNOWN, KNOWN | {"known_id": 8}]))
    assert [record.case_id for record in load_records(tmp_path / "known_1000.json")] == [7, 8]
