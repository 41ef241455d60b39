"""Saved results: what was changed since is refused by name, and nothing is written over by accident."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moetrace as mt
from moetrace.errors import ArgumentError, RunFolderError
from moetrace.integrity import broken_seal, json_digest, table_seal
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.layers import LayerTrace
from tests.results.expert_traces import NO_FAILURES, case_table, random_trace


def layer_trace(seed: int = 0, n: int = 6, layers: tuple[int, ...] = (1, 2, 4)) -> LayerTrace:
    rng = np.random.default_rng(seed)
    cases = case_table(n, rng, 3)
    effects = rng.normal(size=(n, len(layers)))
    patched = cases.noised.to_numpy()[:, None] + effects
    provenance = {"self_check": 1e-6, "noise": {"scale": 3.0, "seed": seed}, "layers": layers, "5": [1.5]}
    return LayerTrace(cases, pd.DataFrame({"layer": layers}), patched, effects, NO_FAILURES, provenance)


def coalition_trace() -> CoalitionTrace:
    cases = case_table(2, np.random.default_rng(0), 2)
    cases["experts"], cases["valid"] = [[4, 1], [2, 3]], [[True, True], [True, False]]
    sites = pd.DataFrame({"layer": 2, "coalition": ["slots 0", "slots 1", "slots 0+1"]})
    facts = {"masks": [1, 2, 3], "players": 2, "orders": None}
    effects = np.arange(6.0).reshape(2, 3)
    return CoalitionTrace(cases, sites, effects + 1, effects, NO_FAILURES, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layer_trace().save(tmp_path / "r")
    return tmp_path / "r"


def rewrite(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def edit_meta(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("make", [layer_trace, lambda: random_trace(0), coalition_trace])
def test_what_was_saved_comes_back(tmp_path: Path, make: Callable[..., Any]) -> None:
    trace = make()
    trace.save(str(tmp_path / "new" / "r"))
    again = mt.load(tmp_path / "new" / "r")
    assert type(again) is type(trace)
    pd.testing.assert_frame_equal(again.rows, trace.rows)
    np.testing.assert_array_equal(again.effects, trace.effects)
    assert again.provenance == json.loads(json.dumps(trace.provenance))
    again.save(tmp_path / "twice")
    first, second = (
        json.loads((place / "meta.json").read_text())
        for place in (tmp_path / "new" / "r", tmp_path / "twice")
    )
    assert first == second
    assert (first["format"], first["moetrace"]) == (2, mt.__version__)


def edited(column: str, value: Any = 7.0) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        values = table[column].tolist()
        values[3] = value
        return table.assign(**{column: values})

    return change


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("rows", lambda t: t.sample(frac=1, random_state=1), "'case_id', .* in another order"),
        ("rows", edited("rescue"), "column 'rescue' holds other values"),
        ("rows", edited("layer", 3), "column 'layer' holds other values"),
        ("rows", edited("relation_id", "P9"), "column 'relation_id' holds other values"),
        ("rows", lambda t: t.rename(columns={"layer": "Layer"}), "column 'layer' is missing; it has"),
        ("rows", lambda t: t.drop(columns="patched"), "column 'patched' is missing"),
        ("rows", lambda t: t.assign(extra=1), "column 'extra' was added"),
        ("rows", lambda t: t.iloc[:-1], "it has 17 rows; expected 18"),
        ("rows", lambda t: t.assign(layer=t.layer.astype(str)), "'layer' holds text; expected integers"),
        ("rows", lambda t: t.assign(rescue=t.rescue.astype("float32")), "column 'rescue' holds other values"),
        ("cases", edited("null_rescue"), "column 'null_rescue' holds other values"),
        ("cases", lambda t: t.iloc[::-1], "in another order"),
        ("failed", lambda t: t.assign(reason=["x"] * len(t), more=1), "'more' was added"),
    ],
)
def test_a_changed_table_is_refused_by_file_and_field(
    folder: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    rewrite(folder / f"{table}.parquet", change)
    with pytest.raises(RunFolderError, match=rf"{table}\.parquet isn't what was saved: .*{words}"):
        mt.load(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format=99), "format is 99; this version of moetrace reads format 2"),
        (lambda m: m.update(format=True), "format is True"),
        (lambda m: m.pop("format"), "format is None"),
        (lambda m: m.update(format=1), "format is 1, an older one .* trace it again"),
        (lambda m: m.update(kind="experts"), "field kind was changed"),
        (lambda m: m.update(moetrace="9.9"), "field moetrace was changed"),
        (lambda m: m["provenance"]["noise"].update(scale=1.0), r"field provenance\.noise was changed"),
        (lambda m: m["provenance"].pop("noise"), r"field provenance\.noise was changed"),
        (lambda m: m["provenance"].update(more=1), r"field provenance\.more was changed"),
        (lambda m: m["tables"]["rows"].update(rows=1), "field tables was changed"),
        (lambda m: m.pop("sha256"), "field 'sha256' is missing"),
        (lambda m: m.update(more=1), "field 'more' was added"),
        (lambda m: m.update(provenance=[1]), "can't be read"),
        (lambda m: m.update(sha256=3), "can't be read"),
    ],
)
def test_changed_meta_is_refused_by_field(
    folder: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    edit_meta(folder, change)
    with pytest.raises(RunFolderError, match=rf"meta\.json.* {words}"):
        mt.load(folder)


@pytest.mark.parametrize("name", ["meta.json", "rows.parquet", "cases.parquet", "failed.parquet"])
@pytest.mark.parametrize("length", [0, 4, 0.5, -1])
def test_a_cut_file_is_refused_by_name(folder: Path, name: str, length: float) -> None:
    path = folder / name
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: int(len(whole) * length) if isinstance(length, float) else length])
    with pytest.raises(RunFolderError, match=rf"{name} can't be read"):
        mt.load(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"format": 1' + "0" * 5000 + "}", "\ud800"])
def test_hostile_meta_is_refused(folder: Path, text: str) -> None:
    (folder / "meta.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RunFolderError, match=r"meta\.json"):
        mt.load(folder)


def test_a_missing_or_swapped_table_is_refused(folder: Path, tmp_path: Path) -> None:
    layer_trace(1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "rows.parquet", folder)
    with pytest.raises(RunFolderError, match=r"rows\.parquet isn't what was saved"):
        mt.load(folder)
    (folder / "rows.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"rows\.parquet is missing"):
        mt.load(folder)


def test_the_same_values_of_another_writer_load(folder: Path) -> None:
    trace = layer_trace()
    for name in ("rows", "cases", "failed"):
        path = folder / f"{name}.parquet"
        table = pq.read_table(path).replace_schema_metadata(None)
        if name == "rows":
            relation = pc.dictionary_encode(table["relation_id"])
            table = table.set_column(table.column_names.index("relation_id"), "relation_id", relation)
            layer = table["layer"].cast(pa.int16())
            table = table.set_column(table.column_names.index("layer"), "layer", layer)
        pq.write_table(table, path, compression="gzip", row_group_size=4, version="1.0")
    again = mt.load(folder)
    pd.testing.assert_frame_equal(again.rows, trace.rows)
    pd.testing.assert_frame_equal(again.cases, trace.cases)


def test_metadata_of_a_writer_change_nothing(folder: Path) -> None:
    path = folder / "rows.parquet"
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"pandas"]) | {"index_columns": ["layer"]}
    pq.write_table(table.replace_schema_metadata({b"pandas": json.dumps(told)}), path)
    pd.testing.assert_frame_equal(mt.load(folder).rows, layer_trace().rows)


@pytest.mark.parametrize("bad", ["", "  ", None, 3, b"bytes", "a\0b", ["r"]])
def test_what_is_no_path_is_refused(bad: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (layer_trace().save, mt.load):
        with pytest.raises(ArgumentError, match=r"expected .* path"):
            call(bad)
    assert not list(tmp_path.iterdir())


def test_what_is_no_folder_with_a_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cases.json").write_text("{}")
    for place, words in (
        (tmp_path, "holds no saved result"),
        (tmp_path / "none", "none doesn't exist; expected a folder"),
        (tmp_path / "cases.json", r"is a file; case sets are read by CaseSet\.load"),
        (tmp_path / ("a" * 5000), "can't be read"),
    ):
        with pytest.raises(RunFolderError, match=words):
            mt.load(place)
    with pytest.raises(RunFolderError, match="can't be written"):
        layer_trace().save(tmp_path / ("a" * 5000))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_over_something_else_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with pytest.raises(
        RunFolderError, match=r"r holds a result of kind 'layers'.*one of kind 'experts'.*give"
    ):
        random_trace(0).save(folder)
    assert contents(folder) == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes holds other files \(a\.txt\) and no result"):
        layer_trace().save(tmp_path / "notes")
    assert contents(tmp_path / "notes") == {"a.txt": b"mine"}
    for file in (tmp_path / "notes" / "a.txt", tmp_path / "notes" / "a.txt" / "below"):
        with pytest.raises(RunFolderError, match=r"a\.txt is a file|can't be written"):
            layer_trace().save(file)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "meta.json").write_text('{"name": "mine"}')
    with pytest.raises(RunFolderError, match="holds a result of kind None"):
        layer_trace().save(tmp_path / "odd")


def test_a_run_of_another_kind_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "call.json").write_text('{"what": "experts"}')
    with pytest.raises(RunFolderError, match="holds a run of kind 'experts'"):
        layer_trace().save(tmp_path)
    with pytest.raises(RunFolderError, match="a run that isn't finished"):
        mt.load(tmp_path)
    (tmp_path / "call.json").write_text('{"what": "layers"}')
    layer_trace().save(tmp_path)
    assert len(mt.load(tmp_path)) == 6


def test_the_same_kind_is_saved_over_and_files_beside_it_stay(folder: Path) -> None:
    (folder / "picture.png").write_bytes(b"png")
    newer = layer_trace(3, n=9)
    newer.save(folder)
    np.testing.assert_array_equal(mt.load(folder).effects, newer.effects)
    assert (folder / "picture.png").read_bytes() == b"png"
    assert not list(folder.glob(".*"))


@given(data=st.data())
@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_goes_unseen(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes exchanged, dropped and put in anywhere: what loads is the very result."""
    trace, folder = layer_trace(), tmp_path / "damaged"
    trace.save(folder)
    path = folder / data.draw(
        st.sampled_from(["meta.json", "rows.parquet", "cases.parquet", "failed.parquet"])
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path.write_bytes(bytes(content))
    try:
        again = mt.load(folder)
    except RunFolderError:
        again = None
    shutil.rmtree(folder)
    if again is not None:
        pd.testing.assert_frame_equal(again.rows, trace.rows)
        assert again.provenance == json.loads(json.dumps(trace.provenance))


def test_what_no_file_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    trace = layer_trace()
    trace.provenance["position"] = print
    with pytest.raises(RunFolderError, match="can't be written as tables and JSON"):
        trace.save(tmp_path / "r")
    assert not (tmp_path / "r").exists()


class Killed(BaseException):
    """The process ends here: nothing after it runs."""


@pytest.mark.parametrize("old", [False, True])
def test_a_killed_save_leaves_all_old_or_all_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """Stop at every step that touches the disk, without any cleaning up, as a kill does."""
    states, outcomes = [], set()
    first, second = layer_trace(0), layer_trace(1)
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        if old:
            first.save(folder)
        calls = 0

        def stop(real: Callable[..., Any], at: int = steps) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > at:  # and so does everything after it: a dead process tidies nothing
                    raise Killed
                return real(*arguments, **options)

            return wrapped

        with monkeypatch.context() as patch:
            for owner, name in ((os, "replace"), (Path, "unlink"), (pq, "write_table"), (Path, "write_text")):
                patch.setattr(owner, name, stop(getattr(owner, name)))
            try:
                second.save(folder)
                done = True
            except Killed:
                done = False
        found = None
        if (folder / "meta.json").exists() or (folder / ".meta.json.new").exists():
            found = mt.load(folder).provenance["noise"]["seed"]
        outcomes.add(found)
        states.append(found)
        second.save(folder)
        np.testing.assert_array_equal(mt.load(folder).effects, second.effects)
        assert not [name for name in contents(folder) if name.endswith(".new")]
        if done:
            break
        steps += 1
    assert steps >= 12
    before = 0 if old else None
    assert outcomes == {before, 1}
    assert states == sorted(states, key=lambda found: found == 1)  # once new, never old again


def test_seals_tell_values_apart_and_nothing_else() -> None:
    def sealed(**columns: Any) -> Any:
        return table_seal(pa.table(columns))

    assert sealed(a=pa.array([1, 2], pa.int8())) == sealed(a=pa.array([1, 2], pa.int64()))
    assert sealed(a=pa.array([0.5, None])) == sealed(a=pa.array([0.5, float("nan")]))
    assert sealed(a=pa.array(["x", "y"], pa.large_string())) == sealed(a=pa.chunked_array([["x"], ["y"]]))
    assert sealed(a=pa.array([[1], [2]], pa.large_list(pa.int64()))) == sealed(a=[[1], [2]])
    two: list[Any] = [["ab", "c"], ["a", "bc"], ["ab", None], ["ab", ""], [1, 2], [2, 1], [1, None], [1, 0]]
    two += [[["ab"], ["c"]], [["ab", "c"], []], [[], ["ab", "c"]], [1.0, 2.0], [True, False], [None, None]]
    differing = [sealed(a=values) for values in two]
    assert len({json.dumps(seal) for seal in differing}) == len(differing)
    table = pa.table({"a": [1, 2]})
    assert broken_seal(json.loads(json.dumps(table_seal(table))), table) is None
    assert json_digest({"a": (1, 2.5), "b": {"1": None}}) == json_digest({"b": {1: None}, "a": [1, 2.5]})
    assert json_digest({"a": 1}) != json_digest({"a": 1.5}) != json_digest([])
