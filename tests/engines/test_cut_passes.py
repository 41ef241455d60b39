"""Forks of a case that exceeds the budget by itself: several passes, the same numbers."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

import moetrace as mt
from moetrace.engines.base import make_job
from moetrace.engines.cost import cut_patches, tree_cost
from moetrace.engines.growth import Growth
from moetrace.engines.patches import BlockPatch, ExpertPatch, NullPatch
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.tiny import LAYERS, make_cases, make_model


def model_and_job(draws: int):
    model = make_model("qwen3_moe")
    patches = [
        patch
        for layer in range(LAYERS)
        for patch in (BlockPatch(layer), *(ExpertPatch(layer, "place", place=place) for place in range(2)))
    ]
    return model, make_job(
        find_anatomy(model), [*patches, NullPatch(0)], mt.SubjectNoise(draws=draws), "subject_last"
    )


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
    parts = cut_patches(job, case, Growth.BEHIND, budget)
    assert [patch for part in parts for patch in part] == list(job.patches)
    allowed = max(budget, 2 * tree_cost(job, case, (), Growth.BEHIND))
    assert all(len(part) == 1 or tree_cost(job, case, part, Growth.BEHIND) <= allowed for part in parts)
    assert (len(parts) == 1) == (budget == 10_000)


def test_no_budget_is_one_pass():
    _, job = model_and_job(1)
    assert cut_patches(job, make_cases()[0], Growth.STATIC, None) == [job.patches]
    assert cut_patches(replace(job, patches=()), make_cases()[0], Growth.STATIC, 1) == [()]


def test_a_trace_with_a_tiny_budget_is_the_same():
    model, cases = make_model("deepseek_v3"), make_cases(3)
    options = {"noise": mt.SubjectNoise(draws=2), "position": "subject_last"}
    whole = mt.trace_experts(model, cases, **options)
    cut = mt.trace_experts(model, cases, batch_tokens=1, **options)
    np.testing.assert_allclose(cut.effects, whole.effects, atol=2e-5)
    columns = [name for name in whole.rows.columns if whole.rows[name].dtype.kind == "f"]
    np.testing.assert_allclose(cut.rows[columns], whole.rows[columns], atol=2e-5)
