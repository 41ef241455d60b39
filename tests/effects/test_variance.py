"""Variance of several draws: against a plain twin, closed forms and simulated data."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace.effects import variance_components
from moetrace.errors import ArgumentError
from tests.engines.tiny import make_cases, make_model


def twin(values: np.ndarray) -> tuple[float, float, float]:
    """One site, (cases, draws), with loops: mean squares of the one-way analysis of variance."""
    cases, draws = values.shape
    mean = sum(map(sum, values.tolist())) / values.size
    means = [sum(line) / draws for line in values.tolist()]
    between = sum(draws * (own - mean) ** 2 for own in means) / (cases - 1)
    within = sum((v - m) ** 2 for line, m in zip(values.tolist(), means, strict=True) for v in line)
    within /= cases * (draws - 1)
    return between, within, mean


def test_against_the_twin():
    values = np.random.default_rng(0).normal(size=(7, 3, 4)) + np.arange(7)[:, None, None]
    found = variance_components(values)
    for site in range(3):
        ms_between, ms_within, mean = twin(values[:, site])
        assert found.mean[site] == pytest.approx(mean)
        assert found.within[site] == pytest.approx(ms_within)
        assert found.between[site] == pytest.approx(max(0.0, (ms_between - ms_within) / 4))
        assert found.standard_error[site] == pytest.approx((ms_between / 28) ** 0.5)
        total = found.between[site] + found.within[site]
        assert found.icc[site] == pytest.approx(found.between[site] / total)
        share = found.within[site] / 4 / (found.between[site] + found.within[site] / 4)
        assert found.draws_share[site] == pytest.approx(share)


def test_known_variances_are_found_without_bias():
    rng = np.random.default_rng(1)
    cases, draws, sites = 40, 3, 400
    effects = rng.normal(0, 2.0, (cases, sites, 1)) + rng.normal(0, 1.5, (cases, sites, draws)) + 0.7
    found = variance_components(effects)
    assert found.within.mean() == pytest.approx(2.25, rel=0.02)
    assert found.between.mean() == pytest.approx(4.0, rel=0.03)
    assert found.mean.mean() == pytest.approx(0.7, abs=0.05)
    # The standard error is that of the means over repetitions.
    assert found.mean.std() == pytest.approx(np.sqrt((found.standard_error**2).mean()), rel=0.1)


def test_ends_of_the_range():
    same = np.repeat(np.arange(5.0)[:, None, None], 3, axis=2)
    found = variance_components(same)
    assert (found.within[0], found.icc[0], found.draws_share[0]) == (0.0, 1.0, 0.0)
    assert found.between[0] == pytest.approx(same[:, 0, 0].var(ddof=1))
    draws = np.tile([-1.0, 1.0], (6, 1, 1))
    found = variance_components(draws)
    assert (found.between[0], found.icc[0], found.draws_share[0]) == (0.0, 0.0, 1.0)
    assert np.isnan(variance_components(np.ones((1, 2, 3))).between).all()
    assert np.isnan(variance_components(np.ones((4, 1, 3))).icc).all()
    for shape in ((4, 3), (4, 3, 1)):
        with pytest.raises(ArgumentError, match="two draws"):
            variance_components(np.ones(shape))


@pytest.mark.parametrize("kind", ["layers", "experts", "coalitions"])
def test_of_a_trace_it_is_that_of_its_draws_one_by_one(kind):
    model, cases = make_model("qwen3_moe"), make_cases(4)
    trace = {
        "layers": lambda **options: mt.trace_layers(model, cases, **options),
        "experts": lambda **options: mt.trace_experts(model, cases, layer=1, **options),
        "coalitions": lambda **options: mt.trace_coalitions(model, cases, layer=1, **options),
    }[kind]
    many = trace(noise=mt.SubjectNoise(draws=3))
    drawn = [mt.SubjectNoise(draws=3).sample(case, 32) for case in cases]
    std = many.provenance["noise"]["embedding_std"]
    places = {case.case_id: place for place, case in enumerate(cases)}

    def one(draw):
        def values(case, embeddings):
            return embeddings + drawn[places[case.case_id]][draw] * (3.0 * std)

        return trace(corruption=values).effects

    each = np.stack([one(draw) for draw in range(3)], axis=2)
    np.testing.assert_allclose(many.by_draw, each, atol=1e-4)
    np.testing.assert_allclose(many.by_draw.mean(axis=2), many.effects, atol=1e-9)
    table = many.variance_components()
    expected = variance_components(each)
    np.testing.assert_allclose(table.within, expected.within, atol=1e-4)
    np.testing.assert_allclose(table.between, expected.between, atol=1e-4)
    assert (table.draws == 3).all()
    assert (table.n == 4).all()
    with pytest.raises(ArgumentError, match="draws=8"):
        trace().variance_components()
