"""Maps over positions in other metrics, and of noised values: what is best, and what their pictures say."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(3)
PLACES = ["last", "subject_last"]
DOWNWARD = [{"metric": "kl"}, {"metric": "prob", "mode": "noise"}]


@pytest.mark.parametrize("options", DOWNWARD)
def test_the_best_of_a_layer_map_is_the_lowest_where_that_matters(options):
    found = mt.trace_layers(make_model("qwen3_moe"), CASES, position=PLACES, **options)
    means = found.effects.mean(axis=0)
    lowest = found.sites.iloc[int(means.argmin())]
    assert (found.best, found.best_position) == (lowest.layer, lowest.position)
    assert found.at(found.best_position).best == found.best
    assert f"{means.min():+.3f}" in repr(found)
    assert "0 cases" in repr(found.subset([]))


@pytest.mark.parametrize("options", DOWNWARD)
def test_the_picture_of_an_expert_map_has_the_lowest_where_that_matters(options):
    found = mt.trace_experts(make_model("qwen3_moe"), CASES, layer=[1, 2], position=PLACES, **options)
    means = found.sites.assign(mean=found.effects.mean(axis=0)).groupby(["position", "layer"])["mean"].min()
    ax = found.plot()
    np.testing.assert_allclose(ax.collections[0].get_array(), means.unstack("layer").loc[PLACES])
    star = found.sites.iloc[int(found.effects.mean(axis=0).argmin())]
    assert f"lowest mean: L{star.layer:02d}E{star.expert:03d}" in ax.get_legend_handles_labels()[1]
    assert ax.get_title().startswith("Lowest mean")
    assert list(found.candidates().mean_rescue) == sorted(found.candidates().mean_rescue)


def test_labels_name_the_unit_and_the_mode():
    model = make_model("qwen3_moe")
    found = mt.trace_layers(model, CASES, position=PLACES, metric="kl", mode="noise")
    for ax in (found.plot(n_flips=20, n_resamples=20), found.plot(case=CASES[0].case_id)):
        assert ax.get_title().startswith("Noised block output put in")
        assert any(own.get_ylabel().endswith("effect (nats)") for own in ax.figure.axes)
    curve = mt.trace_layers(model, CASES, metric="kl")
    ax = curve.plot(n_flips=20, n_resamples=20)
    assert f"L{curve.best}" in [own.get_text() for own in ax.texts]


def test_a_layer_trace_without_cases_has_a_text():
    found = mt.trace_layers(make_model("qwen3_moe"), CASES, metric=["logit_diff", "kl"]).subset([])
    assert repr(found["kl"]) == "LayerTrace(0 cases x 4 layers)"
    assert "0 cases" in found["kl"]._repr_html_()


def test_a_position_of_a_layer_map_keeps_its_draws():
    noise = {"noise": mt.SubjectNoise(draws=3), "layers": [1]}
    model = make_model("qwen3_moe")
    one = mt.trace_layers(model, CASES, **noise)
    at = mt.trace_layers(model, CASES, position=PLACES, **noise).at("last")
    np.testing.assert_allclose(at.by_draw, one.by_draw, atol=2e-4)
    assert (at.variance_components().draws == 3).all()
