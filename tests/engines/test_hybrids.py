"""Models with recurrences, convolutions and compressed attention: their mixers unfolded, the rest a tree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Patch, make_job
from moetrace.engines.mixers import classes_of, look_for_mixers
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models import mixers as running
from moetrace.models.anatomy import find_anatomy
from moetrace.models.mixers import Mixer, Way
from moetrace.models.state import prepared
from tests.engines import oracle
from tests.engines.hybrids import HYBRIDS
from tests.engines.tiny import make_cases
from tests.engines.wide import Plain, expert_rescue, make_wide

CASES = make_cases(3)
ALL = list(HYBRIDS)
CONTINUED, STEPPED, WHOLE = Way.CONTINUED, Way.STEPPED, Way.WHOLE
# What has to be unfolded, and the cheapest way in which it can be run.
MIXERS = {
    "qwen3_next": {"Qwen3NextGatedDeltaNet": CONTINUED},
    "qwen3_5_moe": {"Qwen3_5MoeGatedDeltaNet": CONTINUED},
    "qwen4_exp": {"Qwen4ExpTextGatedDeltaNet": CONTINUED, "Qwen4ExpTextPLELayer": CONTINUED},
    "granitemoehybrid": {"GraniteMoeHybridMambaLayer": CONTINUED},
    "minimax": {"MiniMaxLightningAttention": CONTINUED},
    "jamba": {"JambaMambaMixer": STEPPED},
    "lfm2_moe": {"Lfm2MoeShortConv": CONTINUED},
    "nemotron_h": {"NemotronHMamba2Mixer": CONTINUED},
    "kimi_linear": {"KimiLinearDeltaAttention": CONTINUED},
    "zaya": {"ZayaAttention": CONTINUED},
    "inkling": {"InklingAttention": CONTINUED, "InklingShortConvolution": CONTINUED},
    "inkling2": {
        "Inkling2FullAttention": CONTINUED,
        "Inkling2ShortConvolution": CONTINUED,
        "Inkling2SlidingAttention": CONTINUED,
    },
    "bailing_hybrid": {"BailingHybridDeltaAttention": CONTINUED},
    "lara_mini": {"LaraMiniGatedDeltaNet": CONTINUED},
    "glm5_next": {"Glm5NextTextAttention": CONTINUED, "Glm5NextTextLinearAttention": CONTINUED},
    "deepseek_v4": {"DeepseekV4Attention": CONTINUED},
    "minimax_m3": {"MiniMaxM3VLAttention": CONTINUED},
}


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return make_wide(HYBRIDS[request.param])


def each(families: list[str]) -> Any:
    """One model for all tests of a family, which run one after another."""
    return pytest.mark.parametrize(
        ("model", "family"), [(f, f) for f in families], indirect=["model"], ids=families, scope="module"
    )


def job_of(model: Any, *patches: Any, **options: Any) -> Any:
    return make_job(find_anatomy(model), patches, options.pop("noise", None), **options)


def mixers_of(model: Any, job: Any) -> tuple[Mixer, ...]:
    with prepared(model):
        return look_for_mixers(job, CASES[0], 64, 1e-3)


@each(ALL)
def test_layers(model, family):
    auto = mt.trace_layers(model, CASES)
    assert auto.provenance["engine"] == "tree", auto.provenance["engine_reason"]
    assert ", ".join(MIXERS[family]) in auto.provenance["engine_reason"]
    assert auto.noise_floor < 2e-4
    view = Plain(model, HYBRIDS[family])
    expected = np.stack([oracle.rescue(view, case, list(auto.layers)) for case in CASES])
    assert np.abs(expected).max() > 0.02  # the patches do something
    np.testing.assert_allclose(auto.effects, expected, atol=2e-4)


@each(ALL)
def test_experts_of_two_draws(model, family):
    noise = mt.SubjectNoise(draws=2)
    auto = mt.trace_experts(model, CASES, noise=noise)
    assert auto.provenance["engine"] == "tree", auto.provenance["engine_reason"]
    plain = mt.trace_experts(model, CASES, noise=noise, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    assert np.abs(plain.effects).max() > 0.02
    np.testing.assert_array_equal(auto.rows.clean_active, plain.rows.clean_active)


@each(ALL)
def test_coalitions_and_experts_by_definition(model, family):
    layer, case = find_anatomy(model).sparse_layers[1], CASES[1]
    auto = mt.trace_coalitions(model, CASES, layer=layer, sets="all")
    assert auto.provenance["engine"] == "tree"
    plain = mt.trace_coalitions(model, CASES, layer=layer, sets="all", engine="reference")
    np.testing.assert_allclose(auto.rows.rescue, plain.rows.rescue, atol=2e-4)
    rows = mt.trace_experts(model, [case], layer=layer).rows
    active = rows[rows.clean_active].set_index("expert").rescue
    for expert, rescue in expert_rescue(model, HYBRIDS[family], case, layer).items():
        assert active[expert] == pytest.approx(rescue, abs=2e-4)


@each(ALL)
def test_mixers_are_told_by_what_they_do(model, family):
    job = job_of(model, Patch.block(1))
    found = mixers_of(model, job)
    ways = {(type(mixer.module(job.anatomy)).__name__, mixer.way) for mixer in found}
    assert ways == set(MIXERS[family].items())
    assert classes_of(found, job.anatomy) == list(MIXERS[family])
    assert all((mixer.cache is None) == (mixer.way is WHOLE) for mixer in found)


@each(["qwen3_next", "jamba", "zaya", "inkling", "glm5_next", "deepseek_v4", "minimax_m3"])
@pytest.mark.parametrize("position", ["subject_last", 2])
def test_earlier_tokens(model, family, position):
    """Forks of several rows, which leave their run at another token in each case."""
    auto = mt.trace_layers(model, CASES, position=position)
    assert auto.provenance["engine"] == "tree", auto.provenance["engine_reason"]
    plain = mt.trace_layers(model, CASES, position=position, engine="reference")
    np.testing.assert_allclose(auto.effects, plain.effects, atol=2e-4)
    assert np.abs(plain.effects).max() > 0.02


@each(["qwen3_next", "jamba", "inkling"])
@pytest.mark.parametrize("position", ["last", "subject_last"])
def test_every_way_gives_the_same(model, family, position, monkeypatch):
    """From a state, token by token, from the first token, and a few sequences at a time."""
    patches = [Patch.block(layer) for layer in find_anatomy(model).sparse_layers] * 3
    job = job_of(model, *patches, noise=mt.SubjectNoise(draws=2), position=position)
    found = mixers_of(model, job)

    def run(mixers: Any, join: Any = _core.Join.START) -> Any:
        with prepared(model):
            return TreeEngine(replace(job, mixers=mixers), join).run(CASES).patched

    with prepared(model):
        expected = ReferenceEngine(job).run(CASES).patched
    stepped = [m if m.way is WHOLE else replace(m, way=STEPPED) for m in found]
    for mixers in (found, stepped, [replace(m, way=WHOLE, cache=None) for m in found]):
        np.testing.assert_allclose(run(mixers), expected, atol=2e-4)
        monkeypatch.setattr(running, "TOKENS_TOGETHER", 40)
        monkeypatch.setattr(running, "STATES_TOGETHER", 1)
        np.testing.assert_allclose(run(mixers), expected, atol=2e-4)
        monkeypatch.undo()
    assert np.abs(run(()) - expected).max() > 0.01  # they do have to be unfolded


def test_a_name_alone_makes_no_mixer():
    """KimiLinearAttention is full attention: a model of it alone has nothing to unfold."""
    known = HYBRIDS["kimi_linear"]
    config = known.config()
    config.layer_types = ["full_attention"] * len(config.layer_types)
    model = make_wide(replace(known, config=lambda: config))
    result = mt.trace_layers(model, CASES)
    assert result.provenance["engine_reason"].startswith("token mixing is masked attention (")
    plain = mt.trace_layers(model, CASES, engine="reference")
    np.testing.assert_allclose(result.effects, plain.effects, atol=2e-4)


def test_half_precision():
    model = make_wide(HYBRIDS["qwen3_next"]).to(torch.bfloat16)
    auto = mt.trace_layers(model, CASES)
    assert auto.provenance["engine"] == "tree", auto.provenance["engine_reason"]
    plain = mt.trace_layers(model, CASES, engine="reference")
    size = np.abs(plain.rows[["clean", "noised", "patched"]].to_numpy()).max()
    np.testing.assert_allclose(auto.effects, plain.effects, atol=0.05 * size)


@pytest.mark.parametrize("when", ["before", "inside"])
def test_the_model_comes_back_as_it_was(when):
    """Also where a mixer fails, in a call of its own or of the pass."""
    model = make_wide(HYBRIDS["qwen3_next"])
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mt.trace_layers(model, CASES)
    mixer = model.model.layers[2].linear_attn
    target = mixer if when == "before" else mixer.out_proj

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = target.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        mt.trace_layers(model, CASES)
    handle.remove()
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert "forward" not in vars(mixer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert mt.trace_layers(model, CASES).provenance["engine"] == "tree"


def test_a_state_that_does_not_hold_is_not_gone_on_from(monkeypatch):
    """Where a mixer forgets a part of its state, its runs are read from their first token."""
    model = make_wide(HYBRIDS["lfm2_moe"])
    job = job_of(model, Patch.block(1))
    assert {mixer.way for mixer in mixers_of(model, job)} == {CONTINUED}
    monkeypatch.setattr("transformers.cache_utils.Cache.get_conv_state", lambda *_, **__: None)
    monkeypatch.setattr(
        "transformers.cache_utils.LinearAttentionLayer.update_conv_state",
        lambda _self, states, *_, **__: states,
    )
    assert {mixer.way for mixer in mixers_of(model, job)} == {WHOLE}
    assert mt.trace_layers(model, CASES).provenance["engine"] == "tree"


def test_mixing_beside_the_modules_falls_to_plain_forwards():
    """A layer whose own forward mixes tokens has no module that could be unfolded."""
    model = make_wide(HYBRIDS["qwen3_next"])
    layer = model.model.layers[1]

    def mix(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 0.5 * torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]

    handle = layer.register_forward_hook(mix)
    result = mt.trace_layers(model, CASES)
    assert result.provenance["engine"] == "reference"
    assert "differs from plain forwards" in result.provenance["engine_reason"]
    with pytest.raises(mt.errors.EngineError, match="differs from plain forwards"):
        mt.trace_layers(model, CASES, engine="tree")
    handle.remove()
