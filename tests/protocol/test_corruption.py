"""The protocol with another corruption than noise: every stage uses it, the record says it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import RunFolderError
from tests.protocol.conftest import SMALL

SHORT: dict[str, Any] = {**SMALL, "n": 12, "relaxed": False, "min_active": 0.1, "margin": 0.2, "drop": 0.05}
CORRUPTIONS = {
    "mean": lambda cases: mt.MeanEmbedding(),
    "zero": lambda cases: mt.ZeroEmbedding(),
    "uniform": lambda cases: mt.UniformNoise(3.0),
    "swap": lambda cases: mt.SwapSubject(cases),
}


def ran(demo: Any, records: Any, **changed: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mt.errors.MoetraceWarning)
        return mt.run_protocol(*demo, records, "quick", progress=False, **{**SHORT, **changed})


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_stage_uses_it(demo: Any, records: Any, tmp_path: Path, name: str) -> None:
    report = ran(demo, records, corruption=name, out=tmp_path / "run")
    cases = mt.make_cases(records, demo[1])
    own = CORRUPTIONS[name](cases)
    for trace in report.traces.values():
        assert "noise" not in trace.provenance
        assert trace.provenance["corruption"]["name"] == own.facts()["corruption"]["name"]
    usable = mt.select_cases(demo[0], cases, 12, 0.2, 0.05, corruption=own, progress=False)
    assert [case.case_id for case in usable] == [case.case_id for case in report.cases["usable"]]
    assert usable.dropped == report.cases["usable"].dropped
    layers = mt.trace_layers(demo[0], report.cases["discovery"], corruption=own, progress=False)
    np.testing.assert_allclose(report.traces["layers"].effects, layers.effects, atol=1e-4)
    assert report.layer == layers.best
    if report.star is not None:
        matched = mt.trace_matched(
            demo[0], report.cases["validation"], report.star, corruption=own, progress=False
        )
        np.testing.assert_allclose(report.traces["matched"].effects, matched.effects, atol=1e-4)
        assert not len(report.tables["13"])
        assert f"corruption is '{name}'" in report.tables["13"].attrs["note"]
    table = report.tables["2"].set_index("item").setting
    assert "Subject noise" not in table
    words = {
        "mean": "mean embedding",
        "zero": "Zero",
        "uniform": "One uniform draw",
        "swap": "Another subject",
    }
    assert words[name] in table["Corruption"]
    assert report.compare("qwen3-30b-a3b").model == f"demo, corruption {name!r}"
    again = mt.load(tmp_path / "run")
    assert again.settings.corruption == name
    pd.testing.assert_frame_equal(again.tables["2"], report.tables["2"])
    with pytest.raises(RunFolderError, match=r"settings\.corruption"):
        ran(demo, records, corruption=None, out=tmp_path / "run")


def halved(case: Any, rows: Any) -> Any:
    return rows * 0.1


def test_a_function_and_what_is_kept_of_it(demo: Any, records: Any, tmp_path: Path) -> None:
    report = ran(demo, records, corruption=halved, out=tmp_path / "run", n=8)
    assert "halved" in report.tables["2"].set_index("item").setting["Corruption"]
    assert report.traces["layers"].provenance["corruption"]["name"] == "halved"
    again = ran(demo, records, corruption=halved, out=tmp_path / "run", n=8)
    pd.testing.assert_frame_equal(again.tables["1"], report.tables["1"])
    with pytest.raises(RunFolderError, match=r"corruption\.code"):
        ran(demo, records, corruption=lambda case, rows: rows * 0, out=tmp_path / "run", n=8)


def test_noise_is_as_it_was(run: Any) -> None:
    """The record of a run with the paper's noise has no word of corruptions: older ones go on."""
    _, out = run
    config = (out / "config.json").read_text(encoding="utf-8")
    assert "corruption" not in config


def test_swaps_find_partners_within_the_records(demo: Any, records: Any) -> None:
    report = ran(demo, records, corruption="swap", noise_seed=3, n=8)
    swap = mt.SwapSubject(mt.make_cases(records, demo[1]), seed=3)
    found = mt.trace_layers(demo[0], report.cases["discovery"], corruption=swap, progress=False)
    np.testing.assert_allclose(report.traces["layers"].cases.noised, found.cases.noised, atol=1e-4)
    dropped = swap.usable(mt.make_cases(records, demo[1])).dropped["no_swap_partner"]
    assert report.cases["usable"].dropped["no_swap_partner"] == dropped
