"""Selection on other splits and on other relations (appendix D, Table 12).

The oracle makes a trace of each part's cases alone and asks that: nothing about splits goes into it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moetrace.errors import ArgumentError, LayerRangeError
from moetrace.results.controls import FewControlsWarning
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace
from moetrace.results.selection import NoRecurrentExpertError
from tests.results.expert_traces import case_set, positions, random_trace, small_trace, take


@pytest.fixture(scope="module")
def trace() -> ExpertTrace:
    return random_trace(5, n=40, relations=9)


@pytest.mark.parametrize("layer", [None, 5])
def test_every_setting_is_a_selection_and_an_evaluation_of_its_own(
    trace: ExpertTrace, layer: int | None
) -> None:
    found = trace.stability(layer=layer, controls=2, seed=3)
    assert len(found) == 25
    assert list(zip(found.rows.seed, found.rows.min_active, strict=True)) == [
        (seed, share) for seed in range(5) for share in (0.25, 0.375, 0.5, 0.625, 0.75)
    ]
    missing = 0
    for row in found.rows.itertuples():
        halves = case_set(trace).split(seed=row.seed)
        discovery, validation = (take(trace, positions(trace, half)) for half in halves)
        assert row.n == len(validation) == 20
        assert row.required == np.ceil(row.min_active * 20)
        try:
            star = discovery.select(layer, min_active=row.min_active)
        except NoRecurrentExpertError:
            missing += 1
            assert pd.isna([row.star, row.layer, row.recurrence, row.rescue, row.specificity]).all()
            continue
        spec = validation.specificity(star, controls=2, seed=3)
        assert (row.star, row.layer, row.expert) == (str(star), star.layer, star.expert)
        assert row.recurrence == discovery.activity(star).active
        assert row.discovery_rescue == pytest.approx(discovery.specificity(star, 2).rows.star_rescue.mean())
        assert row.rescue == pytest.approx(spec.rows.star_rescue.mean())
        assert row.specificity == pytest.approx(spec.mean)
        assert row.active == spec.rows.clean_active.sum()
    assert found.counts.sum() == 25 - missing


def test_the_papers_thresholds_are_those_of_its_halves() -> None:
    trace = random_trace(0, n=256, layers=(44,), experts=8, k=4)
    assert sorted(set(trace.stability(seeds=[0]).rows.required)) == [32, 48, 64, 80, 96]
    counts = trace.stability(seeds=[0, 1], thresholds=[32, 48]).rows
    shares = trace.stability(seeds=[0, 1], thresholds=[0.25, 0.375]).rows
    pd.testing.assert_frame_equal(counts.drop(columns="min_active"), shares.drop(columns="min_active"))


def test_modal_expert_and_averages() -> None:
    trace = random_trace(7, n=40, layers=(3,))
    found = trace.stability(seeds=range(8), thresholds=(0.3, 0.5), controls=2)
    names = found.rows.star.dropna().tolist()
    best = min(set(names), key=lambda name: (-names.count(name), Expert.parse(name)))
    assert len(set(names)) > 1
    assert found.modal == Expert.parse(best)
    assert found.modal_count == names.count(best)
    assert found.mean_rescue == pytest.approx(found.rows.rescue.dropna().mean())
    assert found.mean_specificity == pytest.approx(found.rows.specificity.dropna().mean())
    assert f"{best} selected in {names.count(best)} of 16 settings" in repr(found)


def test_settings_that_select_nothing_are_rows_and_no_errors() -> None:
    trace = random_trace(0, layers=(3,))
    found = trace.stability(seeds=[0, 1], thresholds=[100], controls=1)
    assert len(found) == 2
    assert found.modal is None
    assert found.modal_count == 0
    assert np.isnan(found.mean_rescue)
    assert "no expert selected" in repr(found)
    assert found.short_cases.empty


def test_short_cases_of_all_settings_are_reported_once() -> None:
    trace = small_trace([[1, 1, 1]] * 6 + [[1, 0, 0]] * 2, [[1, 0, 0]] * 8)
    with pytest.warns(FewControlsWarning) as seen:
        found = trace.stability(seeds=range(12), controls=3)
    assert len(seen) == 1
    used = dict(zip(found.short_cases.case_id, found.short_cases.used, strict=True))
    assert used == {100: 2, 101: 2, 102: 2, 103: 2, 104: 2, 105: 2, 106: 0, 107: 0}


def test_stability_needs_settings_and_a_traced_layer(trace: ExpertTrace) -> None:
    for empty in ({"seeds": []}, {"thresholds": []}):
        with pytest.raises(ArgumentError, match="at least one seed"):
            trace.stability(**empty)
    with pytest.raises(LayerRangeError):
        trace.stability(layer=4)
    with pytest.raises(ArgumentError, match="share of the cases"):
        trace.stability(thresholds=[2.5])
    with pytest.raises(ArgumentError, match="fraction"):
        trace.stability(fraction=1)


@pytest.mark.parametrize(("folds", "seed"), [(3, 0), (5, 1)])
def test_each_fold_is_selected_without_its_relations(trace: ExpertTrace, folds: int, seed: int) -> None:
    found = trace.held_out(folds=folds, seed=seed, layer=3, min_active=0.4, controls=2)
    pairs = case_set(trace).folds(by="relation_id", k=folds, seed=seed)
    assert len(found.folds) == folds
    for row, (rest, held) in zip(found.folds.itertuples(), pairs, strict=True):
        star = take(trace, positions(trace, rest)).select(3, min_active=0.4)
        place = positions(trace, held)
        own = take(trace, place).specificity(star, controls=2, seed=seed)
        assert row.star == str(star)
        assert row.relations == tuple(sorted({case.relation_id for case in held}))
        assert (row.n, row.active) == (len(held), own.rows.clean_active.sum())
        assert row.rescue == pytest.approx(own.rows.star_rescue.mean())
        assert row.specificity == pytest.approx(own.mean)
        mine = found.rows.set_index("case_id").loc[[case.case_id for case in held]].reset_index()
        assert (mine.fold == row.fold).all()
        assert (mine.star == row.star).all()
        pd.testing.assert_frame_equal(mine[list(own.rows)], own.rows)
    assert found.rows.case_id.tolist() == trace.cases.case_id.tolist()
    assert found.selected == (found.folds.star == str(found.star)).sum()
    assert found.selected == found.folds.star.value_counts().max()
    assert found.active == found.folds.active.sum()


def test_held_out_summary_is_over_all_cases(trace: ExpertTrace) -> None:
    found = trace.held_out(folds=3, layer=3, min_active=0.4, controls=2)
    summary = found.summary(n_resamples=100, n_flips=100).set_index("quantity")
    assert summary.n.tolist() == [40, 40, 40]
    assert summary["mean"]["rescue"] == pytest.approx(found.rows.star_rescue.mean())
    assert summary["mean"]["specificity"] == pytest.approx(found.rows.specificity.mean())
    assert f"{found.star} selected in {found.selected} of 3 folds" in repr(found)


def test_held_out_keeps_the_rescue_of_cases_without_controls() -> None:
    active = [[1, 1]] * 6 + [[1, 0]] * 2
    trace = small_trace(active, [[1, 0.5]] * 6 + [[3, 0]] * 2)
    with pytest.warns(FewControlsWarning, match="2 of 8 cases"):
        found = trace.held_out(folds=2, controls=1)
    summary = found.summary(n_resamples=50, n_flips=50).set_index("quantity")
    assert summary.n.to_dict() == {"rescue": 8, "control": 6, "specificity": 6}
    assert summary["mean"].to_dict() == {"rescue": 1.5, "control": 0.5, "specificity": 0.5}


def test_held_out_names_what_does_not_fit(trace: ExpertTrace) -> None:
    count = trace.cases.relation_id.nunique()
    with pytest.raises(ArgumentError, match=f"at most {count}, the number of groups by 'relation_id'"):
        trace.held_out(folds=count + 1)
    with pytest.raises(ArgumentError, match="expected 'relation_id'"):
        trace.held_out(by="subject")
    with pytest.raises(NoRecurrentExpertError, match="highest recurrence"):
        trace.held_out(folds=3, min_active=1.0)
