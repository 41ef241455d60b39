"""Files that nobody should have written: a reader gives records, or an error of this package."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moetrace.cases import Case, CaseSet, load_records
from moetrace.cases.record import Record
from moetrace.errors import MoetraceError, NoCasesError, RecordError

SUFFIXES = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet")
FUZZ = settings(
    max_examples=150,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)

FLAT = [
    {"case_id": 4, "relation_id": "P17", "prompt": "{} lies in", "subject": "Zürich", "target_true": "CH",
     "target_new": "FR"},
    {"case_id": 9, "relation_id": "P30", "prompt": "{}, is \"in\"", "subject": "Ob\u2028", "target_true": "A",
     "target_new": ""},
]  # fmt: skip
NESTED = [
    {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} is in", "relation_id": "P1", "subject": "Bern",
            "target_true": {"str": "CH", "id": "Q39"}, "target_new": {"str": "FR", "id": "Q142"},
        },
    }
]  # fmt: skip
NAMES = [
    "case_id", "relation_id", "prompt", "subject", "target_true", "target_new", "target_false", "known_id",
    "template", "attribute", "relation_prefix", "relation_suffix", "requested_rewrite", "str", "",
]  # fmt: skip


def as_file(rows: list[dict[str, Any]], suffix: str) -> bytes:
    if suffix == "json":
        return json.dumps(rows, ensure_ascii=False).encode()
    if suffix in ("jsonl", "ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == "parquet":
        sink = io.BytesIO()
        pd.DataFrame(rows).to_parquet(sink)
        return sink.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(path: Path) -> None:
    """Records, each a text in every field; or an error of this package."""
    refusal = None
    try:
        records = load_records(path)
    except MoetraceError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal) < 2000 + len(str(path))
        return
    assert len(records)
    for record in records:
        assert isinstance(record, Record)
        assert isinstance(record.case_id, int)
        for name in ("relation_id", "prompt", "subject", "target_true", "target_new"):
            getattr(record, name).encode()  # text, and valid Unicode


def load_set(path: Path) -> None:
    try:
        cases = CaseSet.load(path)
    except MoetraceError:
        return
    assert isinstance(cases, CaseSet)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file that was cut, and some of whose bytes were exchanged, dropped or put in."""
    data = bytearray(whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(min_value=2**60), st.floats(), st.text(max_size=5),
    st.text(alphabet=st.characters(categories=["Cs", "Cc", "Zs", "Nd"]), max_size=3),
    st.sampled_from(["{}", "NaN", " 12 "]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
# Fields of one layout, so that a value gets as far as the layout's reader.
SHAPED = [("prompt", "subject", "target_true", "target_new", "case_id", "relation_id"), tuple(NAMES[6:10])]
SHAPED += [
    ("prompt", "subject", "attribute", "template"),
    ("relation_prefix", "relation_suffix", *NAMES[2:7]),
]
ROW = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=9),
    st.sampled_from(SHAPED).flatmap(
        lambda names: st.fixed_dictionaries(dict.fromkeys(names, SCALARS | VALUES))
    ),
    st.builds(
        lambda row: {"requested_rewrite": row}, st.fixed_dictionaries(dict.fromkeys(SHAPED[0], VALUES))
    ),
    st.builds(lambda change: FLAT[0] | change, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2)),
)
ROWS = st.lists(ROW, max_size=4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_files_that_are_damaged_below_can_be_read_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    path.write_bytes(as_file(FLAT, suffix))
    assert [record.subject for record in load_records(path)] == ["Zürich", "Ob"]
    if suffix not in ("csv", "tsv"):
        path.write_bytes(as_file(NESTED, suffix))
        assert load_records(path)[0].target_new == "FR"


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
@FUZZ
def test_random_bytes(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"facts.{suffix}"
    path.write_bytes(data.draw(st.binary(max_size=60)))
    read(path)
    load_set(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
@FUZZ
def test_damaged_files(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"facts.{suffix}"
    rows = FLAT if suffix in ("csv", "tsv") else data.draw(st.sampled_from([FLAT, NESTED]))
    path.write_bytes(data.draw(damaged(as_file(rows, suffix))))
    read(path)
    load_set(path)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"]
)
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv"])
def test_wrong_encodings(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    path.write_bytes(as_file(FLAT, suffix).decode().replace("\u2028", "").encode(encoding))
    if encoding.startswith("utf-8"):
        assert load_records(path)[0].subject == "Zürich"
        return
    with pytest.raises(MoetraceError, match=path.name):
        load_records(path)


@given(rows=ROWS)
@FUZZ
def test_records_of_any_shape(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    for suffix in ("json", "jsonl"):
        path = tmp_path / f"facts.{suffix}"
        documents = [rows] if suffix == "json" else rows
        path.write_text("\n".join(json.dumps(document) for document in documents), encoding="utf-8")
        read(path)


@given(value=VALUES)
@FUZZ
def test_documents_of_any_shape(tmp_path: Path, value: Any) -> None:
    for suffix in ("json", "jsonl"):
        path = tmp_path / f"facts.{suffix}"
        path.write_text(json.dumps(value), encoding="utf-8")
        read(path)
        load_set(path)


@given(cells=st.lists(st.lists(st.text(max_size=4), max_size=7), max_size=4), quote=st.booleans())
@FUZZ
def test_tables_of_any_shape(tmp_path: Path, cells: list[list[str]], quote: bool) -> None:
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"facts.{suffix}"
        lines = [delimiter.join(f'"{c}"' if quote else c for c in row) for row in [NAMES[:6], *cells]]
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        read(path)


COLUMNS = {
    "times": pa.array([2**62, None], pa.timestamp("us")),
    "dates": pa.array([2**31 - 1, 0], pa.date32()),
    "lengths": pa.array([2**62, 1], pa.duration("ns")),
    "bytes": pa.array([b"\xff\xfe", b""], pa.binary()),
    "no text": pa.array([b"\xff\xfe", b"a"], pa.binary()).view(pa.string()),
    "numbers": pa.array([float("nan"), float("inf")]),
    "wide": pa.array([2**64 - 1, 0], pa.uint64()),
    "decimals": pa.array([None, 1], pa.decimal128(38)),
    "lists": pa.array([[["x"]], None]),
    "structs": pa.array([{"str": "x"}, {"str": None}]),
    "maps": pa.array([[("str", "x")], []], pa.map_(pa.string(), pa.string())),
    "nothing": pa.nulls(2),
    "text": pa.array(["x", None]),
}  # fmt: skip


@given(chosen=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(sorted(COLUMNS)), max_size=8))
@FUZZ
def test_parquet_columns_of_any_kind(tmp_path: Path, chosen: dict[str, str]) -> None:
    path = tmp_path / "facts.parquet"
    pq.write_table(pa.table({name: COLUMNS[column] for name, column in chosen.items()}), path)
    read(path)
    load_set(path)


def record(**fields: str) -> Callable[[], bytes]:
    """A list of one record of the flat layout, some of whose fields are given as JSON text."""
    plain = {"prompt": '"{} x"', "subject": '"s"', "target_true": '"t"', "target_new": '"n"'}
    return lambda: (
        "[{" + ", ".join(f'"{name}": {text}' for name, text in (plain | fields).items()) + "}]"
    ).encode()


BOMBS: dict[str, Callable[[], bytes]] = {
    "deep list": lambda: b"[" * 200_000,
    "deep field": record(subject="[" * 500 + "]" * 500),
    "deep label": record(relation_id="[" * 500 + "]" * 500),
    "deepest field": record(prompt='{"str": ' * 100_000 + "1" + "}" * 100_000),
    "long number": record(case_id="9" * 100_000),
    "long text of digits": record(case_id='"' + "9" * 100_000 + '"'),
    "long field": record(prompt='["' + "a" * 3_000_000 + '"]'),
    "long name": lambda: b'[{"' + b"a" * 3_000_000 + b'": 1}]',
    "many names": lambda: json.dumps([{f"n{i}": i for i in range(50_000)}]).encode(),
    "not a number": record(case_id="NaN"),
    "endless number": record(case_id="Infinity"),
    "half a pair": record(prompt='"{} \\ud800"'),
    "half a pair in a relation": record(relation_id='"\\udfff"'),
    "zeros": lambda: b"\0" * 1_000_000,
    "quotes": lambda: b'"' * 999_999,
    "commas": lambda: b"prompt,subject,target_true\n" + b"," * 1_000_000,
    "lines": lambda: b"\n" * 1_000_000,
    "long cell": lambda: b"prompt,subject,target_true,target_new\n" + b"a" * 1_000_000 + b",b,c,d\n",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_bombs(tmp_path: Path, suffix: str, bomb: str) -> None:
    path = tmp_path / f"facts.{suffix}"
    path.write_bytes(BOMBS[bomb]())
    read(path)
    load_set(path)


@pytest.mark.parametrize(
    ("bomb", "words"),
    [
        ("deep list", "nested too deeply"),
        ("deepest field", "nested too deeply"),
        ("deep label", r"record 0: relation_id is \[\[.*expected text"),
        ("not a number", "record 0: case_id is nan; expected a whole number"),
        ("long number", "a number can't be read"),
        ("half a pair", "record 0: prompt .* no valid Unicode"),
        ("half a pair in a relation", "record 0: relation_id .* no valid Unicode"),
        ("endless number", "record 0: case_id is inf; expected a whole number"),
    ],
)
def test_what_a_refusal_says(tmp_path: Path, bomb: str, words: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(BOMBS[bomb]())
    with pytest.raises(RecordError, match=words):
        load_records(path)


@pytest.mark.parametrize(
    "source", ["a" * 5000, "a\0b", "\ud800", "[1, 2]", Path("a" * 5000 + ".json"), "", ".", "a/b/c"]
)
def test_names_that_are_no_files(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RecordError, NoCasesError)):
        load_records(source)


CASES = CaseSet(
    [Case([1, 2, 3], (0, 2), 4, 5, 11, "P17", "Zürich"), Case([7, 8], (0, 1), 4, 6, 3, "P30", "x")],
    funnel={"records": 9, "usable": 2},
    dropped={"no_foil": 7},
    record_indices=[8, 3],
)


@pytest.mark.parametrize("suffix", ["json", "parquet"])
@given(data=st.data())
@FUZZ
def test_damaged_case_sets(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """What loads is the very set: no damage gets past the digests."""
    path = tmp_path / f"cases.{suffix}"
    CASES.save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        back = CaseSet.load(path)
    except MoetraceError:
        return
    assert back == CASES
    assert (back.funnel, back.record_indices) == (CASES.funnel, CASES.record_indices)


@given(data=st.data())
@FUZZ
def test_case_sets_with_any_value_anywhere(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cases.json"
    CASES.save(path)
    document = json.loads(path.read_text())
    holder = document["cases"] if data.draw(st.booleans()) else document
    holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(
        VALUES | st.lists(VALUES, min_size=2, max_size=2)
    )
    path.write_text(json.dumps(document))
    load_set(path)


def test_digests_of_nothing_by_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    CASES.save(path)
    document = json.loads(path.read_text())
    document["sha256"] = [[None, []]]
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match="None"):
        CaseSet.load(path)
