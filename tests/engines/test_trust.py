"""What can change a forward is noticed, and what can't be trusted isn't: verdicts, floors and refusals."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.engines.job import Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.float32 import in_float32
from moetrace.models.state import prepared
from tests.engines.tiny import FAMILIES, make_cases, make_model
from tests.engines.wide import WIDE, make_wide

CASES = make_cases(4)
SERVED = [family for family in (*FAMILIES, *WIDE) if family != "doge"]


def model_of(family: str) -> Any:
    return make_model(family) if family in FAMILIES else make_wide(family)


@pytest.fixture
def model() -> Any:
    return make_model("qwen3_moe")


# Half precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SERVED)
def test_half_precision_is_judged_as_float32_is(family: str) -> None:
    wide = mt.trace_layers(model_of(family), CASES[:2]).provenance
    half = mt.trace_layers(model_of(family).bfloat16(), CASES[:2]).provenance
    assert half["engine"] == wide["engine"]
    if wide["engine"] == "tree":
        assert half["engine_reason"] == wide["engine_reason"]  # forks join at the same place


@pytest.mark.parametrize("seed", range(8))
def test_what_float32_refuses_isnt_trusted_in_half_precision(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of keys are chosen by a maximum over rows, and a tree that isn't unfolded has other rows than a
    sequence."""
    monkeypatch.setattr("moetrace.engines.engine_choice.look_for_mixers", lambda *_: ())
    family = WIDE["minimax_m3"]
    model = make_wide(family, seed=seed).bfloat16()
    assert mt.trace_layers(model, CASES[:2]).provenance["engine"] == "reference"


def test_weights_in_float32_are_those_of_the_whole_model_and_come_back() -> None:
    model = make_model("deepseek_v3").bfloat16()
    before = dict(model.state_dict(keep_vars=True))
    patches = [Patch.block(layer) for layer in (1, 3)]
    wide = copy.deepcopy(model).float()
    with prepared(wide):
        expected = ReferenceEngine(make_job(find_anatomy(wide), patches)).run(CASES)
    anatomy = find_anatomy(model)
    with prepared(model), in_float32(anatomy):
        found = ReferenceEngine(make_job(anatomy, patches)).run(CASES)
    np.testing.assert_array_equal(found.patched, expected.patched)
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with (
        fail_at(anatomy.site(2).block, fails),
        prepared(model),
        pytest.raises(KeyboardInterrupt),
        in_float32(anatomy),
    ):
        model(torch.tensor([[5, 6, 7]]))
    assert all(tensor is before[name] for name, tensor in model.state_dict(keep_vars=True).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class fail_at:
    """A hook for a time."""

    def __init__(self, module: torch.nn.Module, hook: Any) -> None:
        self.module, self.hook = module, hook

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self.hook)

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


# Changes of a model -------------------------------------------------------------------------------------


def steering(amount: dict[str, float]) -> Any:
    """A user's hook that adds a vector to the last row of every sequence."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value = value.clone()
        value[:, -1] += amount["size"] * torch.linspace(-1, 1, value.shape[-1])
        return (value, *output[1:]) if isinstance(output, tuple) else value

    return hook


@pytest.mark.parametrize("trace", [mt.trace_layers, mt.trace_experts])
def test_a_hook_that_comes_later_is_seen(model: Any, trace: Any) -> None:
    assert trace(model, CASES).provenance["engine"] == "tree"
    model.model.layers[1].register_forward_hook(steering({"size": 3.0}))
    found = trace(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "differs from plain forwards" in found.provenance["engine_reason"]
    np.testing.assert_allclose(found.effects, trace(model, CASES, engine="reference").effects, atol=1e-5)


def test_a_patched_forward_is_seen(model: Any) -> None:
    mt.trace_layers(model, CASES)
    layer = model.model.layers[1]
    plain, change = layer.forward, steering({"size": 3.0})
    layer.forward = lambda *args, **kwargs: change(None, None, plain(*args, **kwargs))
    found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    np.testing.assert_allclose(
        found.effects, mt.trace_layers(model, CASES, engine="reference").effects, atol=1e-5
    )


@pytest.mark.parametrize("half", [False, True])
def test_what_no_fingerprint_shows_is_found_by_the_traces_own_case(model: Any, half: bool) -> None:
    """A hook that is there from the start, and begins to act later."""
    model = model.bfloat16() if half else model
    amount = {"size": 0.0}
    model.model.layers[1].register_forward_hook(steering(amount))
    assert mt.trace_layers(model, CASES).provenance["engine"] == "tree"
    amount["size"] = 5.0
    with pytest.warns(errors.EngineWarning, match="differed by .* from plain forwards on case"):
        found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "differed" in found.provenance["engine_reason"]
    np.testing.assert_allclose(
        found.effects, mt.trace_layers(model, CASES, engine="reference").effects, atol=1e-6
    )


def test_a_run_of_two_engines_is_refused(model: Any, tmp_path: Any) -> None:
    amount = {"size": 0.0}
    model.model.layers[1].register_forward_hook(steering(amount))
    mt.trace_layers(model, CASES, out=tmp_path / "run")
    part = next((tmp_path / "run" / "parts").glob("*.parquet"))
    part.unlink()
    mt.trace_layers(model, CASES, out=tmp_path / "run")  # resumed by the same engine
    (second,) = (tmp_path / "run" / "parts").glob("*.parquet")
    with pytest.raises(errors.RunFolderError, match="engine"):
        mt.trace_layers(model, CASES, out=tmp_path / "run", engine="reference")
    second.unlink()
    amount["size"] = 5.0
    with pytest.warns(errors.EngineWarning):
        found = mt.trace_layers(model, CASES, out=tmp_path / "run")  # nothing was kept of the tree's
    assert mt.load(tmp_path / "run").provenance["engine"] == found.provenance["engine"] == "reference"


def test_a_resumed_run_has_one_attention(model: Any, tmp_path: Any) -> None:
    mt.trace_layers(model, CASES, out=tmp_path / "run")
    model.set_attn_implementation("eager")
    with pytest.raises(errors.RunFolderError, match="attention"):
        mt.trace_layers(model, CASES, out=tmp_path / "run")


def test_provenance_names_the_attention_that_ran(model: Any) -> None:
    model.config._attn_implementation_internal = "flex_attention"
    found = mt.trace_layers(model, CASES)
    assert found.provenance["attention"] == "sdpa"
    assert model.config._attn_implementation_internal == "flex_attention"


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_the_null_patch_runs_at_every_layer(model: Any, engine: str) -> None:
    """A layer's own noise shows in the null patch of the layers before it, whichever the lowest traced is."""
    generator = torch.Generator().manual_seed(0)

    def jitter(_module: Any, _args: Any, output: Any) -> Any:
        return output + 1e-5 * torch.randn(output.shape, generator=generator)

    model.model.layers[3].mlp.register_forward_hook(jitter)
    found = mt.trace_layers(model, CASES[:1], engine=engine)
    assert found.provenance["null_floor"] > 0
    assert found.noise_floor >= found.provenance["null_floor"]


def test_coalitions_say_which_sets_a_value_needs(model: Any) -> None:
    found = mt.trace_coalitions(model, CASES, layer=1, sets=("clean", "union"))
    with pytest.raises(errors.ArgumentError, match="trace with sets='all'"):
        found.shapley()


def test_a_check_that_fails_means_reference(model: Any) -> None:
    """A block that wants one sequence at a time can't be asked in a tree's way; plain forwards are right."""

    def only_plain(_module: Any, args: Any, kwargs: Any) -> None:
        if kwargs.get("position_ids") is not None and not bool(
            (kwargs["position_ids"].diff(dim=-1) == 1).all()
        ):
            raise ZeroDivisionError("rows out of order")

    model.model.layers[0].register_forward_pre_hook(only_plain, with_kwargs=True)
    found = mt.trace_layers(model, CASES)
    assert found.provenance["engine"] == "reference"
    assert "ZeroDivisionError: rows out of order" in found.provenance["engine_reason"]
    with pytest.raises(errors.EngineError, match="rows out of order"):
        mt.trace_layers(model, CASES, engine="tree")
    assert mt.trace_layers(model, CASES, engine="reference").provenance["engine_reason"] == "asked for"


# What can't have an effect ------------------------------------------------------------------------------


def test_no_noise_is_no_noise(model: Any) -> None:
    for noise in (0, 0.0, mt.SubjectNoise(0.0)):
        with pytest.warns(errors.NoEffectWarning, match="changes the logit difference of no case"):
            found = mt.trace_layers(model, CASES, noise=noise)
        assert found.provenance["noise"]["scale"] == 0.0
        np.testing.assert_allclose(found.cases.clean, found.cases.noised, atol=1e-5)
    np.testing.assert_array_equal(
        mt.trace_layers(model, CASES, noise=1.5).effects,
        mt.trace_layers(model, CASES, noise=mt.SubjectNoise(1.5)).effects,
    )


def test_where_nothing_can_happen_it_is_said(model: Any) -> None:
    with pytest.warns(errors.NoEffectWarning, match="layer 3 is the last"):
        mt.trace_layers(model, CASES, position="subject_last")
    late = [mt.Case([5, 6, 7, 8], (2, 3), 10, 40, case_id=3)]
    with pytest.warns(errors.NoEffectWarning, match=r"before the subject in 1 of 1 .* \[3\]"):
        found = mt.trace_layers(model, late, layers=[0, 1], position=0)
    assert np.abs(found.effects).max() < 1e-5
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.warns(errors.NoEffectWarning, match="zero everywhere"):
        mt.trace_layers(model, CASES)


def test_a_plain_trace_says_nothing(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mt.trace_experts(model, CASES)


# Results ------------------------------------------------------------------------------------------------


def test_effects_cant_be_written_to(model: Any) -> None:
    for found in (mt.trace_layers(model, CASES), mt.trace_experts(model, CASES)):
        with pytest.raises(ValueError, match="read-only"):
            found.effects[0, 0] = 1.0


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"noise": 2.0}, "noise"),
        ({"position": "subject_last"}, "position"),
        ({"readout": "model"}, "readout"),
    ],
)
def test_traces_made_otherwise_arent_compared(model: Any, other: Any, word: str) -> None:
    experts = mt.trace_experts(model, CASES, layer=1)
    star = experts.select(min_active=1)
    experts.layer_share(star, mt.trace_layers(model, CASES))
    with pytest.raises(errors.ArgumentError, match=f"differ in {word}"):
        experts.layer_share(star, mt.trace_layers(model, CASES, layers=[1], **other))


def test_no_relation_is_no_word() -> None:
    assert mt.Case([5, 6], (0, 1), 8, 9, case_id=0, relation_id=None).relation_id == ""  # type: ignore[arg-type]
    assert mt.Case([5, 6], (0, 1), 8, 9, case_id=0, relation_id=float("nan")).relation_id == ""  # type: ignore[arg-type]


def test_case_sets_index_and_join() -> None:
    cases = mt.CaseSet(CASES)
    assert list(cases[[2, 0]]) == [CASES[2], CASES[0]]
    assert list(cases[np.array([True, False, False, True])]) == [CASES[0], CASES[3]]
    assert cases[np.int64(-1)] == CASES[3]
    assert list(cases[:1] + cases[2:]) == [CASES[0], CASES[2], CASES[3]]
    with pytest.raises(errors.DuplicateCaseError):
        cases + cases[:1]
    with pytest.raises(IndexError, match="position 4"):
        cases[4]
    with pytest.raises(errors.ArgumentError, match="one for each of 4"):
        cases[[True, False]]
