"""Coalitions, their values and interactions find what was planted."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest

import moetrace as mt
from moetrace.planted import FAMILIES, plant

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@cache
def every_subset(planted, engine="tree"):
    return traced(planted, sets="all", engine=engine)


def traced(planted, **options):
    return mt.trace_coalitions(planted.model, planted.cases, layer=planted.layer, **options)


@pytest.fixture
def routed(planted):
    """(cases, k): clean-routed experts, ascending."""
    return [np.flatnonzero(line).tolist() for line in planted.truth.clean_active]


def by_expert(table, column, planted):
    """(cases, E) from tidy rows; 0 where there is none."""
    found = np.zeros_like(planted.truth.shapley)
    found[table.case_id, table.expert] = table[column]
    return found


def test_every_subset(planted, engine, routed):
    found = every_subset(planted, engine)
    values = found.values()
    for case, places in enumerate(found.cases.experts):
        members = [
            [places[j] for j in range(found.players) if mask >> j & 1] for mask in range(values.shape[1])
        ]
        assert sorted(members[-1]) == routed[case]
        expected = [planted.truth.rescue(experts)[case] for experts in members]
        np.testing.assert_allclose(values[case], expected, **TOLERANCE)


def test_shapley_banzhaf_and_interactions(planted, engine):
    found, truth = every_subset(planted, engine), planted.truth
    shapley = found.shapley()
    assert len(shapley) == truth.clean_active.sum()
    np.testing.assert_allclose(by_expert(shapley, "shapley", planted), truth.shapley, **TOLERANCE)
    np.testing.assert_allclose(by_expert(found.banzhaf(), "banzhaf", planted), truth.shapley, **TOLERANCE)
    pairs = found.interactions()
    k = found.players
    assert len(pairs) == len(planted.cases) * k * (k - 1) // 2
    expected = truth.interactions[pairs.case_id, pairs.expert_a, pairs.expert_b]
    np.testing.assert_allclose(pairs.shapley_interaction, expected, **TOLERANCE)
    np.testing.assert_allclose(pairs.banzhaf_interaction, expected, **TOLERANCE)


def test_additivity_and_the_smallest_coalition(planted, routed):
    found, truth = every_subset(planted), planted.truth
    table, effects = found.additivity(), truth.experts[:, planted.layer]
    grand = np.array([truth.rescue(experts)[case] for case, experts in enumerate(routed)])
    np.testing.assert_allclose(table.singles, effects.sum(axis=1), **TOLERANCE)
    np.testing.assert_allclose(table.grand, grand, **TOLERANCE)
    np.testing.assert_allclose(table.difference, grand - effects.sum(axis=1), **TOLERANCE)
    for case, line in enumerate(found.smallest(0.8).itertuples()):
        enough = next(
            sets
            for size in range(1, found.players + 1)
            if (
                sets := [
                    s for s in combinations(routed[case], size) if truth.rescue(s)[case] >= 0.8 * grand[case]
                ]
            )
        )
        best = max(enough, key=lambda s: truth.rescue(s)[case])
        assert sorted(line.experts) == list(best)
        assert line.rescue == pytest.approx(truth.rescue(best)[case], abs=1e-4)


def test_clean_and_union(planted, engine, routed):
    found, truth = traced(planted, engine=engine), planted.truth
    either = [np.flatnonzero(line) for line in truth.clean_active | truth.noised_active]
    expected = [
        (truth.rescue(c)[i], truth.rescue(u)[i]) for i, (c, u) in enumerate(zip(routed, either, strict=True))
    ]
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
    np.testing.assert_allclose(found.effects[:, 1], truth.layers[:, planted.layer], **TOLERANCE)
    if planted.kind == "clean_only":
        assert (found.effects[:, 1] - found.effects[:, 0] > 0.01).all()


def test_named_experts(planted, engine):
    carriers = list(planted.experts)
    listed = [carriers, carriers[:1], list(range(FAMILIES[planted.family].experts))][
        : 3 if len(carriers) > 1 else 1
    ]
    found = traced(planted, sets=listed, engine=engine)
    expected = np.stack([planted.truth.rescue(experts) for experts in listed], axis=1)
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)


def test_sampled_orders_are_exact_where_shares_add(planted):
    found = traced(planted, sets="sampled", n_permutations=8).shapley()
    if planted.kind == "pair":
        assert found.standard_error.max() > 0.1
        return
    np.testing.assert_allclose(by_expert(found, "shapley", planted), planted.truth.shapley, **TOLERANCE)
    assert found.standard_error.max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_a_set_are_the_users(family):
    planted = plant("set", family, n=4, shares=(0.9, -0.3))
    table = traced(planted, sets="all").shapley()
    drop = planted.truth.clean - planted.truth.noised  # shares sum to 1
    for expert, share in zip(planted.experts, (0.9, -0.3), strict=True):
        np.testing.assert_allclose(table[table.expert == expert].shapley, share * drop, **TOLERANCE)
