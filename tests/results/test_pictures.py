"""What pictures draw is what tables hold: curves, maps, strips, pairs, bars and counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.results.layers import LayerTrace
from moetrace.results.pictures import axes
from moetrace.stats import sign_flip
from tests.results.expert_traces import NO_FAILURES, case_table, random_trace
from tests.results.test_labels import HOSTILE, coalitions, layers, legend, matched, scales, specificity

mpl.use("Agg")
QUICK: dict[str, Any] = {"n_resamples": 50, "n_flips": 300}
pytestmark = pytest.mark.filterwarnings("ignore::moetrace.results.controls.FewControlsWarning")


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def all_subsets(n: int = 24, k: int = 3) -> Any:
    """Rescue of all subsets of k experts, routed at random among five."""
    rng = np.random.default_rng(0)
    masks = list(range(1, 2**k))
    names = [f"slots {'+'.join(str(i) for i in range(k) if mask >> i & 1)}" for mask in masks]
    trace = coalitions(tuple(names), n=n, masks=masks, players=k)
    cases = trace.cases.assign(
        experts=[rng.permutation(5)[:k].tolist() for _ in range(n)], valid=[[True] * k for _ in range(n)]
    )
    kind = type(trace)
    return kind(cases, trace.sites, trace.effects, trace.effects, NO_FAILURES, trace.provenance)


def lines(ax: Any) -> dict[str, np.ndarray]:
    """Label -> what a line holds, (points, 2)."""
    return {str(line.get_label()): np.column_stack(line.get_data()) for line in ax.lines}


def cells(ax: Any) -> np.ndarray:
    """Values of a heat map, NaN where it is empty."""
    mesh = ax.collections[0]
    values = np.ma.masked_invalid(np.asarray(mesh.get_array()))
    return np.ma.filled(values, np.nan)


def dots(ax: Any, label: str) -> set[tuple[int, int]]:
    """(row, column) of the marked cells."""
    return {(int(y), int(x)) for x, y in lines(ax).get(label, [])}


def columns_of(trace: Any, found: pd.DataFrame) -> list[int]:
    """Columns of a trace's experts in a table."""
    sites = list(trace.sites.itertuples(index=False, name=None))
    return [sites.index(pair) for pair in zip(found.layer, found.expert, strict=True)]


def figures_fit(ax: Any) -> None:
    """Nothing drawn is cut off, and no two texts of the axes stand on one another."""
    figure = ax.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    whole = figure.bbox.padded(1)
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label]
    for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text() and text.get_visible()]
    if ax.get_legend() is not None:
        boxes.append(ax.get_legend().get_window_extent(renderer))
    for place, box in enumerate(boxes):
        assert whole.x0 <= box.x0, texts[place] if place < len(texts) else "legend"
        assert box.x1 <= whole.x1, texts[place] if place < len(texts) else "legend"
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
        for other in boxes[:place]:
            overlap = mpl.transforms.Bbox.intersection(box.padded(-1), other.padded(-1))
            assert overlap is None or overlap.width <= 0 or overlap.height <= 0


PICTURES: list[Callable[[], Any]] = [
    lambda: layers(n=30).plot(**QUICK),
    lambda: layers(n=30).plot(kind="cases", **QUICK),
    lambda: layers(n=30).plot(kind="heatmap", **QUICK),
    lambda: random_trace(1, n=30).plot(**QUICK),
    lambda: random_trace(1, n=30, layers=tuple(range(30)), experts=40).plot(kind="heatmap", **QUICK),
    lambda: random_trace(1, n=30).plot(kind="cases", **QUICK),
    lambda: random_trace(1, n=30).plot(by="relation_id", **QUICK),
    lambda: matched(n=30).plot(**QUICK),
    lambda: matched(n=30).plot(kind="means", **QUICK),
    lambda: scales(n=30).plot(**QUICK),
    lambda: scales(n=30).plot(kind="cases", **QUICK),
    lambda: all_subsets().plot(**QUICK),
    lambda: all_subsets().plot(kind="sizes", **QUICK),
    lambda: all_subsets().plot(kind="shapley", **QUICK),
    lambda: all_subsets().plot(kind="slots", **QUICK),
    lambda: all_subsets().plot(kind="cases", **QUICK),
    lambda: specificity().plot(**QUICK),
    lambda: specificity().plot(kind="cases", **QUICK),
    lambda: random_trace(3, n=20).ranks("L03E000").plot(),
    lambda: random_trace(3, n=20).stability(seeds=range(3), controls=1).plot(),
]


@pytest.mark.parametrize("draw", PICTURES)
def test_nothing_is_cut_off_and_no_labels_overlap(draw: Callable[[], Any]) -> None:
    figures_fit(draw())


def test_the_floor_has_its_legend() -> None:
    assert "numerical floor, ±1.0e-06 logits" in legend(layers().plot(**QUICK))
    assert not any("floor" in label for label in legend(specificity().plot(**QUICK)))


def test_panels_by_relation_are_the_summaries_by_relation() -> None:
    trace = layers(n=30)
    first = trace.plot(by="relation_id", limit=3, **QUICK)
    panels = [ax for ax in first.figure.axes if ax.get_visible()]
    counts = trace.cases.relation_id.value_counts()
    expected = sorted(counts.index, key=lambda name: (-counts[name], name))[:3]
    assert [ax.get_title() for ax in panels] == [f"{name} ({counts[name]} cases)" for name in expected]
    table = trace.summary(by="relation_id", **QUICK).sort_values("layer")
    whole = trace.summary(**QUICK).sort_values("layer")
    for ax, name in zip(panels, expected, strict=True):
        own = table[table.relation_id == name]
        np.testing.assert_allclose(lines(ax)["mean of the relation"], own[["layer", "mean"]])
        np.testing.assert_allclose(lines(ax)["mean of all cases"], whole[["layer", "mean"]])
    assert "the largest 3 of 4 relations" in first.figure.get_suptitle()
    for options in ({"ax": first}, {"kind": "cases"}):
        with pytest.raises(ArgumentError, match="several panels"):
            trace.plot(by="relation_id", **options)


def test_a_map_by_relation_holds_means_and_marks_of_the_table() -> None:
    rng = np.random.default_rng(5)
    cases = case_table(60, rng, 3)
    effects = rng.normal(0, 1, (60, 4)) + np.array([3, 0, 0, 0.4])
    sites = pd.DataFrame({"layer": [7, 2, 5, 3]})
    trace = LayerTrace(cases, sites, effects, effects, NO_FAILURES, {"self_check": 0.0})
    ax = trace.plot(kind="heatmap", **QUICK)
    table = trace.summary(by="relation_id", correction="max_t", **QUICK)
    counts = cases.relation_id.value_counts()
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    wide = table.pivot(index="relation_id", columns="layer", values="mean").loc[order, [2, 3, 5, 7]]
    np.testing.assert_allclose(cells(ax), wide)
    p = table.pivot(index="relation_id", columns="layer", values="p_adjusted").loc[order, [2, 3, 5, 7]]
    marked = {(int(row), int(column)) for row, column in np.argwhere(p.to_numpy() < 0.05)}
    assert 0 < len(marked) < p.size
    assert dots(ax, "sign-flip p < 0.05, max-T over 4 layers within a relation") == marked
    assert [text.get_text() for text in ax.get_yticklabels()] == [
        f"{name} ({counts[name]})" for name in order
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "3", "5", "7"]
    assert ax.yaxis_inverted()


def test_the_map_of_experts_holds_means_and_what_survives_among_all() -> None:
    trace = random_trace(2, n=60, layers=(3, 5, 8), experts=6)
    trace = type(trace)(trace.cases, trace.sites, _stronger(trace, 7), trace.failed, trace.provenance)
    ax = trace.plot(kind="heatmap", **QUICK)
    ever = trace.arrays.clean_active.any(axis=0)
    means = np.where(ever, trace.effects.mean(axis=0), np.nan).reshape(3, 6)
    np.testing.assert_allclose(cells(ax), means)
    p = np.ones(18)
    p[ever] = sign_flip(trace.effects[:, ever], n_flips=300, correction="max_t").p_adjusted
    survivors = {(int(at) // 6, int(at) % 6) for at in np.flatnonzero(p < 0.05)}
    assert (1, 1) in survivors
    assert len(survivors) < 18
    assert dots(ax, f"sign-flip p < 0.05, max-T over {ever.sum()} experts") == survivors
    assert any(label.startswith("highest means: L05E001") for label in legend(ax))
    assert not ax.yaxis_inverted()
    one = trace.plot(kind="heatmap", layer=5, **QUICK)
    np.testing.assert_allclose(cells(one), means[1:2])


def _stronger(trace: Any, column: int) -> Any:
    """The trace's arrays with one expert that nearly always carries the fact."""
    arrays = trace.arrays
    rescue, active = arrays.rescue.copy(), arrays.clean_active.copy()
    active[:, column] = True
    rescue[:, column] = 2 + 0.1 * np.arange(len(rescue))
    return dataclasses.replace(arrays, rescue=rescue, clean_active=active)


def test_a_map_says_where_no_expert_survives() -> None:
    trace = random_trace(2, n=4)
    found = len(trace.candidates())
    assert f"none at sign-flip p < 0.05, max-T over {found} experts" in legend(
        trace.plot(kind="heatmap", **QUICK)
    )


def test_stars_of_the_best_experts_account_for_all_that_they_were_chosen_from() -> None:
    trace = random_trace(4, n=40, layers=(1, 2, 3, 4), experts=8)
    ax = trace.plot(limit=5, **QUICK)
    found = trace.candidates(mean="all")
    columns = columns_of(trace, found)
    p = sign_flip(trace.effects[:, columns], n_flips=300, correction="max_t").p_adjusted
    label = f"sign-flip p < 0.05, max-T over {len(found)} experts"
    expected = np.flatnonzero(p[:5] < 0.05)
    shown = lines(ax)[label if len(expected) else f"none at {label}"]
    assert shown[:, 0].tolist() == expected.tolist()
    uncorrected = trace.plot(limit=5, correction=None, **QUICK)
    label = f"sign-flip p < 0.05, uncorrected for {len(found)} experts"
    plain = sign_flip(trace.effects[:, columns], n_flips=300).p_value[:5]
    assert lines(uncorrected)[label][:, 0].tolist() == np.flatnonzero(plain < 0.05).tolist()
    assert len(np.flatnonzero(plain < 0.05)) > len(expected)


def test_the_map_by_relation_leaves_inactive_experts_empty() -> None:
    trace = random_trace(6, n=20, relations=4)
    found = trace.candidates(mean="all").head(5)
    ax = trace.plot(by="relation_id", limit=5, **QUICK)
    relation = trace.cases.relation_id
    counts = relation.value_counts()
    order = sorted(counts.index, key=lambda name: (-counts[name], name))
    columns = columns_of(trace, found)
    expected = np.array(
        [
            [
                trace.effects[relation == name, at].mean()
                if trace.arrays.clean_active[relation == name, at].any()
                else np.nan
                for at in columns
            ]
            for name in order
        ]
    )
    np.testing.assert_allclose(cells(ax), expected)


def test_every_case_is_a_dot_at_its_own_rescue() -> None:
    trace = layers(n=30)
    ax = trace.plot(kind="cases", **QUICK)
    found = lines(ax)["one case"]
    order = np.argsort(trace.layers)
    assert len(found) == trace.effects.size
    for place, column in enumerate(order):
        own = found[np.round(found[:, 0]) == place, 1]
        np.testing.assert_allclose(np.sort(own), np.sort(trace.effects[:, column]))
    np.testing.assert_allclose(lines(ax)["mean"][:, 1], trace.effects.mean(axis=0)[order])
    experts = random_trace(1, n=30)
    shown = lines(experts.plot(kind="cases", limit=3, **QUICK))
    columns = columns_of(experts, experts.candidates(mean="all").head(3))
    active = experts.arrays.clean_active[:, columns]
    assert len(shown["one case"]) == active.sum()
    assert len(shown["not clean-active"]) == (~active).sum()
    assert not shown["not clean-active"][:, 1].any()


def test_pairs_join_the_two_values_of_each_case() -> None:
    trace = matched(n=20)
    ax = trace.plot(**QUICK)
    found = [np.column_stack(line.get_data()) for line in ax.lines if line.get_zorder() == axes.FAINT]
    joined = {(round(a, 9), round(b, 9), line[0, 0]) for line in found if len(line) for a, b in [line[:, 1]]}
    expected = {
        (round(a, 9), round(b, 9), left)
        for left, (one, other) in ((0.0, (0, 1)), (2.4, (2, 3)))
        for a, b in zip(trace.effects[:, one], trace.effects[:, other], strict=True)
    }
    assert joined == expected
    for line in ax.lines:
        points = np.column_stack(line.get_data())
        if line.get_zorder() == axes.FAINT and len(points):
            assert line.get_color() == (axes.BLUE if points[0, 1] > points[1, 1] else axes.RED)
    table = trace.table(**QUICK)
    texts = " ".join(text.get_text() for text in ax.texts)
    for row in table[table.quantity == "specificity"].itertuples():
        assert (
            f"difference {row.mean:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}], p = {row.p_value:.2g}"
            in texts
        )
    assert "sign-flip p: uncorrected for 6 rows" in legend(ax)
    assert "sign-flip p: Holm over 6 rows" in legend(trace.plot(correction="holm", **QUICK))


def test_equal_values_are_neither_ahead() -> None:
    trace = random_trace(3, n=20).specificity("L03E000", controls=1)
    ties = trace.rows.star_rescue == trace.rows.control_rescue
    assert ties.any()
    ax = trace.plot(kind="cases", **QUICK)
    assert "equal" in legend(ax)
    grey = [line for line in ax.lines if line.get_color() == axes.PALE and len(line.get_xdata())]
    assert len(grey) == ties.sum()


def test_bars_are_the_means_and_their_stars_the_test() -> None:
    trace = all_subsets()
    ax = trace.plot(**QUICK)
    table = trace.summary(correction="max_t", **QUICK)
    order = sorted(range(7), key=lambda at: ((at + 1).bit_count(), at + 1))
    assert [text.get_text() for text in ax.get_yticklabels()] == table.coalition.iloc[order].tolist()
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches[:7]], table["mean"].iloc[order])
    below = np.flatnonzero(table.p_adjusted.iloc[order] < 0.05)
    shown = lines(ax)["sign-flip p < 0.05, max-T over 7 coalitions"]
    assert shown[:, 1].tolist() == below.tolist()
    few = trace.plot(limit=2, **QUICK)
    best = np.argsort(-table["mean"].to_numpy())[:2]
    assert {text.get_text() for text in few.get_yticklabels()} == set(table.coalition.iloc[best])
    assert "best 2 of 7" in few.get_title()
    assert "max-T over 7 coalitions" in " ".join(legend(few))


def test_shapley_means_by_expert_add_up_to_the_grand_coalition() -> None:
    trace = all_subsets()
    table = trace.shapley_summary(**QUICK)
    assert table["mean"].sum() == pytest.approx(trace.effects[:, -1].mean())
    assert table["mean"].is_monotonic_decreasing
    values = trace.shapley()
    for row in table.itertuples():
        own = values[values.expert == row.expert]
        assert row.cases == len(own)
        assert row.mean == pytest.approx(own.shapley.sum() / len(trace))
    slots = trace.shapley_summary(by="slot", **QUICK)
    assert slots.slot.tolist() == [0, 1, 2]
    np.testing.assert_allclose(slots["mean"], values.groupby("slot").shapley.mean())
    few = trace.shapley_summary(limit=2, correction="max_t", **QUICK)
    every = trace.shapley_summary(correction="max_t", **QUICK)
    pd.testing.assert_frame_equal(few, every.head(2))


def test_shapley_bars_are_their_summary() -> None:
    trace = all_subsets()
    table = trace.shapley_summary(**QUICK)
    ax = trace.plot(kind="shapley", **QUICK)
    names = [f"L02E{row.expert:03d} ({row.cases} cases)" for row in table.itertuples()]
    assert [text.get_text() for text in ax.get_yticklabels()] == names
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches[: len(table)]], table["mean"])
    ax = trace.plot(kind="slots", **QUICK)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["slot 0", "slot 1", "slot 2"]
    with pytest.raises(ArgumentError, match="kind is 'sizes', and these coalitions are named sets"):
        coalitions().plot(kind="sizes")


def test_case_lines_are_the_experts_rescues() -> None:
    trace = scales(n=20)
    ax = trace.plot(kind="cases", **QUICK)
    thin = np.array([line.get_ydata() for line in ax.lines if line.get_zorder() == axes.FAINT])
    np.testing.assert_allclose(thin, trace.effects[:, :2])
    np.testing.assert_allclose(lines(ax)["mean"][:, 1], trace.effects[:, :2].mean(axis=0))


def test_ranks_stand_beside_what_chance_would_give() -> None:
    found = random_trace(3, n=20).ranks("L03E000")
    expected = lines(found.plot())["if every rank were as likely"]
    by_hand = [sum(1 / m for m in found.rows.active if m >= place) for place in range(1, len(expected) + 1)]
    np.testing.assert_allclose(expected[:, 1], by_hand)
    assert expected[:, 1].sum() == pytest.approx(found.n_ranked)


@pytest.mark.parametrize("kind", ["curve", "cases", "heatmap"])
def test_hostile_relations_are_plain_text_in_every_kind(kind: str) -> None:
    layers(n=12, relation=HOSTILE).plot(kind=kind, **QUICK).figure.savefig("/dev/null", format="png")
    layers(n=12, relation=HOSTILE).plot(by="relation_id", **QUICK).figure.savefig("/dev/null", format="png")


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    for result in (layers(), random_trace(1), matched(), scales(), coalitions(), specificity()):
        with pytest.raises(ArgumentError, match="kind is 'hetmap'"):
            result.plot(kind="hetmap")


def test_axes_of_the_user_keep_their_legend_inside() -> None:
    figure, own = plt.subplots()
    layers().plot(ax=own, **QUICK)
    figure.canvas.draw()
    inside = own.get_window_extent().padded(1)
    box = own.get_legend().get_window_extent()
    assert inside.y0 <= box.y0
    assert box.y1 <= inside.y1


def test_tables_of_many_rows_are_shortened_to_the_highest_and_say_so() -> None:
    rng = np.random.default_rng(0)
    cases, effects = case_table(30, rng, 3), rng.normal(0, 1, (30, 48))
    effects[:, 40] += 5
    sites = pd.DataFrame({"layer": range(48)})
    html = LayerTrace(cases, sites, effects, effects, NO_FAILURES, {"self_check": 0.0})._repr_html_()
    assert "20 of 48 rows, the ones with the highest mean; .summary() or .rows has all." in html
    shown = [int(layer) for layer in re.findall(r"<tr>\s*<td>(\d+)</td>", html)]
    assert shown == np.sort(np.argsort(-effects.mean(axis=0))[:20]).tolist()


def test_everything_shows_itself_in_a_notebook() -> None:
    trace = random_trace(3, n=20)
    star = "L03E000"
    for result, words in (
        (trace.ranks(star), "95 % percentile interval, uncorrected"),
        (trace.activity(star), "Activity of L03E000 (Table 3)"),
        (trace.stability(seeds=range(6), controls=1), "20 of 30 rows, the first ones"),
        (layers().sharpness(), "Sharpness (Table 6)"),
        (
            mt.stats.sign_flip(np.arange(60.0).reshape(2, 30), correction="holm"),
            "correction=&#x27;holm&#x27;",
        ),
        (mt.stats.bootstrap(np.arange(9.0), confidence=0.9, n_resamples=20), "confidence=0.9"),
    ):
        html = result._repr_html_()
        assert words in html
        assert "<table" in html
        assert html.count("<tr>") <= 21
