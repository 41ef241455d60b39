"""Run folders: a part is used only where it is what this very run wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError, RunFolderError
from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


@pytest.fixture(scope="module")
def cases() -> Any:
    return make_cases(4)


@pytest.fixture
def run(model: Any, cases: Any, tmp_path: Path) -> Callable[[], Any]:
    def call(name: str = "run", **options: Any) -> Any:
        return mt.trace_experts(model, cases, layer=1, batch_tokens=1, out=tmp_path / name, **options)

    call()
    return call


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").glob("*.parquet"))


def edit(path: Path, column: str, change: Callable[[Any], Any], keep_seal: bool = True) -> None:
    table = pq.read_table(path)
    values = [change(value) for value in table[column].to_pylist()]
    edited = pa.array(values, table.schema.field(column).type)
    table = table.set_column(table.column_names.index(column), table.schema.field(column), edited)
    pq.write_table(table if keep_seal else table.replace_schema_metadata(None), path)


def test_the_same_call_goes_on_and_the_folder_holds_the_result(run: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    again = run(progress=lambda done, _: seen.append(done))
    assert seen == [4]
    np.testing.assert_array_equal(mt.load(tmp_path / "run").effects, again.effects)
    again.save(tmp_path / "run")
    np.testing.assert_array_equal(run().effects, again.effects)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "call.json", "cases.parquet", "failed.parquet", "meta.json", "parts", "rows.parquet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("clean", lambda value: value + 1),
        ("noised", lambda value: [number + 1 for number in value]),
        ("patched", lambda value: [number + 1e-12 for number in value]),
        ("routing.1.0.patched", lambda value: [0.0] * len(value)),
        ("case_id", lambda value: value + 1),
    ],
)
def test_an_edited_part_is_refused_by_name(run: Any, tmp_path: Path, column: str, change: Any) -> None:
    part = parts(tmp_path / "run")[1]
    edit(part, column, change)
    with pytest.raises(
        RunFolderError, match=rf"{part.name} can't be used: .*'{column}' holds other.*remove it"
    ):
        run()
    part.unlink()
    assert len(run()) == 4


def test_a_part_written_by_something_else_is_refused(run: Any, tmp_path: Path) -> None:
    part = parts(tmp_path / "run")[0]
    edit(part, "clean", lambda value: value, keep_seal=False)
    with pytest.raises(RunFolderError, match=rf"{part.name} can't be used: it has no digests"):
        run()
    pd.DataFrame({"case_id": [1]}).to_parquet(part)
    with pytest.raises(RunFolderError, match=rf"{part.name} can't be used: it has no digests"):
        run()
    part.write_bytes(b"PAR1 and no more")
    with pytest.raises(RunFolderError, match=rf"{part.name} can't be used: it can't be read"):
        run()


def test_a_part_of_another_run_is_refused(run: Any, tmp_path: Path) -> None:
    run("other", noise=mt.SubjectNoise(seed=1))
    mine, other = parts(tmp_path / "run"), parts(tmp_path / "other")
    assert [part.name for part in mine] == [part.name for part in other]
    shutil.copy(other[2], mine[2])
    with pytest.raises(RunFolderError, match=rf"{mine[2].name} can't be used: it belongs to another run"):
        run()


def test_a_case_that_comes_twice_is_refused(run: Any, tmp_path: Path) -> None:
    first = parts(tmp_path / "run")[0]
    case_id = pq.read_table(first)["case_id"][0].as_py()
    shutil.copy(first, first.with_name("zz.parquet"))
    with pytest.raises(RunFolderError, match=rf"zz\.parquet .*case {case_id} is also in {first.name}"):
        run()


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_damaged_call_is_refused(run: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "run" / "call.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"call\.json .*remove the folder to begin anew"):
        run()


def test_an_edited_call_is_another_call(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "call.json"
    call = json.loads(path.read_text())
    for change, name in (({"extra": 1}, "extra"), ({"position": 0}, "position")):
        path.write_text(json.dumps(call | change))
        with pytest.raises(RunFolderError, match=rf"another call \(different: {name}\)"):
            run()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"noise": 2.0}, "noise"),
        ({"corruption": mt.ZeroEmbedding()}, "corruption"),
        ({"metric": ["logit_diff", "prob"]}, "metric"),
        ({"position": 0}, "position"),
        ({"mode": "noise"}, "mode"),
        ({"union": True}, "union"),
        ({"layer": 2}, "the layers or experts that are patched"),
        ({"mode": "noise", "readout": "model"}, "mode, readout"),
    ],
)
def test_another_call_s_arguments_are_named(
    run: Any, model: Any, cases: Any, tmp_path: Path, options: dict[str, Any], names: str
) -> None:
    with pytest.raises(RunFolderError, match=rf"another call \(different: {names}\)"):
        mt.trace_experts(model, cases, **{"layer": 1, "out": tmp_path / "run", **options})


def test_another_kind_of_trace_and_another_ablation_are_named(
    run: Any, model: Any, cases: Any, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"\(different: the kind of trace\)"):
        mt.trace_layers(model, cases, out=tmp_path / "run")
    mt.trace_knockout(model, cases, layers=1, out=tmp_path / "knock")
    with pytest.raises(RunFolderError, match=r"\(different: ablation\)"):
        mt.trace_knockout(model, cases, layers=1, ablation="reroute", out=tmp_path / "knock")


def test_a_run_of_an_older_format_is_refused(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "call.json"
    call = json.loads(path.read_text())
    del call["format"]
    path.write_text(json.dumps(call))
    with pytest.raises(RunFolderError, match=r"call\.json: format is None; .* reads 4: .*remove this one"):
        run()


def test_only_a_run_s_own_result_is_saved_into_its_folder(
    run: Any, model: Any, cases: Any, tmp_path: Path
) -> None:
    before = mt.load(tmp_path / "run").effects
    other = mt.trace_experts(model, cases, layer=1, noise=mt.SubjectNoise(seed=7))
    with pytest.raises(RunFolderError, match=r"a run of another call \(different: noise\)"):
        other.save(tmp_path / "run")
    elsewhere = mt.trace_experts(make_model("qwen3_moe", seed=1), cases, layer=1)
    with pytest.raises(RunFolderError, match=r"a run of another call \(different: model\)"):
        elsewhere.save(tmp_path / "run")
    np.testing.assert_array_equal(mt.load(tmp_path / "run").effects, before)


def test_what_a_kill_leaves_behind_is_no_hindrance(model: Any, cases: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".call.json.77.part").write_text("{")
    assert len(mt.trace_layers(model, cases, out=folder, layers=[1])) == 4


def test_out_is_a_folder_of_this_kind_of_run(model: Any, cases: Any, tmp_path: Path) -> None:
    for bad in ("", " ", 3, "a\0b"):
        with pytest.raises(ArgumentError, match="out is"):
            mt.trace_layers(model, cases, layers=[1], out=bad)
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="file"):
            mt.trace_layers(model, cases, layers=[1], out=place)
    mt.trace_layers(model, cases, layers=[1]).save(tmp_path / "result")
    with pytest.raises(RunFolderError, match=r"isn't empty and holds no call\.json"):
        mt.trace_layers(model, cases, layers=[1], out=tmp_path / "result")
