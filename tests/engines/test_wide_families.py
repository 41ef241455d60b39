"""The families beyond tiny.py: layers and experts by the tree, by plain forwards and by plain hooks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace.engines.job import Sweep, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines import oracle
from tests.engines.newer import NEWER
from tests.engines.tiny import COMMON, LAYERS, make_cases
from tests.engines.wide import (
    WIDE,
    Plain,
    block_of,
    expert_rescue,
    experts_of,
    layers_of,
    llama4,
    make_wide,
    minimax_m3,
)

CASES = make_cases(3)
LOOPED = "inkling2_loop"
KNOWN = {**WIDE, **NEWER}
ALL = [family for family in KNOWN if family != LOOPED]
BY_EXPERT = [family for family in ALL if KNOWN[family].experts]
# Experts whose contributions pass a norm inside the block, or whose inputs are weighed: only literal ablation
# is right.
NORM_AFTER_EXPERTS = ("axk1", "muse_spark", "llama4_text")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    known = KNOWN[request.param]
    try:
        getattr(tf, known.architecture)
        known.config()
    except AttributeError as absent:
        pytest.skip(f"transformers {tf.__version__} has no {request.param} ({absent})")
    return make_wide(known)


def each(families: list[str]) -> Any:
    """One model for all tests of a family, which run one after another."""
    return pytest.mark.parametrize(
        ("model", "family"), [(f, f) for f in families], indirect=["model"], ids=families, scope="module"
    )


@each(ALL)
def test_blocks_and_experts_are_found(model, family):
    found, known = find_anatomy(model), KNOWN[family]
    layers = layers_of(model, known)
    assert [id(layer) for layer in found.layers] == [id(layer) for layer in layers]
    assert len(found.layers) == LAYERS
    for site, layer in zip(found.sites, layers, strict=True):
        block = block_of(layer, known)
        assert site is not None
        assert site.block is block
        if site.experts is not None:
            assert site.experts is experts_of(block)
            assert site.router is not None
            assert site.router in layer.modules()
    assert found.sparse_layers in (tuple(range(LAYERS)), tuple(range(1, LAYERS)))


@each(ALL)
def test_layers(model, family):
    auto = mt.trace_layers(model, CASES)
    known = KNOWN[family]
    assert auto.provenance["engine"] == ("tree" if known.tree else "reference"), auto.provenance[
        "engine_reason"
    ]
    if known.tree:
        joins = "their layer" if known.grow else "before the first layer"
        assert joins in auto.provenance["engine_reason"]
    plain = mt.trace_layers(model, CASES, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    assert auto.noise_floor < 2e-4
    view = Plain(model, known)
    expected = np.stack([oracle.rescue(view, case, list(auto.layers)) for case in CASES])
    assert np.abs(expected).max() > 0.02  # the patches do something
    np.testing.assert_allclose(plain.effects, expected, atol=2e-4)


@each(BY_EXPERT)
def test_experts(model, family):
    auto = mt.trace_experts(model, CASES)
    literal = KNOWN[family].tree and family not in NORM_AFTER_EXPERTS
    assert auto.provenance["engine"] == ("tree" if literal else "reference"), auto.provenance["engine_reason"]
    plain = mt.trace_experts(model, CASES, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    assert np.abs(plain.effects).max() > 0.02
    np.testing.assert_array_equal(auto.rows.clean_active, plain.rows.clean_active)
    np.testing.assert_allclose(auto.rows.delta_norm, plain.rows.delta_norm, rtol=1e-4, atol=2e-4)


@each(BY_EXPERT)
def test_experts_are_the_definition(model, family):
    layer = find_anatomy(model).sparse_layers[1]
    case = CASES[1]
    rows = mt.trace_experts(model, [case], layer=layer).rows
    active = rows[rows.clean_active].set_index("expert").rescue
    expected = expert_rescue(model, KNOWN[family], case, layer)
    assert set(active.index) == set(expected)
    for expert, rescue in expected.items():
        assert active[expert] == pytest.approx(rescue, abs=2e-4)


@each(["jetmoe"])
def test_other_layouts_of_experts_are_refused(model, family):
    reason = "can't be traced one by one: .*found activation, input_linear, .*trace_layers serves"
    for engine in ("auto", "reference"):
        with pytest.raises(mt.errors.LayerRangeError, match=reason):
            mt.trace_experts(model, CASES, engine=engine)


@each(["llama4_text"])
def test_experts_whose_inputs_are_weighed(model, family):
    """An expert's contribution is no multiple of its output: ablated literally, and said to be."""
    found = mt.trace_experts(model, CASES)
    assert "inputs that the router has weighed" in found.provenance["engine_reason"]
    layer, case = 2, CASES[1]
    with prepared(model):
        job = make_job(find_anatomy(model), [], None, sweeps=[Sweep(layer, 2)])
        routing = ReferenceEngine(job).run([case]).routing[layer, 0]
    kept = {}
    router = model.model.layers[layer].feed_forward.router
    handle = router.register_forward_hook(lambda _m, _a, output: kept.update(out=output))
    with torch.no_grad():
        model(input_ids=torch.tensor([case.input_ids]), use_cache=False)
    handle.remove()
    scores, logits = (value[-1] for value in kept["out"])
    np.testing.assert_allclose(routing.clean_weight[0, 0], scores, atol=1e-6)
    np.testing.assert_allclose(routing.clean_logit[0, 0], logits, atol=1e-4)
    assert list(routing.routed[0, 0, :2]) == logits.topk(2).indices.tolist()
    with pytest.raises(mt.errors.EngineError, match="weighed"):
        mt.trace_experts(model, CASES, engine="tree")


@pytest.mark.parametrize(
    "known",
    [
        # temperatures by slot, and key blocks by slot: a tree's slots aren't positions
        replace(WIDE["llama4_text"], config=lambda: llama4(floor_scale=4)),
        replace(WIDE["minimax_m3"], config=lambda: minimax_m3(block_size=8)),
    ],
    ids=["llama4 floor_scale", "minimax_m3 blocks"],
)
def test_attention_that_counts_its_slots_is_unfolded(known):
    model = make_wide(known)
    result = mt.trace_layers(model, CASES)
    assert result.provenance["engine"] == "tree"
    assert "Attention, unfolded" in result.provenance["engine_reason"]
    plain = mt.trace_layers(model, CASES, engine="reference")
    np.testing.assert_allclose(result.effects, plain.effects, atol=2e-4)


def test_the_check_has_as_many_rows_as_the_trace():
    # One draw's rows, rounded up to 64 in the check, fit in one block of 64 keys; three draws' don't.
    model = make_wide(replace(WIDE["minimax_m3"], config=lambda: minimax_m3(block_size=64)))
    case = mt.Case(list(range(3, 17)), (0, 2), 40, 41, 0)
    few = mt.trace_experts(model, [case])
    assert "unfolded" not in few.provenance["engine_reason"]
    noise = mt.SubjectNoise(draws=3)
    many = mt.trace_experts(model, [case], union=True, noise=noise)
    assert "Attention, unfolded" in many.provenance["engine_reason"]
    plain = mt.trace_experts(model, [case], union=True, noise=noise, engine="reference")
    np.testing.assert_allclose(many.effects, plain.effects, atol=2e-4)


def test_a_norm_after_the_experts_needs_literal_ablation():
    model = make_wide("axk1")
    with pytest.raises(mt.errors.EngineError, match="does more with the sum of its experts than scale it"):
        mt.trace_experts(model, CASES, engine="tree")


def test_a_decoder_without_a_block_is_refused_with_what_was_found():
    config = tf.OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    with pytest.raises(mt.errors.LayoutError, match=r"found .*fc1, fc2"):
        mt.trace_layers(tf.OPTForCausalLM(config).eval(), CASES)


def test_a_dense_model_may_count_experts_that_it_does_not_have():
    torch.manual_seed(0)
    model = tf.DogeForCausalLM(tf.DogeConfig(**COMMON)).eval()
    assert model.config.num_experts > 1
    assert model.config.is_moe is False
    auto = mt.trace_layers(model, CASES)
    assert auto.provenance["engine"] == "tree"
    assert auto.layers == tuple(range(LAYERS))
    plain = mt.trace_layers(model, CASES, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    with pytest.raises(mt.errors.LayoutError, match="no layers with routed experts"):
        mt.trace_experts(model, CASES)


def test_identity_experts_beside_gated_ones():
    model = make_wide("longcat_flash", seed=1)  # with calls that route to gated experts alone, and others
    cases = make_cases(3, seed=2)
    auto = mt.trace_experts(model, cases)
    plain = mt.trace_experts(model, cases, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    rows = auto.rows[auto.rows.clean_active]
    assert set(rows.expert) == set(range(10))  # the last two give back what they get


@each([LOOPED])
def test_layers_outside_a_loop(model, family):
    """A patch of a layer that runs three times has no single meaning; those before and behind have one."""
    with pytest.raises(mt.errors.LoopedLayerError, match=r"trace layers=\[0, 3\]"):
        mt.trace_layers(model, CASES)
    found = mt.trace_layers(model, CASES, layers=[0, 3])
    view = Plain(model, KNOWN[family])
    expected = np.stack([oracle.rescue(view, case, [0, 3]) for case in CASES])
    np.testing.assert_allclose(found.effects, expected, atol=2e-4)


@each(["ernie4_5_vl_moe"])
def test_a_router_beside_the_experts_for_text(model, family):
    """Experts for text and experts for images have routers of their own."""
    layer = find_anatomy(model).sparse_layers[1]
    site, block = find_anatomy(model).site(layer), layers_of(model, family)[layer].mlp
    assert site.router is block.text_moe.gate
    found = {}
    for engine in ("tree", "reference"):
        with prepared(model):
            job = make_job(find_anatomy(model), [], None, sweeps=[Sweep(layer, 2)])
            made = {"tree": TreeEngine, "reference": ReferenceEngine}[engine](job).run(CASES)
        found[engine] = made.routing[layer, 0].clean_logit
    assert found["tree"].shape == (len(CASES), 1, 8)
    np.testing.assert_allclose(found["tree"], found["reference"], atol=1e-4)
