"""Models whose weights accelerate keeps in memory or on disk are traced as the same models in memory."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import find_anatomy
from moetrace.trace.provenance import model_facts
from moetrace.weights.stored import offloaded_modules
from tests.engines.tiny import make_cases
from tests.weights.places import PLACES, in_memory

accelerate = pytest.importorskip("accelerate")
CASES = make_cases(4)


def state_of(model: Any) -> list[Any]:
    """What of a model a trace could leave behind."""
    return [
        (name, weight.device, weight.dtype, weight.requires_grad, None if weight.is_meta else weight.clone())
        for name, weight in (*model.named_parameters(), *model.named_buffers())
    ] + [
        (name, module.training, dict(vars(module).get("_hf_hook", model).__dict__).get("offload"))
        for name, module in model.named_modules()
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    for mine, theirs in zip(before, after, strict=True):
        assert mine[:-1] == theirs[:-1]
        if isinstance(mine[-1], torch.Tensor):
            assert torch.equal(mine[-1], theirs[-1]), mine[0]
        else:
            assert mine[-1] == theirs[-1], mine[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_numbers_are_those_of_the_model_in_memory(place: str, dtype: torch.dtype, tmp_path: Path) -> None:
    expected_model, model = in_memory(dtype), PLACES[place](in_memory(dtype), tmp_path)
    assert any(weight.is_meta for weight in model.parameters())
    before = state_of(model)
    for trace, engine in (
        (mt.trace_layers, "auto"),
        (mt.trace_experts, "auto"),
        (mt.trace_experts, "reference"),
    ):
        expected, found = trace(expected_model, CASES, engine=engine), trace(model, CASES, engine=engine)
        assert found.provenance["engine"] == expected.provenance["engine"]
        # The fused routine and the experts module differ by rounding.
        limit = 2e-5 if dtype is torch.float32 else max(0.05, 2 * expected.noise_floor)
        np.testing.assert_allclose(found.effects, expected.effects, atol=limit)
        np.testing.assert_allclose(found.direct, expected.direct, atol=limit)
        np.testing.assert_allclose(found.direct_linear, expected.direct_linear, atol=limit)
        assert found.provenance["noise"] == expected.provenance["noise"]
        assert found.provenance["model"]["weights"] == expected.provenance["model"]["weights"]
    assert_same(before, state_of(model))


@pytest.mark.parametrize("place", ["memory", "disk", "checkpoint"])
def test_tied_weights(place: str, tmp_path: Path) -> None:
    model = PLACES[place](in_memory(tied=True), tmp_path)
    expected, found = mt.trace_layers(in_memory(tied=True), CASES), mt.trace_layers(model, CASES)
    np.testing.assert_allclose(found.effects, expected.effects, atol=2e-5)
    assert found.provenance["model"]["weights"] == expected.provenance["model"]["weights"]


@pytest.mark.parametrize("place", ["memory", "disk, with buffers", "checkpoint, some layers"])
def test_every_kind_of_trace(place: str, tmp_path: Path) -> None:
    plain, model = in_memory(), PLACES[place](in_memory(), tmp_path)
    star = mt.trace_experts(plain, CASES, layer=1).select(min_active=1)

    def found(model: Any) -> list[np.ndarray]:
        usable = mt.select_cases(model, CASES, n=2, margin=-99.0, drop=-99.0)
        return [
            np.array([case.case_id for case in usable]),
            mt.trace_matched(model, CASES, star).effects,
            mt.trace_noise_scales(model, CASES, star, scales=[1.0, 2.0]).effects,
            mt.trace_coalitions(model, CASES, layer=1, sets="all").effects,
        ]

    for mine, theirs in zip(found(model), found(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_a_whole_protocol(tmp_path: Path) -> None:
    from tests.test_arguments import PROTOCOL

    cases = mt.CaseSet(make_cases(6))
    model = PLACES["disk"](in_memory(), tmp_path)
    found = mt.run_protocol(model, None, cases, "quick", **PROTOCOL)
    expected = mt.run_protocol(in_memory(), None, cases, "quick", **PROTOCOL)
    for name, table in expected.tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table, atol=1e-4, check_exact=False, rtol=1e-3)


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 3, 7])
def test_nothing_is_left_in_memory_by_a_forward_that_fails(
    failure: BaseException, after: int, tmp_path: Path
) -> None:
    model = PLACES["disk"](in_memory(), tmp_path)
    before, calls = state_of(model), []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) > after:
            raise failure

    # Inside the accelerated forward, where the weights are in memory.
    experts = model.model.layers[2].mlp.experts
    plain = experts._old_forward
    experts._old_forward = lambda *args, **kwargs: (fail(), plain(*args, **kwargs))[1]

    def trace_repeatedly() -> None:
        for _ in range(10):
            mt.trace_layers(model, CASES)

    with pytest.raises(type(failure)):
        trace_repeatedly()
    experts._old_forward = plain
    assert_same(before, state_of(model))


def test_an_edit_of_what_is_kept_is_seen() -> None:
    state = {name: weight.clone() for name, weight in in_memory().state_dict().items()}
    model = accelerate.cpu_offload(in_memory(), execution_device="cpu", state_dict=state)
    first = mt.trace_layers(model, CASES)
    with torch.no_grad():
        state["model.layers.1.mlp.experts.down_proj"].mul_(0.0)
        state["model.embed_tokens.weight"].mul_(2.0)
    edited = in_memory()
    edited.load_state_dict(state)
    expected, second = mt.trace_layers(edited, CASES), mt.trace_layers(model, CASES)
    np.testing.assert_allclose(second.effects, expected.effects, atol=2e-5)
    assert second.provenance["noise"]["embedding_std"] == expected.provenance["noise"]["embedding_std"]
    assert first.provenance["model"]["weights"] != second.provenance["model"]["weights"]


def test_a_run_goes_on_wherever_the_weights_are(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = mt.trace_layers(in_memory(), CASES, out=out)
    model = PLACES["disk"](in_memory(), tmp_path / "weights")
    np.testing.assert_array_equal(mt.trace_layers(model, CASES, out=out).effects, first.effects)


def test_what_was_measured_stays_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second trace doesn't compare the engines anew because weights came to another place in memory."""
    from moetrace.engines import engine_choice

    model, looked = PLACES["disk"](in_memory(), tmp_path), []
    look_at = engine_choice.look_at
    monkeypatch.setattr(engine_choice, "look_at", lambda *given: looked.append(1) or look_at(*given))
    mt.trace_layers(model, CASES)
    mt.trace_layers(model, CASES)
    assert len(looked) == 1


@pytest.mark.parametrize("place", ["disk", "checkpoint"])
@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_files_that_fail_are_named(place: str, how: str, tmp_path: Path) -> None:
    model = PLACES[place](in_memory(), tmp_path)
    head = next(own for own in offloaded_modules(model) if own.module is model.lm_head)
    path = Path(head.place("weight").path)
    if how == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(errors.ModelError, match=path.name.replace(".", r"\.")):
        mt.trace_layers(model, CASES)


def test_models_on_the_meta_device_are_refused_everywhere() -> None:
    from tests.test_arguments import calls

    with torch.device("meta"):
        model = copy.deepcopy(in_memory()).to("meta")
    models = 0
    for name, (call, given) in calls().items():
        if "model" in given and name != "plan":  # which needs no weights
            models += 1
            with pytest.raises(errors.ModelError, match="on the meta device and holds no values"):
                call(**{**given, "model": model})
            assert name
    assert models >= 7


def test_provenance_says_where_the_weights_were(tmp_path: Path) -> None:
    model = PLACES["checkpoint, some layers"](in_memory(), tmp_path)
    own = in_memory()
    away = [*own.model.layers[1].parameters(), *own.model.layers[2].parameters(), own.lm_head.weight]
    size = sum(weight.nbytes for weight in away)
    assert mt.trace_layers(model, CASES).provenance["placement"] == f"cpu, {size} bytes offloaded to disk"
    assert mt.trace_layers(own, CASES).provenance["placement"] == "cpu"


def test_fused_experts_where_accelerate_only_places(tmp_path: Path) -> None:
    """A forward of accelerate's own is none that the user gave."""
    model = PLACES["disk, lm_head only"](in_memory(), tmp_path)
    assert all(site.fusible for site in find_anatomy(model).sites)
    experts = model.model.layers[1].mlp.experts
    given = experts.forward
    experts.forward = lambda *args: given(*args)
    assert [site.fusible for site in find_anatomy(model).sites] == [True, False, True, True]


def test_weights_that_a_users_own_forward_would_bring_are_refused() -> None:
    model = in_memory()
    model.lm_head.to("meta")
    model.lm_head.forward = lambda x: x
    with pytest.raises(errors.ModelError, match=r"lm_head\.weight is on the meta device"):
        mt.trace_layers(model, CASES)
    model_facts(model)
