"""Planned rows against those that a real trace's layers are given, forward by forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moetrace as mt
from moetrace._native import _core
from moetrace.counts import counting
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.trace.together import trace_around
from tests.engines.tiny import SPARSE, make_cases, make_model
from tests.engines.wide import WIDE, make_wide

CASES = make_cases(7)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


@contextmanager
def only_batches(model: Any) -> Iterator[dict[str, Any]]:
    """Count rows in layers, and forwards, while an engine runs batches, and not while it is checked."""
    blocks = [site.block for site in find_anatomy(model).sites]
    found: dict[str, Any] = {"by_layer": np.zeros(len(blocks), int), "forwards": 0}
    running = False

    def watch(index: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            if running:
                hidden = (*args, *kwargs.values())[0]
                found["by_layer"][index] += hidden.numel() // hidden.shape[-1]

        return hook

    def counted(run: Any) -> Any:
        def wrapped(self: Any, cases: Any) -> Any:
            nonlocal running
            running = True
            try:
                with counting() as counts:
                    return run(self, cases)
            finally:
                running = False
                found["forwards"] += counts.forwards

        return wrapped

    handles = [own.register_forward_pre_hook(watch(i), with_kwargs=True) for i, own in enumerate(blocks)]
    with pytest.MonkeyPatch.context() as patch:
        for engine in (TreeEngine, ReferenceEngine):
            patch.setattr(engine, "run", counted(engine.run))
        yield found
    for handle in handles:
        handle.remove()


def measured(model: Any, call: Callable[[], Any]) -> dict[str, Any]:
    """What a trace's batches ran: its checks come in a first call, and find the same in a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with only_batches(model) as found:
            call()
            found["forwards"], found["by_layer"][:] = 0, 0
            call()
    return found


CALLS: dict[str, tuple[dict[str, Any], Callable[..., Any]]] = {
    "layers": ({}, mt.trace_layers),
    "some layers": ({"layers": [1, 3]}, mt.trace_layers),
    "draws": ({"noise": mt.SubjectNoise(draws=2)}, mt.trace_layers),
    "subject_last": ({"position": "subject_last"}, mt.trace_layers),
    "every token": ({"position": "all"}, mt.trace_layers),
    "positions": ({"position": ["subject", "last"], "batch_tokens": 60}, mt.trace_layers),
    "experts at every token": ({"what": "experts", "layers": 2, "position": "all"}, mt.trace_experts),
    "small budget": ({"batch_tokens": 90}, mt.trace_layers),
    "cut": ({"batch_tokens": 20}, mt.trace_layers),
    "reference": ({"engine": "reference"}, mt.trace_layers),
    "reference draws": ({"engine": "reference", "noise": mt.SubjectNoise(draws=2)}, mt.trace_layers),
    "experts": ({"what": "experts"}, mt.trace_experts),
    "one layer's experts": ({"what": "experts", "layers": 2}, mt.trace_experts),
    "noise": ({"mode": "noise"}, mt.trace_layers),
    "noise in experts": ({"what": "experts", "layers": 2, "mode": "noise"}, mt.trace_experts),
    "metric": ({"metric": ["kl", "rank"]}, mt.trace_layers),
    "knockout": ({"what": "knockout"}, mt.trace_knockout),
    "knockout at every token": ({"what": "knockout", "position": "all"}, mt.trace_knockout),
    "knockout at the subject": (
        {"what": "knockout", "position": "subject", "metric": "kl"},
        mt.trace_knockout,
    ),
    "a layer's knockout": ({"what": "knockout", "layers": 2, "batch_tokens": 60}, mt.trace_knockout),
    "zero": ({"corruption": mt.ZeroEmbedding()}, mt.trace_layers),
    "experts cut": ({"what": "experts", "batch_tokens": 30}, mt.trace_experts),
}


@pytest.mark.parametrize("name", CALLS)
def test_rows_are_those_of_the_trace(model: Any, name: str) -> None:
    options, call = CALLS[name]
    planned = mt.plan(model, CASES, timed=False, **options)
    own = {key: value for key, value in options.items() if key != "what"}
    found = measured(model, lambda: call(model, CASES, **own))
    np.testing.assert_array_equal(planned.rows_by_layer, found["by_layer"])
    assert planned.rows == found["by_layer"].sum()
    assert planned.frame().forwards.sum() == found["forwards"]
    assert planned.tokens == sum(len(case.input_ids) for case in CASES)


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_rows_of_objects_of_several_tokens(model: Any, engine: str) -> None:
    cases = [
        mt.Case(c.input_ids, c.subject, (c.true_id, 3 + i)[: 1 + i % 2], (c.foil_id, 7, 8), c.case_id)
        for i, c in enumerate(CASES)
    ]
    planned = mt.plan(model, cases, metric="logprob", engine=engine, timed=False)
    found = measured(model, lambda: mt.trace_layers(model, cases, metric="logprob", engine=engine))
    np.testing.assert_array_equal(planned.rows_by_layer, found["by_layer"])
    assert planned.tokens == sum(len(case.input_ids) for case in cases)
    assert planned.frame().cases.tolist() == [len(cases)]
    assert planned.frame().forwards.sum() == found["forwards"]
    assert mt.plan(model, cases).seconds > 0


def test_forwards_of_a_knockout_by_plain_forwards(model: Any) -> None:
    """Blocks run again for ablations, so that what they are given is no measure here."""
    planned = mt.plan(model, CASES, "knockout", layers=[1, 2], engine="reference", timed=False)
    call = partial(mt.trace_knockout, layers=[1, 2], engine="reference")
    found = measured(model, lambda: call(model, CASES))
    assert planned.frame().forwards.sum() == found["forwards"]
    lengths = sum(len(case.input_ids) for case in CASES)
    assert planned.rows == 4 * lengths * (1 + 2 * 2 + 1)  # clean, two experts of each layer, the null patch


@pytest.mark.parametrize("family", [*SPARSE, "deepseek_v2", "afmoe", "dbrx", "cohere2_moe", "step3p7"])
def test_a_timed_plan_finds_where_a_family_s_forks_join(family: str) -> None:
    """The micro-batch tells: random weights serve, since it is a matter of structure."""
    model = make_wide(family) if family in WIDE else make_model(family)
    planned = mt.plan(model, CASES)
    found = measured(model, lambda: mt.trace_layers(model, CASES))
    assert planned.engine == "tree"
    np.testing.assert_array_equal(planned.rows_by_layer, found["by_layer"])


def test_selection_scans_in_growing_batches() -> None:
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records(), tokenizer)
    n, thresholds = 40, {"margin": -99.0, "drop": -99.0}  # every case is usable
    found = measured(model, lambda: mt.select_cases(model, cases, n=n, **thresholds))
    planned = mt.plan(model, cases, "select", n=n, usable=1, timed=False)
    np.testing.assert_array_equal(planned.rows_by_layer, found["by_layer"])


def test_protocol_sums_its_stages(tmp_path: Any) -> None:
    """A run in which every scanned case is usable and the middle layer is selected has exactly these rows."""
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records(), tokenizer)
    settings = {
        "n": 40, "margin": -99.0, "drop": -99.0, "relaxed_margin": -99.0, "relaxed_drop": -99.0,
        "relaxed_n": 60, "min_active": 1, "n_resamples": 20, "n_flips": 20, "folds": 2,
    }  # fmt: skip
    planned = mt.plan(model, cases, "protocol", settings=settings, usable=1, timed=False)
    table = planned.frame().set_index("stage")
    assert table.loc["layers", "cases"] == 40
    assert table.loc["relaxed_layers", "cases"] == 20
    assert list(table.index) == [
        "select", "layers", "experts_discovery", "around", "scales", "map", "relaxed", "relaxed_layers",
        "relaxed_experts",
    ]  # fmt: skip
    usable = mt.select_cases(model, cases, n=40, margin=-99.0, drop=-99.0)
    discovery, validation = usable.split(seed=0)
    layer = len(find_anatomy(model).layers) // 2
    star = (layer, 0)
    calls: dict[str, Callable[[], Any]] = {
        "layers": lambda: mt.trace_layers(model, usable),
        "experts_discovery": lambda: mt.trace_experts(model, discovery, layer=layer),
        "around": lambda: trace_around(model, validation, star),
        "scales": lambda: mt.trace_noise_scales(model, validation, star),
        "map": lambda: mt.trace_experts(model, validation),
    }
    for stage, call in calls.items():
        found = measured(model, call)
        assert table.loc[stage, "rows"] == found["by_layer"].sum(), stage
    assert planned.rows == table.rows.sum() == planned.rows_by_layer.sum()


shapes = st.integers(1, 7).flatmap(
    lambda length: st.tuples(
        st.just(length), st.integers(0, length - 1), st.integers(1, length), st.integers(0, length - 1)
    )
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=4),
    st.lists(st.integers(0, 3), max_size=5),
    st.integers(1, 3),
    st.sampled_from(list(_core.Join)),
)
def test_layer_rows_counts_who_is_there(
    shapes: list[Any], patched: list[int], draws: int, join: _core.Join
) -> None:
    given_shapes = [(length, min(a, b - 1), b, p) for length, a, b, p in shapes]
    base = max(start + (draws + 1) * (length - start) for length, start, _, _ in given_shapes)
    chain = max(length - position for length, _, _, position in given_shapes)
    there = {
        _core.Join.AFTER_LAYER: lambda fork, layer: fork < layer,
        _core.Join.BEFORE_LAYER: lambda fork, layer: fork <= layer,
        _core.Join.START: lambda _fork, _layer: True,
    }[join]
    expected = [base + chain * draws * sum(there(fork, layer) for fork in patched) for layer in range(4)]
    shapes_of = [_core.CaseShape(*shape, [[position]]) for *shape, position in given_shapes]
    found = _core.layer_rows(shapes_of, _core.Runs(patched), 0, len(patched), draws, 4, join)
    assert found == [*expected, base + chain * draws * len(patched)]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one case"):
        _core.layer_rows([], _core.Runs([0]), 0, 1, 1, 2, _core.Join.START)
    with pytest.raises(ValueError, match="fork at layer 2"):
        _core.layer_rows([_core.CaseShape(3, 0, 1, [[2]])], _core.Runs([2]), 0, 1, 1, 2, _core.Join.START)


def test_planning_leaves_a_model_as_it_was(model: Any) -> None:
    before = {name: own.clone() for name, own in model.state_dict().items()}
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()
    ]
    kept = repr(model.config.to_dict())
    mt.plan(model, CASES)
    assert all(torch.equal(before[name], own) for name, own in model.state_dict().items())
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()
    ]
    assert repr(model.config.to_dict()) == kept
