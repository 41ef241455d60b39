"""Forks of a case that exceeds the budget by itself: several passes, the same numbers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Patch, Sweep, make_job
from moetrace.engines.self_check import filled
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import LAYERS, make_cases, make_model


def model_and_job(draws: int):
    model = make_model("qwen3_moe")
    patches = [*(Patch.block(layer) for layer in range(LAYERS)), Patch.null(0)]
    sweeps = [Sweep(layer, 2) for layer in range(LAYERS)]
    anatomy = find_anatomy(model)
    return model, make_job(anatomy, patches, mt.SubjectNoise(draws=draws), "subject_last", sweeps)


@pytest.mark.parametrize("draws", [1, 3])
def test_cut_passes_give_what_one_pass_gives(draws):
    (model, job), case = model_and_job(draws), make_cases()[1]
    rows = []
    with prepared(model):
        whole = TreeEngine(job).run([case])
        engine = TreeEngine(job, batch_tokens=1)
        handle = model.model.layers[-1].register_forward_hook(lambda _m, _a, out: rows.append(out.shape[1]))
        cut = engine.run([case])
        handle.remove()
    assert len(rows) > 3
    assert max(rows) <= engine.rows_of(case) < TreeEngine(job).rows_of(case)
    for name in ("clean", "noised", "patched"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), atol=2e-5, err_msg=name)
    assert cut.routing.keys() == whole.routing.keys()
    for layer, routing in whole.routing.items():
        for field in fields(routing):
            np.testing.assert_allclose(
                getattr(cut.routing[layer], field.name), getattr(routing, field.name), atol=2e-5
            )


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_parts_keep_the_order_and_the_budget(budget):
    _, job = model_and_job(3)
    case = make_cases()[1]
    layers, join = job.runs.layers, _core.Join.AFTER_LAYER

    def cost(patched):
        return _core.tree_cost(job.shape_of(case), _core.Runs(patched), 3, LAYERS, join)

    parts = TreeEngine(job, join).cuts(case, budget)
    assert [run for begin, end in parts for run in range(begin, end)] == list(range(len(layers)))
    allowed = max(budget, 2 * cost([]))
    assert all(end - begin == 1 or cost(layers[begin:end]) <= allowed for begin, end in parts)
    assert (len(parts) == 1) == (budget == 10_000)


def test_cost_counts_the_rows_of_every_layer():
    """Forks of layer l are there in the layers above it, and in l itself."""
    shape, layers = _core.CaseShape(9, 2, 4, [[6], [3, 4], []]), 5
    rows = 2 + (3 + 1) * 7  # prefix, clean and three noised branches
    patched = [1, 1, 4]
    inside = sum(rows + sum(3 * 3 for own in patched if own <= layer) for layer in range(layers))
    runs = _core.Runs(patched)
    assert _core.tree_rows(shape, runs, 0, 3, 3) == rows + 3 * 3 * len(patched)
    assert _core.tree_rows(shape, runs, 1, 2, 3) == rows + 3 * 3
    assert _core.tree_cost(shape, runs, 3, layers, _core.Join.BEFORE_LAYER) == -(-inside // layers)
    assert _core.tree_cost(shape, runs, 3, layers, _core.Join.START) == rows + 27
    late = _core.Runs([4] * 100)
    assert _core.tree_cost(shape, late, 3, layers, _core.Join.AFTER_LAYER) == -(-(rows + 900) // 4)
    # A fork has as many rows as its place needs, and none where the case doesn't have it.
    mixed = _core.Runs([1, 1, 4], [0, 1, 2])
    assert _core.tree_rows(shape, mixed, 0, 3, 3) == rows + 3 * (3 + 6)
    assert _core.tree_cost(shape, mixed, 3, layers, _core.Join.BEFORE_LAYER) == -(
        -(rows * layers + 4 * 27) // layers
    )
    with pytest.raises(ValueError, match="runs 2 to 4 of 3"):
        _core.tree_rows(shape, mixed, 2, 4, 3)


def test_no_budget_is_one_pass():
    _, job = model_and_job(1)
    assert TreeEngine(job, _core.Join.START).cuts(make_cases()[0], None) == [(0, len(job.runs))]


def test_a_trace_with_a_tiny_budget_is_the_same():
    model, cases = make_model("deepseek_v3"), make_cases(3)
    options = {"noise": mt.SubjectNoise(draws=2), "position": "subject_last"}
    whole = mt.trace_experts(model, cases, **options)
    cut = mt.trace_experts(model, cases, batch_tokens=1, **options)
    np.testing.assert_allclose(cut.effects, whole.effects, atol=2e-5)
    columns = [name for name in whole.rows.columns if whole.rows[name].dtype.kind == "f"]
    np.testing.assert_allclose(cut.rows[columns], whole.rows[columns], atol=2e-5)


@pytest.mark.parametrize("position", ["last", "subject_first"])
def test_a_check_is_as_large_as_asked_for_and_not_larger(position):
    """Of an earlier token a fork is a chain of rows, so fewer of them fill the tree."""
    case = make_cases(1)[0]
    anatomy = find_anatomy(make_model("qwen3_moe"))
    probe = make_job(anatomy, [Patch.null(0), Patch.block(2)], mt.SubjectNoise(draws=2), position)
    rows = TreeEngine(filled(probe, case, 200)).rows_of(case)
    assert 200 <= rows < 200 + 2 * len(case.input_ids)
