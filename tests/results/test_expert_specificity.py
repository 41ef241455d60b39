"""Specificity against active-random controls (equation 7)."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from moetrace.errors import ArgumentError, LayerRangeError, MoetraceWarning
from moetrace.results.controls import FewControlsWarning, NoControlsError
from moetrace.results.expert_name import Expert, ExpertRangeError, NeverActiveError
from moetrace.stats import sample_without_replacement, summary_table
from tests.results.expert_traces import (
    by_case,
    make_trace,
    oracle_others,
    random_trace,
    rescue_of,
    small_trace,
    take,
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("controls", [1, 2])
def test_specificity_is_equation_7_in_every_case(seed: int, controls: int) -> None:
    trace = random_trace(seed, union=seed % 2 == 1)
    star = trace.select(5, min_active=1)
    spec = trace.specificity(star, controls=controls, seed=seed)
    cases = by_case(trace)
    site = (star.layer, star.expert)
    assert spec.rows.case_id.tolist() == list(cases)
    for row in spec.rows.itertuples():
        rows = cases[row.case_id]
        others = oracle_others(rows, site)
        drawn = sample_without_replacement(len(others), controls, seed=seed, stream=row.case_id)
        chosen = sorted(others[place] for place in drawn)
        assert [(star.layer, expert) for expert in row.controls] == chosen
        control = sum(rescue_of(rows[other]) for other in chosen) / controls
        assert row.star_rescue == pytest.approx(rescue_of(rows[site]), abs=1e-12)
        assert row.control_rescue == pytest.approx(control, abs=1e-12)
        assert row.specificity == pytest.approx(rescue_of(rows[site]) - control, abs=1e-12)
        assert row.clean_active == rows[site]["clean_active"]
    assert spec.mean == pytest.approx(spec.rows.specificity.sum() / 12)
    assert spec.positive_fraction == sum(value > 0 for value in spec.rows.specificity) / 12
    assert spec.short_cases.empty


def test_an_inactive_star_counts_zero_minus_its_controls() -> None:
    # Table 5, Mixtral P178: rescue 0.000, specificity -0.368.
    trace = small_trace([[1, 1, 0], [0, 1, 1]], [[1, 0.25, 0], [0, 0.5, 0.75]])
    rows = trace.specificity("L44E000", controls=1).rows.set_index("case_id")
    assert rows.specificity[100] == 0.75
    assert rows.specificity[101] in (-0.5, -0.75)
    with pytest.warns(FewControlsWarning):
        both = trace.specificity("L44E000", controls=2)
    assert both.rows.specificity.tolist() == [0.75, -0.625]
    assert both.mean == 0.0625


def test_controls_of_a_case_do_not_depend_on_the_other_cases() -> None:
    trace = random_trace(0, n=30, experts=12, k=6)
    whole = trace.specificity("L03E000", controls=3, seed=5).rows.set_index("case_id")
    some = take(trace, np.random.default_rng(1).permutation(30)[:17])
    part = some.specificity((3, 0), controls=3, seed=5).rows.set_index("case_id")
    pd.testing.assert_frame_equal(part, whole.loc[part.index])


def test_seed_changes_the_draw_and_repeats_it() -> None:
    trace = random_trace(0, n=30, experts=12, k=6)
    first, again, other = (trace.specificity("L03E000", seed=seed).rows for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert (first.controls != other.controls).any()


def test_every_set_of_controls_is_as_likely_as_any_other() -> None:
    n = 2000
    trace = small_trace([[1] * 5] * n, [[0.0] * 5] * n)
    found = Counter(trace.specificity("L44E002", controls=2).rows.controls)
    sets = list(itertools.combinations([0, 1, 3, 4], 2))
    assert set(found) == set(sets)
    expected = n / len(sets)
    # Chi-squared with 5 degrees of freedom: 20.5 is its 0.999 quantile. The draw is seeded.
    assert sum((found[one] - expected) ** 2 / expected for one in sets) < 20.5


def test_negative_case_ids_have_controls_too() -> None:
    trace = random_trace(0)
    cases = trace.cases.assign(case_id=-trace.cases.case_id - 1)
    arrays = trace.arrays
    negative = make_trace(
        cases,
        list(trace.sites.itertuples(index=False, name=None)),
        clean_active=arrays.clean_active,
        rescue=arrays.rescue,
    )
    assert len(negative.specificity("L03E000", controls=1)) == 12


def test_cases_with_fewer_others_use_all_and_are_reported() -> None:
    trace = small_trace([[1, 1, 0], [1, 1, 1], [1, 0, 0]], [[1, 0.5, 0], [1, 0.5, 0], [3, 0, 0]])
    with pytest.warns(
        FewControlsWarning, match=r"3 of 3 cases .* 0 in 1, 1 in 1, 2 in 1.*100, 101, 102"
    ) as seen:
        spec = trace.specificity("L44E000", controls=3)
    assert issubclass(FewControlsWarning, MoetraceWarning)
    assert seen[0].filename == __file__
    assert spec.short_cases.to_dict("list") == {
        "case_id": [100, 101, 102],
        "available": [1, 2, 0],
        "used": [1, 2, 0],
    }
    # The case without any other expert has no specificity.
    assert spec.rows.case_id.tolist() == [100, 101]
    assert spec.rows.specificity.tolist() == [0.5, 0.75]
    assert len(spec) == 2
    assert "3 cases have fewer controls, 1 of them none" in repr(spec)


def test_no_warning_where_all_cases_have_enough() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random_trace(0).specificity("L03E000", controls=2)


def test_top_1_routing_has_no_specificity() -> None:
    trace = random_trace(0, k=1)
    star = trace.select(3, min_active=1)
    for compare in (trace.specificity, trace.all_active, trace.ranks):
        with pytest.raises(NoControlsError, match="only clean-active expert of its layer"):
            compare(star)


def test_summary_has_table_1s_figures_and_the_papers_defaults() -> None:
    trace = random_trace(1, n=40)
    spec = trace.specificity("L03E001", controls=2)
    summary = spec.summary()
    assert summary.quantity.tolist() == ["rescue", "control", "specificity"]
    values = spec.rows[["star_rescue", "control_rescue", "specificity"]].to_numpy()
    expected = summary_table(values, n_resamples=5000, n_flips=10000, seed=0)
    pd.testing.assert_frame_equal(summary.drop(columns="quantity"), expected)
    assert summary["mean"].tolist() == pytest.approx(
        [trace.effects[:, 1].mean(), spec.rows.control_rescue.mean(), spec.mean]
    )


def test_summary_by_relation_is_table_5() -> None:
    trace = random_trace(2, n=40)
    spec = trace.specificity("L03E001", controls=2)
    table = spec.summary(by="relation_id", n_resamples=100, n_flips=100)
    for (relation, quantity), row in table.groupby(["relation_id", "quantity"]):
        own = spec.rows[spec.rows.relation_id == relation]
        column = {"rescue": "star_rescue", "control": "control_rescue"}.get(quantity, quantity)
        assert row["mean"].item() == pytest.approx(own[column].mean())
        assert row.positive_fraction.item() == pytest.approx((own[column] > 0).mean())
        assert row.n.item() == len(own)
    assert len(table) == 3 * trace.cases.relation_id.nunique()


def test_summary_takes_clusters_and_corrections() -> None:
    trace = random_trace(2, n=40)
    spec = trace.specificity("L03E001", controls=2)
    options = {"ci": "bca", "correction": "holm", "n_resamples": 300, "n_flips": 300, "seed": 4}
    values = spec.rows[["star_rescue", "control_rescue", "specificity"]].to_numpy()
    expected = summary_table(values, cluster=spec.rows.relation_id.to_numpy(), **options)
    found = spec.summary(cluster="relation_id", **options)
    pd.testing.assert_frame_equal(found.drop(columns="quantity"), expected)
    with pytest.raises(ArgumentError, match="ci is"):
        spec.summary(ci="wide")


@pytest.mark.parametrize("name", ["specificity", "all_active", "ranks", "activity"])
def test_experts_that_do_not_exist_are_refused(name: str) -> None:
    method = getattr(random_trace(0), name)
    with pytest.raises(ExpertRangeError, match="L03E006 doesn't exist: layer 3 has experts 0 to 5"):
        method("L03E006")
    with pytest.raises(IndexError):
        method((3, 99))
    with pytest.raises(LayerRangeError, match=r"layer 4 .* has layers \[3, 5\]"):
        method(Expert(4, 0))
    with pytest.raises(ArgumentError, match="is no expert"):
        method(44)


@pytest.mark.parametrize("name", ["specificity", "all_active", "ranks"])
def test_an_expert_that_is_never_active_is_refused(name: str) -> None:
    trace = small_trace([[1, 1, 0]] * 3, [[1, 1, 0]] * 3)
    with pytest.raises(NeverActiveError, match="L44E002 is clean-active in none of the 3 cases"):
        getattr(trace, name)("L44E002")


@pytest.mark.parametrize("controls", [0, -1, 1.5, None, "3", "all", True])
def test_number_of_controls_is_checked(controls: object) -> None:
    with pytest.raises(ArgumentError, match="controls is"):
        random_trace(0).specificity("L03E000", controls=controls)  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "expected"), [(2, 1), (3, 3), (4, 3), (8, 3)])
def test_auto_draws_three_controls_or_one_where_the_router_takes_two(k: int, expected: int) -> None:
    trace = random_trace(0, n=20, experts=12, k=k)
    assert trace.top_k == k
    star = trace.select(3, min_active=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewControlsWarning)
        found, auto = trace.specificity(star), trace.specificity(star, controls="auto")
        assert found.controls == auto.controls == expected
        pd.testing.assert_frame_equal(found.rows, trace.specificity(star, controls=expected).rows)
        assert trace.stability(seeds=[0]).rows.equals(trace.stability(seeds=[0], controls=expected).rows)
        held, same = (trace.held_out(min_active=1, folds=2, **c) for c in ({}, {"controls": expected}))
        pd.testing.assert_frame_equal(held.rows, same.rows)


def test_the_routers_top_k_is_the_most_that_a_case_and_layer_have_active() -> None:
    # Two of a layer, four of a case: a case in which fewer are active (a dropped token) doesn't count.
    both = random_trace(1, k=2)
    assert both.top_k == 2
    assert both.specificity("L03E000").controls == 1
    short = small_trace([[1, 0, 0], [1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 1, 1], [1, 1, 0]])
    assert short.top_k == 3
    assert take(short, np.array([0, 2])).top_k == 2
