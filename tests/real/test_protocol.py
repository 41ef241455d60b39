"""The whole protocol on a small real model with CounterFact: ten figures by hand from the Parquet rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt


@pytest.fixture(scope="module")
def finished(shared: Path, tmp_path_factory: Any) -> tuple[Any, Path]:
    folder = shared / "models" / "factmoe"
    model, tokenizer = mt.load_model(str(folder), dtype="float32")
    known = set(json.loads((folder / "known_case_ids.json").read_text()))
    records = [r for r in mt.load_records(shared / "data" / "counterfact.json") if r.case_id in known]
    out = tmp_path_factory.mktemp("factmoe") / "run"
    options: dict[str, Any] = {"n": 128, "relaxed_n": 160, "min_active": 0.25, "n_resamples": 1000}
    mt.run_protocol(model, tokenizer, records, out=out, **options)
    return mt.load(out), out


def test_ten_figures_by_hand(finished: Any) -> None:
    report, out = finished

    def rows(name: str) -> pd.DataFrame:
        return pd.read_parquet(out / "traces" / name / "rows.parquet")

    discovery, validation = (set(map(int, ids.split(", "))) for ids in report.tables["8"].case_ids)
    assert len(discovery) == len(validation) == 64
    layers = rows("layers")
    swept = layers[layers.case_id.isin(discovery)].groupby("layer").rescue.mean()
    one = report.tables["1"].iloc[0]
    assert one.layer == f"L{swept.idxmax()}"  # 1
    held = layers[layers.case_id.isin(validation)].groupby("layer").rescue.mean()
    assert one.layer_rescue == pytest.approx(held[swept.idxmax()])  # 2
    top, following = held.nlargest(2)
    assert report.tables["6"].gap[0] == pytest.approx(top - following)  # 3
    chosen = rows("experts_discovery").query("clean_active").groupby("expert").rescue.agg(["mean", "size"])
    star = chosen[chosen["size"] >= 16]["mean"].idxmax()
    assert one.expert == f"L{swept.idxmax():02d}E{star:03d}"  # 4
    assert report.tables["3"].discovery_active[0] == chosen["size"][star]  # 5
    experts = rows("experts_validation")
    own = experts[experts.expert == star].set_index("case_id")
    rescue = own.rescue.where(own.clean_active, 0.0)
    assert one.expert_rescue == pytest.approx(rescue.mean())  # 6
    assert report.tables["3"].zero_rows[0] == (rescue == 0).sum()  # 7
    share = report.tables["7"].set_index("quantity").value["Expert/layer"]
    assert share == pytest.approx(rescue.mean() / held[swept.idxmax()])  # 8
    active = experts[experts.clean_active]
    place = active.groupby("case_id").rescue.rank(ascending=False, method="max")
    ranked = place[active.expert == star]
    assert report.tables["10"].set_index("metric").value["Mean rank"] == pytest.approx(ranked.mean())  # 9
    union = rows("coalitions").query("coalition == 'union'").rescue
    sixteen = report.tables["16"].set_index("patch").loc["Routing-union coalition"]
    assert sixteen.rescue == pytest.approx(union.mean())  # 10
    assert sixteen.positive_fraction == pytest.approx((union > 0).mean())


def test_an_interval_is_numpys_bootstrap(finished: Any) -> None:
    report, _ = finished
    values = report.layer_rescue
    draws = np.random.default_rng(0).choice(values, (20_000, len(values))).mean(axis=1)
    one = report.tables["1"].iloc[0]
    expected = np.quantile(draws, [0.025, 0.975])
    assert [one.layer_rescue_low, one.layer_rescue_high] == pytest.approx(expected, abs=0.15)


def test_scales_agree_with_the_main_trace(finished: Any) -> None:
    report, _ = finished
    rescue = report.tables["13"].set_index("sigma").rescue
    assert rescue[3.0] == pytest.approx(report.tables["1"].expert_rescue[0], abs=1e-4)
