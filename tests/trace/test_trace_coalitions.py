from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from tests.engines.tiny import MOE, make_cases


@pytest.fixture(scope="module")
def model(request):
    import torch
    import transformers as tf

    torch.manual_seed(1)
    config = tf.Qwen3MoeConfig(**{**MOE, "num_experts_per_tok": 3}, num_experts=8, norm_topk_prob=True)
    model = tf.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    return model


@pytest.fixture(scope="module")
def cases():
    return make_cases(5)


@pytest.fixture(scope="module")
def every(model, cases):
    return mt.trace_coalitions(model, cases, layer=1, sets="all")


def test_all_subsets_equal_the_reference(model, cases, every):
    plain = mt.trace_coalitions(model, cases, layer=1, sets="all", engine="reference")
    assert every.effects.shape == (5, 7)
    np.testing.assert_allclose(every.effects, plain.effects, atol=2e-4)
    assert every.sites.coalition.tolist() == plain.sites.coalition.tolist()


def test_singles_are_the_expert_traces(model, cases, every):
    experts = mt.trace_experts(model, cases, layer=1)
    values = every.values()
    for index, line in enumerate(every.cases.experts):
        for place in range(3):
            assert values[index, 1 << place] == pytest.approx(experts.effects[index, line[place]], abs=1e-4)


def test_grand_coalition_is_clean_and_lists_name_experts(model, cases, every):
    named = mt.trace_coalitions(model, cases, layer=1)
    np.testing.assert_allclose(named.effects[:, 0], every.values()[:, -1], atol=1e-4)
    lists = mt.trace_coalitions(model, cases, layer=1, sets=[list(range(8)), [2], [2, 5]])
    np.testing.assert_allclose(lists.effects[:, 0], named.effects[:, 1], atol=1e-4)  # all experts: the union
    plain = mt.trace_coalitions(model, cases, layer=1, sets=[list(range(8)), [2], [2, 5]], engine="reference")
    np.testing.assert_allclose(lists.effects, plain.effects, atol=2e-4)


def test_union_equals_the_block_patch(model, cases):
    """Without shared experts the union restores the whole clean block output (appendix G)."""
    union = mt.trace_coalitions(model, cases, layer=2, sets="union")
    block = mt.trace_layers(model, cases, layers=2)
    np.testing.assert_allclose(union.effects[:, 0], block.effects[:, 0], atol=1e-4)


def test_shapley_by_its_definition(every):
    values = every.values()
    table = every.shapley()
    for index, case_id in enumerate(every.cases.case_id):
        shares = np.zeros(3)
        for order in itertools.permutations(range(3)):
            mask = 0
            for player in order:
                shares[player] += values[index, mask | 1 << player] - values[index, mask]
                mask |= 1 << player
        found = table[table.case_id == case_id].sort_values("slot").shapley
        np.testing.assert_allclose(found, shares / math.factorial(3), atol=1e-10)
        assert found.sum() == pytest.approx(values[index, -1])


def test_interactions_smallest_and_additivity(every):
    values = every.values()
    pairs = every.interactions()
    assert len(pairs) == 5 * 3
    banzhaf = every.banzhaf()
    assert len(banzhaf) == 5 * 3
    first = pairs[pairs.case_id == every.cases.case_id[0]].iloc[0]
    both = [
        values[0, 0b011 | rest] - values[0, 0b001 | rest] - values[0, 0b010 | rest] + values[0, rest]
        for rest in (0, 4)
    ]
    assert first.banzhaf_interaction == pytest.approx(np.mean(both))
    smallest = every.smallest(0.9)
    for index, line in enumerate(smallest.itertuples()):
        if values[index, -1] <= 0:
            assert line.size == -1
            continue
        sizes = [
            bin(mask).count("1") for mask in range(1, 8) if values[index, mask] >= 0.9 * values[index, -1]
        ]
        assert line.size == min(sizes) == len(line.experts)
        assert set(line.experts) <= set(every.cases.experts[index])
    additive = every.additivity()
    np.testing.assert_allclose(additive.singles, values[:, [1, 2, 4]].sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(additive.difference, values[:, 7] - additive.singles, atol=1e-12)


def test_sampled_orders_approach_the_exact_values(model, cases, every):
    sampled = mt.trace_coalitions(model, cases, layer=1, sets="sampled", n_permutations=200)
    table = sampled.shapley().merge(every.shapley(), on=["case_id", "expert"], suffixes=("", "_exact"))
    assert len(table) == 15
    assert ((table.shapley - table.shapley_exact).abs() <= 5 * table.standard_error + 1e-4).all()


def test_sampled_union_leaves_absent_players_out(model, cases):
    sampled = mt.trace_coalitions(
        model, cases, layer=1, sets="sampled", sampled_players="union", n_permutations=6
    )
    table = sampled.shapley()
    valid = sum(sum(line) for line in sampled.cases.valid)
    assert len(table) == valid
    union = mt.trace_coalitions(model, cases, layer=1, sets="union")
    totals = table.groupby("case_id", sort=False).shapley.sum()
    np.testing.assert_allclose(totals.loc[union.cases.case_id], union.effects[:, 0], atol=1e-4)


def test_summary_save_and_load(every, tmp_path):
    every.save(tmp_path / "c")
    again = mt.load(tmp_path / "c")
    pd.testing.assert_frame_equal(again.shapley(), every.shapley())
    assert list(every.summary(n_resamples=50, n_flips=50).columns[:3]) == ["layer", "coalition", "mean"]
    assert "7 coalitions" in repr(again)
    assert "<table" in every._repr_html_()
