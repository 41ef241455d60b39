"""What pictures and tables say of themselves is what was computed, and text from data stays text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.errors import (
    ArgumentError,
    FewClustersWarning,
    MissingPackageError,
    MoetraceError,
    MoetraceWarning,
)
from moetrace.results.coalitions import CoalitionTrace
from moetrace.results.display import plain
from moetrace.results.layers import LayerTrace
from moetrace.results.matched import SITES, MatchedTrace
from moetrace.results.scales import ScaleTrace
from tests.results.expert_traces import NO_FAILURES, case_table, random_trace

mpl.use("Agg")
HOSTILE = "<img src=x onerror=alert(1)>\n$\\frac{$ & \x00 $x$"


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def made(kind: type, sites: pd.DataFrame, n: int = 12, relation: str | None = None, **facts: Any) -> Any:
    rng = np.random.default_rng(1)
    cases = case_table(n, rng, 4)
    if relation is not None:
        cases["relation_id"] = relation
    cases["clean_active"] = True
    for scale in (1.0, 3.0):
        cases[f"noised_{scale:g}"] = cases.noised
    effects = rng.normal(0, 1, (n, len(sites))) + np.linspace(1.6, 0, len(sites))
    facts = {"self_check": 1e-6, "players": 0, "orders": None, "star": "L02E001"} | facts
    return kind(cases, sites, effects + cases.noised.to_numpy()[:, None], effects, NO_FAILURES, facts)


def layers(**facts: Any) -> LayerTrace:
    return made(LayerTrace, pd.DataFrame({"layer": [4, 1, 2]}), **facts)


def matched(**facts: Any) -> MatchedTrace:
    sites = pd.DataFrame(SITES, columns=["role", "scaling"])
    sites.insert(0, "layer", 2)
    return made(MatchedTrace, sites, **facts)


def scales(**facts: Any) -> ScaleTrace:
    names = [(2, patch, scale) for patch in ("expert", "block") for scale in (1.0, 3.0)]
    return made(ScaleTrace, pd.DataFrame(names, columns=["layer", "patch", "scale"]), **facts)


def coalitions(names: tuple[str, ...] = ("clean", "union"), **facts: Any) -> CoalitionTrace:
    return made(CoalitionTrace, pd.DataFrame({"layer": 2, "coalition": names}), **facts)


def subsets(**facts: Any) -> CoalitionTrace:
    return coalitions(("slots 0", "slots 1", "slots 0+1"), masks=[1, 2, 3], players=2, **facts)


def experts(**_: Any) -> Any:
    return random_trace(3, n=20)


def specificity(**_: Any) -> Any:
    return random_trace(3, n=20).specificity("L03E000", controls=1)


def all_active(**_: Any) -> Any:
    return random_trace(3, n=20).all_active("L03E000")


def held_out(**_: Any) -> Any:
    return random_trace(3, n=20).held_out(folds=2, min_active=0.1, controls=1)


def ranks(**_: Any) -> Any:
    return random_trace(3, n=20).ranks("L03E000")


def stability(**_: Any) -> Any:
    return random_trace(3, n=20).stability(seeds=[0], controls=1)


SUMMARISED = [layers, experts, matched, scales, coalitions, subsets, specificity, all_active, held_out]
EVERY = [*SUMMARISED, ranks, stability]
QUICK = {"n_resamples": 50, "n_flips": 50}
pytestmark = pytest.mark.filterwarnings("ignore::moetrace.results.controls.FewControlsWarning")


def legend(ax: mpl.axes.Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("make", EVERY)
def test_every_result_has_a_picture(make: Callable[..., Any]) -> None:
    result = make()
    ax = result.plot()
    ax.figure.savefig("/dev/null", format="png")
    _, own = plt.subplots()
    assert result.plot(ax=own) is own
    assert own.get_title()


@pytest.mark.parametrize("make", SUMMARISED)
def test_the_interval_in_a_legend_is_the_one_that_was_asked_for(make: Callable[..., Any]) -> None:
    result = make()
    assert "95 % percentile interval" in legend(result.plot(**QUICK))
    assert "90 % basic interval" in legend(result.plot(confidence=0.9, ci="basic", **QUICK))
    with pytest.warns(FewClustersWarning):
        ax = result.plot(confidence=0.995, cluster="relation_id", **QUICK)
    assert "99.5 % percentile interval, clustered by relation" in legend(ax)


@pytest.mark.parametrize("make", [matched, scales, coalitions, subsets, specificity, all_active, held_out])
def test_a_picture_of_all_cases_refuses_groups(make: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match="by is 'relation_id'; a picture shows all cases together"):
        make().plot(by="relation_id")


@pytest.mark.parametrize(
    ("correction", "words"),
    [
        ("max_t", "max-T over 3 layers"),
        ("max_t_single", "single-step max-T over 3 layers"),
        ("holm", "Holm over 3 layers"),
        ("bh", "Benjamini-Hochberg over 3 layers"),
        (None, "uncorrected for 3 layers"),
    ],
)
def test_the_test_in_a_legend_is_the_one_that_was_used(correction: str | None, words: str) -> None:
    trace = layers()
    ax = trace.plot(correction=correction)
    table = trace.summary(correction=correction)
    p = table.get("p_adjusted", table.p_value)
    assert 0 < (p < 0.05).sum() < 3, "a layer of each kind"
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines[f"sign-flip p < 0.05, {words}"].get_xdata()) == set(table.layer[p < 0.05])
    assert set(lines["p ≥ 0.05"].get_xdata()) == set(table.layer[p >= 0.05])
    assert not any("adjusted" in label or "significant" in label for label in legend(ax))


def test_the_test_is_named_where_no_layer_survives_it() -> None:
    trace = layers()
    weak = LayerTrace(
        trace.cases, trace.sites, trace.effects, trace.effects * 0, trace.failed, trace.provenance
    )
    assert "sign-flip p ≥ 0.05, Holm over 3 layers" in legend(weak.plot(correction="holm", **QUICK))


def test_max_t_is_what_a_layer_plot_uses_unless_told() -> None:
    assert any("max-T over 3 layers" in label for label in legend(layers().plot(**QUICK)))


def test_layers_are_drawn_in_their_order() -> None:
    (line,) = [
        line
        for line in layers().plot(**QUICK).lines
        if line.get_linestyle() == "-" and len(line.get_xdata()) == 3
    ]
    assert line.get_xdata().tolist() == [1, 2, 4]


def test_a_layer_that_could_not_be_tested_is_not_called_insignificant() -> None:
    ax = layers(n=1).plot()
    assert "too few cases for a test" in legend(ax)
    assert "p ≥ 0.05" not in legend(ax)


def test_the_unstudentised_maximum_is_named() -> None:
    words = "sign-flip p < 0.05, max-T of means over 3 layers"
    assert words in legend(layers().plot(statistic="mean", n_resamples=50))


def test_points_are_the_means() -> None:
    trace = matched()
    ax = trace.plot(kind="means", **QUICK)
    found = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "o"])
    np.testing.assert_allclose(sorted(found), sorted(trace.table(**QUICK)["mean"]))
    trace = scales()
    found = {line.get_label(): line.get_ydata() for line in trace.plot(**QUICK).lines}
    np.testing.assert_allclose(found["expert L02E001"], trace.effects[:, :2].mean(axis=0))
    np.testing.assert_allclose(found["its whole block"], trace.effects[:, 2:].mean(axis=0))
    trace = subsets()
    means = trace.effects.mean(axis=0)
    found = {line.get_label(): line.get_ydata() for line in trace.plot(kind="sizes", **QUICK).lines}
    np.testing.assert_allclose(found["mean of the coalitions of a size"], [means[:2].mean(), means[2]])
    np.testing.assert_allclose(found["one coalition"], means)
    drawn = random_trace(3, n=20).ranks("L03E000")
    bars = {round(bar.get_x() + bar.get_width() / 2) + 1: bar.get_height() for bar in drawn.plot().patches}
    assert {rank: count for rank, count in bars.items() if count} == drawn.rows[
        "rank"
    ].value_counts().to_dict()


@pytest.mark.parametrize("make", SUMMARISED)
def test_tables_say_what_their_intervals_and_p_values_are(make: Callable[..., Any]) -> None:
    html = make()._repr_html_()
    corrected = make in (layers, experts, coalitions, subsets)
    words = ", p_adjusted max-T over " if corrected else " for "
    assert f"95 % percentile intervals; sign-flip p_value uncorrected{words}" in html
    assert ("<th>p_adjusted</th>" in html) == corrected


def test_a_table_of_experts_says_that_they_were_chosen_by_it() -> None:
    trace = random_trace(3, n=20, experts=12)
    html = trace._repr_html_()
    found = len(trace.candidates())
    assert (
        f"The 10 with the highest mean over the cases where they are clean-active, of {found} experts" in html
    )
    assert "chosen on these very cases: p_adjusted accounts for that, p_value and the intervals don" in html
    assert f"p_adjusted max-T over {found} experts" in html


@pytest.mark.parametrize("make", EVERY)
def test_without_matplotlib_every_picture_says_how_to_get_it(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r'pip install "moetrace\[plot\]"') as refusal:
        result.plot()
    assert isinstance(refusal.value, MoetraceError)
    assert isinstance(refusal.value, ImportError)


@pytest.mark.parametrize("make", [layers, matched, scales, coalitions, subsets])
def test_hostile_names_are_escaped_in_html_and_pictures(make: Callable[..., Any]) -> None:
    result = make(relation=HOSTILE, star=HOSTILE)
    html = result._repr_html_()
    html.encode()
    assert "<img" not in html
    result.plot(**QUICK).figure.savefig("/dev/null", format="svg")


def test_hostile_coalitions_are_one_line_of_plain_text() -> None:
    ax = coalitions((HOSTILE, "union")).plot(**QUICK)
    ax.figure.savefig("/dev/null", format="png")
    assert ax.get_yticklabels()[0].get_text() == plain(HOSTILE)
    assert "<img" not in coalitions((HOSTILE, "union"))._repr_html_()
    assert "\n" not in plain("a\nb")
    assert plain("$x$") == r"\$x\$"
    assert plain("\ud800\x00") == "  "
    assert len(plain("a" * 1000)) == 60


def test_hostile_relations_of_contrasts_and_groups_are_escaped() -> None:
    trace = random_trace(3, n=20)
    odd = type(trace)(
        trace.cases.assign(relation_id=HOSTILE), trace.sites, trace.arrays, trace.failed, trace.provenance
    )
    for result in (odd, odd.specificity("L03E000", controls=1), odd.all_active("L03E000")):
        html = result._repr_html_()
        html.encode()
        assert "<img" not in html
    cases = mt.CaseSet(
        [mt.Case([1, 2], (0, 1), 3, 4, 0, HOSTILE, HOSTILE)], funnel={HOSTILE: 1}, dropped={HOSTILE: 1}
    )
    html = cases._repr_html_()
    html.encode()
    assert "<img" not in html


@pytest.mark.parametrize("clusters", [2, 9, 10])
def test_few_clusters_warn_wherever_they_are_used(clusters: int) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 3)), np.arange(40) % clusters
    trace = layers(n=40)
    cases = trace.cases.assign(relation_id=[f"P{label}" for label in labels])
    trace = LayerTrace(cases, trace.sites, trace.effects, trace.effects, trace.failed, trace.provenance)
    calls: list[Callable[[], Any]] = [
        lambda: mt.stats.summary_table(x, cluster=labels, **QUICK),
        lambda: mt.stats.bootstrap(x, cluster=labels, n_resamples=50),
        lambda: mt.stats.sign_flip(x, cluster=labels, n_flips=50),
        lambda: trace.summary(cluster="relation_id", **QUICK),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        few = [str(w.message) for w in caught if issubclass(w.category, FewClustersWarning)]
        assert len(few) == (clusters < 10)
        for text in few:
            assert f"{clusters} clusters are fewer than 10" in text
            assert f"below {2 / 2**clusters:.3g}" in text
            assert "Add cases of other clusters" in text
    assert issubclass(FewClustersWarning, MoetraceWarning)
    assert mt.stats.FewClustersWarning is FewClustersWarning


def test_the_smallest_p_value_is_what_the_warning_says() -> None:
    for clusters in (2, 5):
        with pytest.warns(FewClustersWarning, match=f"below {2 / 2**clusters:.3g} is possible"):
            found = mt.stats.sign_flip(np.ones(20), cluster=np.arange(20) % clusters)
        assert found.p_value == 2 / 2**clusters


def test_the_warning_points_at_the_caller() -> None:
    for call in (mt.stats.bootstrap, mt.stats.sign_flip):
        with pytest.warns(FewClustersWarning) as caught:
            call(np.arange(6.0), cluster=[0, 0, 1, 1, 2, 2])
        assert caught[0].filename == __file__
    with pytest.warns(FewClustersWarning) as caught:
        mt.stats.summary_table(np.arange(12.0).reshape(6, 2), cluster=[0, 0, 1, 1, 2, 2])
    assert caught[0].filename == __file__
