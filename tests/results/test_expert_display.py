"""How expert traces and what is worked out from them look."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from moetrace.errors import LayerRangeError
from moetrace.results.experts import ExpertTrace
from tests.results.expert_traces import random_trace, small_trace, take

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def marks(ax: mpl.axes.Axes) -> dict[str, list[float]]:
    """Label -> heights of its marks."""
    return {
        line.get_label(): line.get_ydata().tolist() for line in ax.lines if "cases" in str(line.get_label())
    }


def test_repr_names_the_best_recurrent_expert() -> None:
    trace = small_trace([[1, 1], [1, 0], [1, 0]], [[0.5, 9], [1, 0], [0, 0]])
    text = repr(trace)
    assert "3 cases x 2 experts of layer 44" in text
    assert "best recurrent L44E000 with mean rescue +0.500, active in 3" in text
    assert "1.0e-06" in text
    assert "no expert clean-active in half" in repr(small_trace([[0, 0]], [[0, 0]]))
    assert "2 layers" in repr(random_trace(0))


def test_a_trace_without_cases_still_shows_itself() -> None:
    empty = take(random_trace(0), np.array([], int))
    assert "0 cases" in repr(empty)
    assert "0 cases" in empty._repr_html_()


def test_html_shows_candidates_and_escapes_what_comes_from_data() -> None:
    trace = random_trace(0)
    html = trace._repr_html_()
    assert str(trace.select(min_active=1)) in html
    cases = trace.cases.assign(relation_id="<script>")
    odd = ExpertTrace(cases, trace.sites, trace.arrays, trace.failed, trace.provenance)
    for result in (odd, odd.specificity("L03E000", controls=1), odd.all_active("L03E000")):
        assert "<script>" not in result._repr_html_()


def test_html_of_specificity_says_which_cases_fall_short() -> None:
    trace = small_trace([[1, 1], [1, 1], [1, 0]], [[1, 0.5], [1, 0.5], [3, 0]])
    with pytest.warns(UserWarning, match="fewer than 1"):
        html = trace.specificity("L44E000", controls=1)._repr_html_()
    assert "1 cases have fewer controls, 1 of them none" in html
    assert "specificity" in html
    stable = random_trace(0).stability(seeds=[0], controls=1)
    assert "of 5 settings" in repr(stable)
    assert "discovery_rescue" in stable._repr_html_()


def test_plot_shows_each_active_expert_once_sorted_with_its_interval() -> None:
    trace = random_trace(1, n=20)
    ax = trace.plot(layer=5, min_active=0.5, n_resamples=200, n_flips=50)
    candidates = trace.candidates(layer=5, mean="all")
    assert [label.get_text() for label in ax.get_xticklabels()] == candidates.star.tolist()
    shown = marks(ax)
    recurrent = candidates.active >= 10
    np.testing.assert_allclose(shown["clean-active in at least 10 cases"], candidates.mean_rescue[recurrent])
    np.testing.assert_allclose(
        shown["clean-active in fewer than 10 cases"], candidates.mean_rescue[~recurrent]
    )
    summary = trace.summary(n_resamples=200, n_flips=50).set_index(["layer", "expert"])
    segments = ax.collections[0].get_segments()
    for segment, expert in zip(segments, candidates.expert, strict=True):
        own = summary.loc[(5, expert)]
        np.testing.assert_allclose(segment[:, 1], [own.ci_low, own.ci_high])
    assert "layer 5, 20 cases" in ax.get_title()


def test_plot_says_how_many_experts_it_leaves_out() -> None:
    trace = random_trace(1, n=20)
    ax = trace.plot(limit=4, n_resamples=100, n_flips=50)
    assert len(ax.get_xticklabels()) == 4
    assert f"best 4 of {len(trace.candidates())}" in ax.get_title()
    assert "all traced layers" in ax.get_title()


def test_plot_of_a_layer_where_nothing_is_active_is_empty() -> None:
    ax = small_trace([[0, 0]] * 3, [[0, 0]] * 3).plot()
    assert not marks(ax)
    with pytest.raises(LayerRangeError):
        random_trace(0).plot(layer=4)


def test_plot_draws_into_given_axes() -> None:
    _, ax = plt.subplots()
    assert random_trace(1).plot(layer=3, ax=ax, n_resamples=50, n_flips=50) is ax
    assert marks(ax)
