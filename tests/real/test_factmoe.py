"""A small real model that knows CounterFact facts: every number of both stages by both engines."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from tests.engines.oracle import rescue

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model_and_cases(shared):
    folder = shared / "models" / "factmoe"
    model, tokenizer = mt.load_model(str(folder), dtype="float32")
    known = set(json.loads((folder / "known_case_ids.json").read_text()))
    records = [r for r in mt.load_records(shared / "data" / "counterfact.json") if r.case_id in known]
    return model, mt.make_cases(records, tokenizer)


@pytest.fixture(scope="module")
def halves(model_and_cases):
    model, cases = model_and_cases
    return mt.select_cases(model, cases, n=64).split(seed=0)


def test_selection_is_the_papers_filter(model_and_cases):
    model, cases = model_and_cases
    usable = mt.select_cases(model, cases, n=40)
    everything = mt.trace_layers(model, usable, layers=0).cases
    assert (everything.clean >= 1.0).all()
    assert (everything.clean - everything.noised >= 0.5).all()
    again = mt.select_cases(model, cases, n=40, batch_tokens=300)
    assert [c.case_id for c in again] == [c.case_id for c in usable]
    assert again.funnel == usable.funnel


def test_layer_sweep_by_both_engines(model_and_cases):
    model, cases = model_and_cases
    usable = mt.select_cases(model, cases, n=215)
    tree = mt.trace_layers(model, usable, engine="tree")
    assert tree.noise_floor < TOLERANCE
    by_plain_hooks = np.array([rescue(model, case, list(range(8))) for case in usable])
    np.testing.assert_allclose(tree.effects, by_plain_hooks, atol=TOLERANCE)
    assert tree.best == by_plain_hooks.mean(axis=0).argmax() == 5
    plain = mt.trace_layers(model, usable[:60], engine="reference")
    np.testing.assert_allclose(tree.effects[:60], plain.effects, atol=TOLERANCE)
    np.testing.assert_allclose(tree.cases.clean[:60], plain.cases.clean, atol=TOLERANCE)


@pytest.mark.slow
def test_layer_sweep_of_every_usable_case(model_and_cases):
    model, cases = model_and_cases
    with pytest.warns(mt.errors.MoetraceWarning):
        usable = mt.select_cases(model, cases, n=len(cases))
    assert len(usable) > 700
    tree = mt.trace_layers(model, usable, engine="tree")
    plain = mt.trace_layers(model, usable, engine="reference")
    np.testing.assert_allclose(tree.effects, plain.effects, atol=TOLERANCE)


def test_the_whole_chain_by_both_engines(model_and_cases, halves):
    model, _ = model_and_cases
    discovery, validation = halves
    layers = {e: mt.trace_layers(model, discovery, engine=e) for e in ("tree", "reference")}
    close(layers)
    best = layers["tree"].best
    assert best == layers["reference"].best
    experts = {e: mt.trace_experts(model, discovery, layer=best, engine=e) for e in layers}
    close(experts)
    stars = {e: found.select(min_active=0.25) for e, found in experts.items()}
    star = stars["tree"]
    assert star == stars["reference"]
    held = {e: mt.trace_experts(model, validation, layer=best, engine=e) for e in layers}
    close(held)
    specific = {e: found.specificity(star, controls=3, seed=0) for e, found in held.items()}
    assert abs(specific["tree"].mean - specific["reference"].mean) < TOLERANCE
    pd.testing.assert_frame_equal(
        specific["tree"].rows, specific["reference"].rows, atol=TOLERANCE, rtol=0, check_exact=False
    )
    close({e: mt.trace_matched(model, validation, star, engine=e) for e in layers})
    sweeps = {e: mt.trace_coalitions(model, validation, layer=best, sets="all", engine=e) for e in layers}
    close(sweeps)
    np.testing.assert_allclose(
        sweeps["tree"].shapley().shapley, sweeps["reference"].shapley().shapley, atol=TOLERANCE
    )
    close({e: mt.trace_coalitions(model, validation, layer=best, engine=e) for e in layers})
    close({e: mt.trace_noise_scales(model, validation, star, engine=e) for e in layers})


def close(results):
    tree, plain = results["tree"], results["reference"]
    assert tree.provenance["engine"] == "tree"
    assert plain.provenance["engine"] == "reference"
    np.testing.assert_allclose(tree.effects, plain.effects, atol=TOLERANCE)


def test_every_record_that_another_tokenizer_cannot_hold_is_counted(shared):
    _, tokenizer = mt.load_demo()
    records = mt.load_records(shared / "data" / "counterfact.json")[:400]
    cases = mt.make_cases(records, tokenizer)
    assert sum(cases.dropped.values()) + len(cases) == 400
