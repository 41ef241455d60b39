"""First-order estimates against finite differences of hand-patched runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace import errors
from tests.engines import oracle
from tests.engines.tiny import make_cases, make_model
from tests.engines.wide import Plain, make_wide, subject_noise, without_expert

CLOSE = {"rel": 5e-3, "abs": 1e-3}
FAMILIES = ["qwen3_moe", "mixtral_window", "deepseek_v3", "gpt_oss", "granitemoe", "qwen2_moe"]
STEP = 0.004  # norms and routers compute in float32 whatever the weights are


def precise_model(family):
    model = make_model(family).double()
    model.set_experts_implementation("eager")  # grouped products end at float32
    return model


def noise_of(model, case, number=0):
    start, stop = case.subject
    generator = torch.Generator().manual_seed(case.case_id)
    for _ in range(number + 1):
        draw = torch.randn(stop - start, model.config.hidden_size, generator=generator)
    return (draw * (3.0 * oracle.embedding_output_std(model))).to(next(model.parameters()).dtype)


def contributions(model, case, noise, position):
    """By layer and expert w_e E_e(h) at a token, straight from the calls of the experts."""
    found, handles = {}, []
    for index, layer in enumerate(oracle.layers_of(model)):
        experts = getattr(oracle.block_of(layer), "experts", None)
        if experts is None:
            continue

        def hook(module, args, kwargs, index=index):
            hidden, chosen, weights = [*args, *kwargs.values()][:3]
            own = found.setdefault(index, {})
            for slot in range(chosen.shape[1]):
                one = (slice(position, position + 1), slice(slot, slot + 1))
                row = hidden[position : position + 1]
                own[int(chosen[position, slot])] = module.forward(row, chosen[one], weights[one])[0]

        handles.append(experts.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        oracle.run(model, case, noise)
    finally:
        for handle in handles:
            handle.remove()
    return found


def slopes(model, case, position, number=0):
    """By (layer, expert): how fast a run's logit difference changes with the share of delta_e added to it."""
    noise = noise_of(model, case, number)
    at = position % len(case.input_ids)
    clean, noised = contributions(model, case, None, at), contributions(model, case, noise, at)
    kept: dict[int, torch.Tensor] = {}
    oracle.run(model, case, noise, keep=kept)
    found = {}
    for layer, own in clean.items():
        for expert, value in own.items():
            delta = value - noised[layer].get(expert, torch.zeros_like(value))
            near, far = (
                oracle.run(model, case, noise, (layer, kept[layer][at] + times * STEP * delta, at))
                - oracle.run(model, case, noise, (layer, kept[layer][at] - times * STEP * delta, at))
                for times in (1, 2)
            )
            slope = (8 * near - far) / (12 * STEP)  # to the fourth order in the step
            smooth = abs(near / 2 - far / 4) < STEP * (0.01 + 0.02 * abs(slope))
            found[layer, expert] = slope if smooth else None  # a router changed its choice in between
    return found


@pytest.mark.parametrize(("family", "position"), [*((name, -1) for name in FAMILIES), ("qwen3_moe", -3)])
def test_estimates_are_the_slope_of_the_exact_rescue(family, position):
    model, cases = precise_model(family), make_cases(2)
    rows = mt.screen_experts(model, cases, position=position, verify=False).rows
    smooth, large, sites = 0, 0, 0
    for case in cases:
        expected = slopes(model, case, position)
        own = rows[rows.case_id == case.case_id].set_index(["layer", "expert"])
        assert set(own.index[own.clean_active]) == set(expected)
        assert (own.estimate[~own.clean_active] == 0).all()
        sites += len(expected)
        for site, slope in expected.items():
            if slope is not None:
                assert own.estimate[site] == pytest.approx(slope, **CLOSE), (case.case_id, site)
                smooth, large = smooth + 1, large + (abs(slope) > 0.01)
    assert smooth > 0.7 * sites
    assert large > 0.4 * sites


def test_a_case_alone_and_among_others():
    model, cases = make_model("qwen3_moe"), make_cases(7)
    together = mt.screen_experts(model, cases, verify=False)
    small = mt.screen_experts(model, cases[::-1], verify=False, batch_tokens=1)
    alone = mt.concat([mt.screen_experts(model, [case], verify=False) for case in cases])
    np.testing.assert_allclose(together.effects, alone.effects, atol=1e-5)
    np.testing.assert_allclose(together.effects, small.subset(together.cases.case_id).effects, atol=1e-5)
    assert np.abs(together.effects).max() > 0.1


def test_every_token_is_one_position_after_another():
    model, cases = make_model("mixtral_window"), make_cases(4)
    everywhere = mt.screen_experts(model, cases, position="all", verify=False)
    sites = everywhere.sites
    longest = max(len(case.input_ids) for case in cases)
    assert sorted(set(sites.position)) == list(range(longest))
    for position in (-1, -4, 0):
        one = mt.screen_experts(model, cases, position=position, verify=False)
        for index, case in enumerate(cases):
            columns = (sites.position == position % len(case.input_ids)).to_numpy()
            np.testing.assert_allclose(everywhere.effects[index, columns], one.effects[index], atol=1e-5)
            assert (everywhere.clean_active[index, columns] == one.clean_active[index]).all()
    assert np.abs(everywhere.effects[:, (sites.position == 7).to_numpy()]).max() > 1e-3


def test_draws_are_averaged():
    model, (case,) = precise_model("qwen3_moe"), make_cases(1)
    found = mt.screen_experts(model, [case], noise=mt.SubjectNoise(draws=2), verify=False)
    first, second = (slopes(model, case, -1, number) for number in (0, 1))
    own = found.rows.set_index(["layer", "expert"])
    smooth = [site for site in first if first[site] is not None and second[site] is not None]
    assert len(smooth) > 3
    for site in smooth:
        assert own.estimate[site] == pytest.approx((first[site] + second[site]) / 2, **CLOSE)
        assert first[site] != pytest.approx(second[site], rel=1e-2)


def test_in_half_precision():
    model, cases = make_model("qwen3_moe"), make_cases(5)
    exact = mt.screen_experts(model, cases, verify=False)
    rounded = mt.screen_experts(model.bfloat16(), cases, verify=False)
    both = exact.clean_active & rounded.clean_active
    assert both.sum() > 0.8 * exact.clean_active.sum()
    assert np.corrcoef(exact.effects[both], rounded.effects[both])[0, 1] > 0.9


def test_experts_that_are_not_linear_in_their_weights_are_refused():
    model, cases = make_model("qwen3_moe"), make_cases(2)
    experts = model.model.layers[1].mlp.experts
    forward = experts.forward
    experts.forward = lambda hidden, index, weights: forward(hidden, index, weights) ** 3
    with pytest.raises(errors.ContributionError, match=r"layer 1.*linear"):
        mt.screen_experts(model, cases, verify=False)


@pytest.mark.parametrize("family", ["gemma4_text", "deepseek_v4", "dbrx", "longcat_flash"])
def test_other_layouts_by_ablation(family):
    """Experts beside a dense MLP, routed by token id, in three dimensions, and identity experts."""
    model, (case,) = make_wide(family), make_cases(1)
    plain, step = Plain(model, family), 0.01
    noise = subject_noise(plain, case)
    own = mt.screen_experts(model, [case], verify=False).rows.set_index(["layer", "expert"])
    for layer in sorted(set(own.index.get_level_values(0)))[-2:]:
        whole, routed = without_expert(plain, case, layer, None, None)
        row, noised = without_expert(plain, case, layer, noise, None)
        for expert in routed:
            delta = whole - without_expert(plain, case, layer, None, expert)[0]
            if expert in noised:
                delta = delta - (row - without_expert(plain, case, layer, noise, expert)[0])
            ends = [
                oracle.run(plain, case, noise, (layer, row + sign * step * delta, -1)) for sign in (1, -1)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            assert own.estimate[layer, expert] == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_a_norm_behind_the_experts_is_refused():
    with pytest.raises(errors.ContributionError, match=r"MuseSparkMoE .*engine='reference'"):
        mt.screen_experts(make_wide("muse_spark"), make_cases(1), verify=False)
