"""Direct effects: the tree beside plain forwards, both beside a literal run whose later layers are frozen."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines import stream
from moetrace.engines.engine_choice import choose_engine
from moetrace.engines.job import Patch, Sweep, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.ending import Ending
from moetrace.models.experts import top_k_of
from moetrace.models.state import prepared
from tests.engines import oracle
from tests.engines.tiny import DENSE, SPARSE, make_cases, make_model
from tests.engines.wide import WIDE, Plain, layers_of, make_wide, subject_noise, without_expert

CASES = make_cases(3)
TINY = [*SPARSE, *DENSE]
ALL = [*TINY, "jamba", *WIDE]
BY_EXPERT = [*SPARSE, "jamba", *(family for family, known in WIDE.items() if known.experts)]
# Several streams, which every layer mixes anew.
# Why a family has none: several streams, or something unknown between the head and the logits.
UNAVAILABLE = {"hy_v4": "one stream", "deepseek_v4": "one stream", "muse_spark": "isn't recognised"}
# What of a later layer is frozen beside its block and its attention.
BESIDE = {"gemma4_text": ("mlp", "per_layer_projection"), "granitemoeshared": ("shared_mlp",)}
LITERAL = ["deepseek_v2", "granitemoeshared", "exaone_moe", "afmoe", "cohere2_moe", "gemma4_text", "laguna"]


@cache
def model_of(family: str) -> Any:
    model = make_wide(family) if family in WIDE else make_model(family)
    return model.requires_grad_(False)


def check(tree: Any, plain: Any, family: str) -> None:
    assert tree.provenance["direct"] == plain.provenance["direct"]
    for name in ("direct", "direct_linear", "indirect"):
        np.testing.assert_allclose(getattr(tree, name), getattr(plain, name), atol=2e-4, err_msg=name)
    if family in UNAVAILABLE:
        assert UNAVAILABLE[family] in tree.provenance["direct"]
        return
    assert tree.provenance["direct"] == "measured"
    assert np.abs(plain.direct).max() > 0.02
    assert np.abs(plain.direct - plain.direct_linear).max() > 1e-3  # the scale of the norm moves
    np.testing.assert_allclose(tree.rows.direct + tree.rows.indirect, tree.rows.rescue, atol=1e-12)


@pytest.mark.parametrize("family", ALL)
def test_layers(family):
    tree = mt.trace_layers(model_of(family), CASES)
    check(tree, mt.trace_layers(model_of(family), CASES, engine="reference"), family)
    if family not in UNAVAILABLE:  # nothing comes behind the last layer
        np.testing.assert_allclose(tree.indirect[:, -1], 0.0, atol=1e-5)
        # Of this random llama4 only the last layer moves anything.
        assert family == "llama4_text" or np.abs(tree.indirect).max() > 1e-3


@pytest.mark.parametrize("family", BY_EXPERT)
def test_experts(family):
    tree = mt.trace_experts(model_of(family), CASES)
    check(tree, mt.trace_experts(model_of(family), CASES, engine="reference"), family)
    assert (tree.direct[~tree.arrays.clean_active] == 0).all()


def frozen_run(
    family: str, case: mt.Case, noise: torch.Tensor, layer: int, row: torch.Tensor | None
) -> float:
    """A noised run with a block's output replaced at the last token, and later layers as without that."""
    model = model_of(family)
    plain = Plain(model, family) if family in WIDE else model
    layers = layers_of(model, family) if family in WIDE else list(model.model.layers)
    blocks = [own.mlp if family in WIDE else oracle.block_of(own) for own in plain.model.layers]
    frozen = []
    for own, block in zip(layers[layer + 1 :], blocks[layer + 1 :], strict=True):
        others = [getattr(own, name) for name in ("self_attn", *BESIDE.get(family, ()))]
        frozen += list(dict.fromkeys([block, *others]))
    kept: dict[Any, Any] = {}
    handles = [own.register_forward_hook(lambda m, _, out: kept.__setitem__(m, out)) for own in frozen]
    oracle.run(plain, case, noise)
    for handle in handles:
        handle.remove()
    handles = [own.register_forward_hook(lambda m, *_: kept[m]) for own in frozen]
    try:
        return oracle.run(plain, case, noise, None if row is None else (layer, row, -1))
    finally:
        for handle in handles:
            handle.remove()


def noise_of(family: str, case: mt.Case) -> torch.Tensor:
    model = model_of(family)
    if family in WIDE:
        return subject_noise(Plain(model, family), case)
    vectors = make_job(find_anatomy(model), []).corruptor.values(case)
    return vectors[0]


@pytest.mark.parametrize("engine", ["tree", "reference"])
@pytest.mark.parametrize("family", [*TINY, *LITERAL])
def test_layers_are_a_run_with_later_layers_frozen(family, engine):
    found = mt.trace_layers(model_of(family), CASES, engine=engine)
    plain = Plain(model_of(family), family) if family in WIDE else model_of(family)
    for index, case in enumerate(CASES):
        noise, clean = noise_of(family, case), {}
        oracle.run(plain, case, keep=clean)
        noised = oracle.run(plain, case, noise)
        for column, layer in enumerate(found.layers):
            assert frozen_run(family, case, noise, layer, None) == noised
            expected = frozen_run(family, case, noise, layer, clean[layer][-1]) - noised
            assert found.direct[index, column] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("engine", ["tree", "reference"])
@pytest.mark.parametrize("family", LITERAL)
def test_experts_are_a_run_with_later_layers_frozen(family, engine):
    case, model = CASES[1], model_of(family)
    layer = find_anatomy(model).sparse_layers[1]
    rows = mt.trace_experts(model, [case], layer=layer, engine=engine).rows
    active = rows[rows.clean_active].set_index("expert").direct
    plain, noise = Plain(model, family), noise_of(family, case)
    whole, routed = without_expert(plain, case, layer, None, None)
    row, noised = without_expert(plain, case, layer, noise, None)
    start = oracle.run(plain, case, noise)
    assert set(active.index) == set(routed)
    for expert in routed:
        delta = whole - without_expert(plain, case, layer, None, expert)[0]
        if expert in noised:
            delta = delta - (row - without_expert(plain, case, layer, noise, expert)[0])
        expected = frozen_run(family, case, noise, layer, row + delta) - start
        assert active[expert] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("engine", [ReferenceEngine, TreeEngine])
@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe", "gpt_oss", "flex_olmo", "deepseek_v3"])
def test_linear_effects_of_experts_add_up_to_their_coalitions(family, engine):
    model = model_of(family)
    anatomy = find_anatomy(model)
    layer = anatomy.sparse_layers[1]
    chosen = [Patch.of_experts(layer, own) for own in (_core.Chosen.CLEAN, _core.Chosen.UNION)]
    with prepared(model):
        job = make_job(anatomy, chosen, mt.SubjectNoise(draws=2), sweeps=[Sweep(layer, 2, of_union=True)])
        job = replace(job, ending=stream.find_ending(job, CASES[0]))
        found = engine(job).run(CASES)
    own = found.routing[layer, 0]
    for column, active in enumerate((own.clean_active, own.patched_active)):
        sums = np.where(active, own.direct_linear, 0.0).sum(axis=2)
        # A norm behind the block (flex_olmo) isn't linear, and a delta is what the layer's output gains.
        if family != "flex_olmo":
            np.testing.assert_allclose(found.direct_linear[:, column], sums, atol=1e-4)
        exact = np.where(active, own.direct, 0.0).sum(axis=2)
        assert np.abs(found.direct[:, column] - exact).max() > 1e-3


@pytest.mark.parametrize("join", _core.Join)
def test_wherever_forks_join_and_however_passes_are_cut(join):
    model = model_of("qwen3_moe")
    anatomy = find_anatomy(model)
    layers = anatomy.sparse_layers
    sweeps = [Sweep(layer, top_k_of(anatomy.config), of_union=True) for layer in layers]
    with prepared(model):
        patches = [*(Patch.block(layer) for layer in layers[::-1]), Patch.null(0)]
        job = make_job(anatomy, patches, mt.SubjectNoise(draws=3), sweeps=sweeps)
        job = replace(job, ending=stream.find_ending(job, CASES[0]))
        expected = ReferenceEngine(job).run(CASES)
        for cases, budget in ((CASES, None), (CASES[:1], 64)):
            found = TreeEngine(job, join, budget).run(cases)
            for name in ("direct", "direct_linear"):
                wanted = getattr(expected, name)[: len(cases)]
                np.testing.assert_allclose(getattr(found, name), wanted, atol=2e-5)
                for layer, own in found.routing.items():
                    wanted = getattr(expected.routing[layer], name)[: len(cases)]
                    np.testing.assert_allclose(getattr(own, name), wanted, atol=2e-5)
    np.testing.assert_allclose(found.direct[:, -1], 0.0, atol=1e-6)  # of the null patch


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_an_earlier_token_has_no_direct_effect(engine):
    model = model_of("qwen3_moe")
    # -9 is the final token of none, 7 that of the case with 8 tokens.
    cases = [*CASES, mt.Case(list(range(3, 11)), (1, 3), 40, 41, 7)]
    found = mt.trace_layers(model, cases, layers=[0, 1, 2], position=7, engine=engine)
    assert (
        found.provenance["direct"] == "measured; 0 in 3 of 4 cases, whose patched token isn't the final one"
    )
    assert (found.direct[:3] == 0).all()
    assert (found.direct_linear[:3] == 0).all()
    np.testing.assert_array_equal(found.indirect[:3], found.effects[:3])
    last = mt.trace_layers(model, cases[3:], layers=[0, 1, 2], engine=engine)
    np.testing.assert_allclose(found.direct[3], last.direct[0], atol=1e-5)
    assert np.abs(last.direct).max() > 0.02


def scaled_stream() -> Any:
    model = make_model("qwen3_moe")
    model.model.layers[2].register_forward_hook(lambda _m, _a, out: out * 0.5)
    return model


def changed_head() -> Any:
    model = make_model("qwen3_moe")
    model.lm_head.register_forward_hook(lambda _m, _a, out: out.sinh())
    return model


def two_norms() -> Any:
    model = make_model("qwen3_moe")
    model.lm_head.register_forward_pre_hook(lambda _m, args: (args[0] * 2.0,))
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (scaled_stream, "its layers change the residual stream .* behind layer 0 arrives changed by 0.5 "),
        (changed_head, "between its head and its logits isn't recognised"),
        (two_norms, "more than one norm of the last layer's output"),
    ],
)
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_where_they_mean_nothing_they_are_not_available(make, reason, engine):
    model = make()
    traced = mt.trace_layers(model, CASES, engine=engine)
    said = traced.provenance["direct"]
    assert said.startswith("direct effects aren't available for Qwen3MoeForCausalLM: ")
    assert re.search(reason, said), said
    assert np.isnan(traced.direct).all()
    assert np.isnan(traced.rows.indirect).all()
    assert np.isfinite(traced.effects).all()
    experts = mt.trace_experts(model, CASES, layer=1, engine=engine)
    assert np.isnan(experts.direct[experts.arrays.clean_active]).all()
    assert (experts.direct[~experts.arrays.clean_active] == 0).all()


def test_a_norm_that_gives_something_else_each_time():
    model, calls = make_model("qwen3_moe"), []

    def norm(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return out * (1.0 + 0.1 * len(calls))

    model.model.norm.register_forward_hook(norm)
    with prepared(model):
        found = stream.find_ending(make_job(find_anatomy(model), [Patch.block(0)]), CASES[0])
    assert "give other logits by themselves" in str(found.fault)


def test_a_model_that_fails_in_the_check_is_traced_without_them(monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(stream, "_found", fail)
    found = mt.trace_layers(make_model("qwen3_moe"), CASES)
    assert np.isnan(found.direct).all()
    assert "failed (RuntimeError: no such thing)" in found.provenance["direct"]
    assert np.isfinite(found.effects).all()


def test_a_layer_behind_which_nothing_scales_has_them():
    model = scaled_stream()
    found = mt.trace_layers(model, CASES, layers=[2, 3])
    assert found.provenance["direct"] == "measured"
    np.testing.assert_allclose(found.indirect[:, -1], 0.0, atol=1e-5)


def test_scales_of_layers_are_seen():
    model = make_wide("gemma4_text")
    with torch.no_grad():
        model.model.layers[3].layer_scalar.fill_(0.5)
    assert "its layers change the residual stream" in mt.trace_layers(model, CASES).provenance["direct"]


def test_a_norm_of_another_form_has_no_linear_effects():
    model = make_model("qwen3_moe")

    class Tanh(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.tanh(hidden)

    model.model.norm = Tanh()
    found = mt.trace_layers(model, CASES)
    assert np.isnan(found.direct_linear).all()
    assert np.isfinite(found.direct).all()
    np.testing.assert_allclose(found.indirect[:, -1], 0.0, atol=1e-5)
    assert found.provenance["direct"].startswith("measured; linear direct effects aren't available")


class Centred(torch.nn.Module):
    """A layer norm of another name whose gain is kept as what is added to 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-0.5, 0.5, width))
        self.bias = torch.nn.Parameter(torch.linspace(1.0, 2.0, width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], 1 + self.weight, self.bias, 1e-6)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_linear_effects_are_the_slope_with_the_scale_held(cap):
    """Against finite differences of the definition, with a centring norm, a bias and a soft cap."""
    model = make_wide("gemma4_text") if cap else make_model("qwen3_moe")
    width = model.config.hidden_size
    model.model.norm = Centred(width).requires_grad_(False)
    model.requires_grad_(False)
    if cap:
        model.config.final_logit_softcapping = cap
    anatomy = find_anatomy(model)
    torch.manual_seed(0)
    noised, delta = torch.randn(1, 1, width), torch.randn(1, 1, 1, width)
    tokens = torch.tensor([(11, 41)])
    with prepared(model):
        job = make_job(anatomy, [Patch.block(0)])
        ending = stream.find_ending(job, CASES[0])
        assert ending.fault is ending.linear_fault is None

        def difference(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            x = x.double() - x.double().mean()
            scale = (like.double().var(unbiased=False) + 1e-6).sqrt()
            normed = x / scale * (1 + model.model.norm.weight) + model.model.norm.bias
            logits = normed @ anatomy.head.weight[tokens[0]].double().T
            logits = cap * torch.tanh(logits / cap) if cap else logits
            return logits[0] - logits[1]

        h, d = noised[0, 0], delta[0, 0, 0]
        base = difference(h, h)[None, None]
        exact, linear = ending.effects(noised, delta, tokens, base)
    assert float(exact) == pytest.approx(float(difference(h + d, h + d) - base), abs=1e-5)
    step = 1e-4
    slope = (difference(h.double() + step * d.double(), h) - base) / step
    assert float(linear) == pytest.approx(float(slope), abs=2e-3)


@pytest.mark.parametrize("readout", ["exact", "model"])
def test_half_precision(readout):
    model, wide = make_model("qwen3_moe").bfloat16(), make_model("qwen3_moe").bfloat16().float()
    found = mt.trace_layers(model, CASES, readout=readout)
    assert found.provenance["direct"] == "measured"
    expected = mt.trace_layers(wide, CASES)
    np.testing.assert_allclose(found.direct, expected.direct, atol=0.1)
    np.testing.assert_allclose(found.direct_linear, expected.direct_linear, atol=0.1)
    assert np.corrcoef(found.direct.ravel(), expected.direct.ravel())[0, 1] > 0.99


def test_a_case_where_the_model_reads_out_otherwise_is_nan():
    model = make_model("qwen3_moe")
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(0)])
        ending = stream.find_ending(job, CASES[0])
        noised, deltas = torch.randn(2, 1, 32), torch.randn(2, 3, 1, 32)
        tokens = torch.tensor([(11, 41)] * 2)
        start = ending.readout(ending.normed(noised), tokens)
        told = (start[..., 0] - start[..., 1]) + torch.tensor([[0.0], [0.01]])
        exact, linear = ending.effects(noised, deltas, tokens, told)
    assert torch.isfinite(exact[0]).all()
    assert torch.isfinite(linear[0]).all()
    assert torch.isnan(exact[1]).all()
    assert torch.isnan(linear[1]).all()


def test_what_was_found_is_known_until_the_model_changes(monkeypatch):
    model, made = make_model("qwen3_moe"), []
    found = stream.find_ending
    monkeypatch.setattr("moetrace.engines.engine_choice.find_ending", lambda *a: made.append(a) or found(*a))
    for _ in range(2):
        mt.trace_layers(model, CASES)
    assert len(made) == 1
    model.model.layers[2].register_forward_hook(lambda _m, _a, out: out * 0.5)
    assert np.isnan(mt.trace_layers(model, CASES).direct).all()
    assert len(made) == 2
    with prepared(model):
        job = make_job(find_anatomy(model), [Patch.block(0)])
        assert choose_engine(job, CASES).engine.job.ending is None


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_forms_of_norms_are_told_apart_where_the_stream_has_no_mean(centred, plus_one):
    width = 16

    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-1.5, 1.0, width), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x - x.mean(dim=-1, keepdim=True) if centred else x
            return (self.weight + plus_one) * x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()

    norm = Norm()
    hidden = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    hidden -= hidden.mean(dim=1, keepdim=True)
    hidden[2] = torch.nan
    gain, centres, scale = Ending(norm).form_of(hidden)
    torch.testing.assert_close(gain, norm.weight.double() + plus_one)
    assert centres == centred
    torch.testing.assert_close(scale[:2], hidden[:2].square().mean(dim=1).add(1e-5).sqrt().double())
    assert torch.isnan(scale[2])
