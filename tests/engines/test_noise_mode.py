"""mode="noise": noised values into the clean run, against hooks written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from tests.engines.oracle import embedding_output_std, run
from tests.engines.tiny import LAYERS, make_cases, make_model

CASES = make_cases(3)


def by_hand(model: Any, case: mt.Case) -> tuple[np.ndarray, float]:
    """Effect of each layer's noised block output in the clean run, and the clean logit difference."""
    start, stop = case.subject
    generator = torch.Generator().manual_seed(case.case_id)
    noise = torch.randn(stop - start, model.config.hidden_size, generator=generator)
    noised: dict[int, torch.Tensor] = {}
    run(model, case, noise * (3.0 * embedding_output_std(model)), keep=noised)
    clean = run(model, case)
    last = len(case.input_ids) - 1
    patched = [run(model, case, None, (layer, noised[layer][last], last)) for layer in range(LAYERS)]
    return np.array(patched) - clean, clean


@pytest.mark.parametrize("engine", ["tree", "reference"])
@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe", "llama"])
def test_layers_equal_hooks_by_hand(family, engine):
    model = make_model(family)
    found = mt.trace_layers(model, CASES, mode="noise", engine=engine)
    for index, case in enumerate(CASES):
        effects, clean = by_hand(model, case)
        np.testing.assert_allclose(found.effects[index], effects, atol=2e-4)
        assert found.cases.clean[index] == pytest.approx(clean, abs=1e-4)
    rows = found.rows
    np.testing.assert_allclose(rows.rescue, rows.patched - rows.clean, atol=1e-9)
    assert found.provenance["mode"] == "noise"
    assert found.best == found.layers[int(found.effects.mean(axis=0).argmin())]
    assert found.noise_floor < 1e-4
    taken = rows.groupby("layer")[["clean", "noised", "patched"]].mean()
    share = (taken.clean - taken.patched) / (taken.clean - taken.noised)
    np.testing.assert_allclose(found.normalised(n_resamples=50).ratio, share)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_experts_and_coalitions_of_both_engines_agree(family):
    model, options = make_model(family), {"mode": "noise", "noise": mt.SubjectNoise(draws=2)}
    tree, plain = (mt.trace_experts(model, CASES, engine=e, **options) for e in ("tree", "reference"))
    np.testing.assert_allclose(tree.effects, plain.effects, atol=2e-4)
    np.testing.assert_allclose(tree.direct, plain.direct, atol=5e-4)
    assert (tree.effects[~tree.arrays.clean_active] == 0).all()
    layer = tree.layers[-1]
    sets = {"layer": layer, "sets": [[1, 2, 3], [0]]}
    first, second = (
        mt.trace_coalitions(model, CASES, engine=e, **sets, **options) for e in ("tree", "reference")
    )
    np.testing.assert_allclose(first.effects, second.effects, atol=2e-4)
    worst = first.sites.coalition.iloc[int(first.effects.mean(axis=0).argmin())]
    assert f"lowest mean rescue {first.effects.mean(axis=0).min():+.3f} of {worst})" in repr(first)
    assert "0 cases" in repr(first.subset([]))


def test_all_experts_noised_are_the_block_noised():
    """Without shared experts the union of patch vectors is all that the block changes by (appendix G)."""
    model = make_model("qwen3_moe")
    union = mt.trace_coalitions(model, CASES, layer=2, sets="union", mode="noise")
    block = mt.trace_layers(model, CASES, layers=2, mode="noise")
    np.testing.assert_allclose(union.effects[:, 0], block.effects[:, 0], atol=1e-4)
    assert np.abs(block.effects).max() > 1e-2


def test_the_most_harmful_expert_is_selected_and_modes_are_not_mixed(tmp_path):
    model = make_model("qwen3_moe")
    found = mt.trace_experts(model, CASES, layer=1, mode="noise")
    star = found.select(min_active=1)
    active = found.arrays.clean_active.any(axis=0)
    sums, counts = found.effects.sum(axis=0), np.maximum(1, found.arrays.clean_active.sum(axis=0))
    assert star.expert == np.where(active, sums / counts, np.inf).argmin()
    found.save(tmp_path / "noise")
    again = mt.load(tmp_path / "noise")
    assert again.select(min_active=1) == star
    assert "effect" in found.plot(n_flips=20, n_resamples=20).get_ylabel()
    with pytest.raises(mt.errors.ArgumentError, match="mode"):
        found.layer_share(star, mt.trace_layers(model, CASES))
    with pytest.raises(mt.errors.ArgumentError, match="'noisy'"):
        mt.trace_layers(model, CASES, mode="noisy")


@pytest.mark.parametrize("trace", ["trace_routes", "trace_paths", "screen_experts"])
def test_traces_of_clean_values_alone_refuse_it(trace):
    own = {"pairs": [(1, 2)]} if trace == "trace_paths" else {}
    with pytest.raises(mt.errors.ArgumentTypeError, match=f"{trace} has no argument 'mode'"):
        getattr(mt, trace)(make_model("qwen3_moe"), CASES, mode="noise", **own)
