"""Every table of a run, worked out again from its Parquet rows by loops over them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.protocol.layouts import LAYOUTS

Run = tuple[Any, Path]


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return pd.read_parquet(folder / "traces" / name / "rows.parquet").to_dict("records")


def mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


@pytest.fixture(scope="module")
def by_hand(run: Run) -> dict[str, Any]:
    """Selection and validation rows by the paper's words, from files alone."""
    _, folder = run
    usable = [case.case_id for case in mt.CaseSet.load(folder / "usable.json")]
    order = usable.copy()
    random.Random(0).shuffle(order)
    discovery, validation = order[: len(order) // 2], order[len(order) // 2 :]
    layers: dict[int, dict[int, float]] = {}
    for row in rows_of(folder, "layers"):
        layers.setdefault(row["layer"], {})[row["case_id"]] = row["patched"] - row["noised"]
    layer = max(layers, key=lambda own: mean(layers[own][i] for i in discovery))
    found: dict[int, list[float]] = {}
    for row in rows_of(folder, "experts_discovery"):
        assert row["layer"] == layer
        if row["clean_active"]:
            found.setdefault(row["expert"], []).append(row["patched"] - row["noised"])
    recurrent = {e: own for e, own in found.items() if len(own) >= len(discovery) / 4}
    star = max(recurrent, key=lambda e: mean(recurrent[e]))
    held: dict[int, dict[int, float]] = {i: {} for i in validation}
    for row in rows_of(folder, "experts_validation"):
        if row["clean_active"]:
            held[row["case_id"]][row["expert"]] = row["rescue"]
    return {
        "discovery": discovery, "validation": validation, "layers": layers, "layer": layer, "star": star,
        "held": held, "recurrence": len(recurrent[star]),
    }  # fmt: skip


def test_tables_1_3_6_7(run: Run, by_hand: Any) -> None:
    report, _ = run
    star, layer, validation = by_hand["star"], by_hand["layer"], by_hand["validation"]
    assert (report.layer, str(report.star)) == (layer, f"L{layer:02d}E{star:03d}")
    one = report.tables["1"].iloc[0]
    rescue = [by_hand["layers"][layer][i] for i in validation]
    own = [by_hand["held"][i].get(star, 0.0) for i in validation]
    assert one.layer_rescue == pytest.approx(mean(rescue))
    assert one.expert_rescue == pytest.approx(mean(own))
    spec = []
    for row in report.specificity.rows.itertuples():
        active = by_hand["held"][row.case_id]
        assert len(row.controls) == min(3, len(set(active) - {star}))
        assert star not in row.controls
        spec.append(active.get(star, 0.0) - mean(active[e] for e in row.controls))
    assert one.spec == pytest.approx(mean(spec))
    assert one.layer_rescue_low < one.layer_rescue < one.layer_rescue_high
    three = report.tables["3"].iloc[0]
    assert three.discovery_active == by_hand["recurrence"]
    assert three.validation_active == sum(star in by_hand["held"][i] for i in validation)
    assert three.zero_rows == sum(value == 0 for value in own)
    means = sorted(
        ((mean(own[i] for i in validation), number) for number, own in by_hand["layers"].items()),
        reverse=True,
    )
    six = report.tables["6"].iloc[0]
    assert (six.top_layer, six.next_layer) == (f"L{means[0][1]}", f"L{means[1][1]}")
    assert six.gap == pytest.approx(means[0][0] - means[1][0])
    seven = report.tables["7"].set_index("quantity").value
    assert seven["Expert/layer"] == pytest.approx(mean(own) / mean(rescue))
    assert seven["Spec/layer"] == pytest.approx(mean(spec) / mean(rescue))


def test_tables_4_5_8(run: Run, by_hand: Any) -> None:
    report, folder = run
    relation = {case.case_id: case.relation_id for case in mt.CaseSet.load(folder / "usable.json")}
    counts = pd.Series(list(relation.values())).value_counts()
    told = dict(part.split(":") for part in report.tables["4"].relations.iloc[0].split(", "))
    assert {name: int(n) for name, n in told.items()} == counts.to_dict()
    five = report.tables["5"].set_index("relation")
    for name, row in five.iterrows():
        own = [
            by_hand["held"][i].get(by_hand["star"], 0.0) for i in by_hand["validation"] if relation[i] == name
        ]
        assert row.n == len(own)
        assert row.expert_rescue == pytest.approx(mean(own))
        assert row.positive_fraction == pytest.approx(mean(value > 0 for value in own))
    weighted = (five.specificity * five.n).sum() / five.n.sum()
    assert weighted == pytest.approx(report.tables["1"].spec.iloc[0])
    assert report.tables["8"].case_ids.tolist() == [
        ", ".join(map(str, by_hand[half])) for half in ("discovery", "validation")
    ]


def test_tables_9_10_13_16(run: Run, by_hand: Any) -> None:
    report, folder = run
    star, held = by_hand["star"], by_hand["held"]
    active = [i for i in by_hand["validation"] if star in held[i] and len(held[i]) > 1]
    matched = pd.DataFrame(rows_of(folder, "matched")).groupby(["role", "scaling"]).rescue.mean()
    nine = report.tables["9"].set_index("quantity")
    assert nine.raw["Selected rescue"] == pytest.approx(mean(held[i][star] for i in active), abs=1e-5)
    for scaling in ("raw", "equal_norm"):
        gap = matched["selected", scaling] - matched["matched", scaling]
        assert nine[scaling]["Specificity"] == pytest.approx(gap)
    ranks = [1 + sum(v >= held[i][star] for e, v in held[i].items() if e != star) for i in active]
    ten = report.tables["10"].set_index("metric").value
    assert ten["Ranked validation cases"] == len(active)
    assert ten["Top-2 among active experts"] == sum(rank <= 2 for rank in ranks)
    assert ten["Mean rank"] == pytest.approx(mean(ranks))
    others = [held[i][star] - mean(v for e, v in held[i].items() if e != star) for i in active]
    assert ten["Selected minus all-other active"] == pytest.approx(mean(others))
    thirteen = report.tables["13"].set_index("sigma")
    one = report.tables["1"].iloc[0]
    assert thirteen.rescue[3.0] == pytest.approx(one.expert_rescue, abs=1e-5)
    rows = pd.DataFrame(rows_of(folder, "scales")).query("patch == 'expert'")
    for sigma, own in rows.groupby("scale"):
        assert thirteen["drop"][sigma] == pytest.approx((own.clean - own.noised).mean())
        assert thirteen.rescue[sigma] == pytest.approx((own.patched - own.noised).mean())
    sixteen = report.tables["16"]
    rows = pd.DataFrame(rows_of(folder, "coalitions")).groupby("coalition").rescue
    assert sixteen.rescue.tolist() == pytest.approx([rows.mean()["clean"], rows.mean()["union"]])
    # This model's block is its experts' sum alone, so the union is the whole block's patch.
    assert sixteen.rescue[1] == pytest.approx(one.layer_rescue, abs=1e-4)


def test_tables_12_14_15(run: Run, by_hand: Any, demo: Any) -> None:
    report, folder = run
    twelve = report.tables["12"].set_index("metric").value
    assert twelve["Held-out cases"] == 40
    held = report.held_out.rows
    everything = pd.concat(
        pd.DataFrame(rows_of(folder, f"experts_{half}")) for half in ("discovery", "validation")
    )
    active = everything[everything.clean_active].set_index(["case_id", "expert"]).rescue.to_dict()
    own = [active.get((row.case_id, mt.Expert.of(row.star).expert), 0.0) for row in held.itertuples()]
    assert twelve["Rescue"] == pytest.approx(mean(own))
    relaxed = mt.CaseSet.load(folder / "relaxed.json")
    half = relaxed[26:]
    strict = {case.case_id for case in mt.CaseSet.load(folder / "usable.json")}
    fifteen = report.tables["15"]
    assert fifteen.n_layer.tolist() == [26, sum(case.case_id not in strict for case in half)]
    alone = mt.trace_layers(demo[0], half)
    best = mt.trace_layers(demo[0], relaxed[:26]).best
    assert report.tables["14"].layer.iloc[0] == f"L{best}"
    expected = alone.effects[:, alone.layers.index(best)]
    assert fifteen.layer_rescue[0] == pytest.approx(expected.mean(), abs=1e-4)
    new = [case.case_id not in strict for case in half]
    assert fifteen.layer_rescue[1] == pytest.approx(expected[np.array(new)].mean(), abs=1e-4)
    assert f"{26 - sum(new)} of 26" in report.notes["15"]


def test_every_table_has_the_papers_columns_and_both_forms(run: Run) -> None:
    report, folder = run
    assert list(report.tables) == [str(number) for number in range(1, 17)] == list(LAYOUTS)
    for number, table in report.tables.items():
        latex, markdown = report.latex(number), report.markdown(int(number))
        assert (folder / "tables" / f"{number}.tex").read_text() == latex
        assert (folder / "tables" / f"{number}.md").read_text() == markdown
        if number == "11":  # of top-2 models
            assert table.empty
            assert "router takes 4" in table.attrs["note"]
            assert "router takes 4" in markdown
            continue
        assert len(table)
        assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
        assert markdown.count("\n|") == len(table) + 2
        widths = {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")}
        assert widths == {len(LAYOUTS[number].columns) - 1}
    one = report.tables["1"].iloc[0]
    cell = f"{one.spec:+.3f} [{one.spec_low:+.3f}, {one.spec_high:+.3f}]"
    assert cell in report.markdown(1)
    for bad in (0, 17, "x", None, 1.0, True):
        with pytest.raises(mt.errors.ArgumentError, match="number is"):
            report.latex(bad)


def test_text_from_data_is_escaped() -> None:
    layout = LAYOUTS["4"]
    table = pd.DataFrame({"model": [r"a_b & \c|"], "relations": ["<script>:3, 50%"]})
    assert (
        r"a\_b \& \textbackslash{}c\textbar{} & \textless{}script\textgreater{}:3, 50\% \\"
        in layout.latex(table)
    )
    assert r"| a_b &amp; \\c\| | &lt;script&gt;:3, 50% |" in layout.markdown(table)
