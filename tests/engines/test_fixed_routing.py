"""Runs whose later routers are held to the noised run's choice: both engines, and hooks written by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Origin, Patch, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines import oracle
from tests.engines.test_gradients import noise_of
from tests.engines.test_places import PLACES
from tests.engines.tiny import SPARSE, make_cases, make_model


def patches_of(layers):
    free = [Patch.block(layer) for layer in layers]
    free += [Patch.of_experts(layer, _core.Chosen.CLEAN) for layer in layers]
    free += [Patch.null(layers[0])]
    return [*free, *(patch.with_fixed_routing() for patch in free)]


@cache
def by_plain_forwards(family):
    """A model, its job and what plain forwards find, once for all ways in which forks join."""
    model = make_model(family)
    with prepared(model):
        anatomy = find_anatomy(model)
        job = make_job(anatomy, patches_of(anatomy.sparse_layers), mt.SubjectNoise(draws=2))
        return model, job, ReferenceEngine(job).run(make_cases(3))


@pytest.mark.parametrize("join", _core.Join)
@pytest.mark.parametrize("family", SPARSE)
def test_tree_equals_plain_forwards(family, join):
    model, job, expected = by_plain_forwards(family)
    with prepared(model):
        found = TreeEngine(job, join).run(make_cases(3))
    np.testing.assert_allclose(found.patched, expected.patched, atol=3e-4)
    free, fixed = np.split(expected.patched, 2, axis=1)
    assert np.abs(free - fixed).max() > 1e-2  # routers do choose otherwise
    np.testing.assert_allclose(fixed[:, -1], expected.noised, atol=1e-4)


@pytest.mark.parametrize("position", ["subject_last", -3])
def test_positions_before_the_last(position):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    with prepared(model):
        job = make_job(find_anatomy(model), patches_of((0, 1)), None, position)
        expected, found = ReferenceEngine(job).run(cases), TreeEngine(job).run(cases)
        beside = ReferenceEngine(job).together(cases[0])
    np.testing.assert_allclose(found.patched, expected.patched, atol=3e-4)
    np.testing.assert_allclose(beside.patched, expected.patched[:1], atol=3e-4)
    free, fixed = np.split(expected.patched, 2, axis=1)
    assert np.abs(free - fixed).max() > 1e-3


@pytest.mark.parametrize("join", _core.Join)
def test_places_of_several_tokens_from_either_run(join):
    model, cases = make_model("qwen3_moe"), make_cases(4)
    free = [
        patch
        for origin in Origin
        for place in range(len(PLACES))
        for patch in (Patch.block(0, place, origin), Patch.block(1, place, origin))
    ]
    with prepared(model):
        patches = [*free, *(patch.with_fixed_routing() for patch in free), Patch.null(0)]
        job = make_job(find_anatomy(model), patches, mt.SubjectNoise(draws=2), PLACES)
        expected, found = ReferenceEngine(job).run(cases), TreeEngine(job, join).run(cases)
    np.testing.assert_allclose(found.patched, expected.patched, atol=3e-4)
    changed = np.abs(expected.patched[:, : len(free)] - expected.patched[:, len(free) : -1])
    assert (np.nanmax(changed, axis=(0, 2)) > 1e-3).mean() > 0.8


def by_hand(model, case, layer, clean, position):
    """A block patch by hooks on the router, which gives the noised run's weights and experts later on."""
    noise = noise_of(model, case)
    at, said = position % len(case.input_ids), {}

    def listen(number):
        def hook(_module, _args, output):
            said[number] = [value[at:].clone() for value in output]

        return hook

    def repeat(number):
        def hook(_module, _args, output):
            held = [value.clone() for value in output]
            for value, own in zip(held, said[number], strict=True):
                value[at:] = own
            return tuple(held)

        return hook

    layers = oracle.layers_of(model)
    handles = [own.mlp.gate.register_forward_hook(listen(number)) for number, own in enumerate(layers)]
    oracle.run(model, case, noise)
    for handle in handles:
        handle.remove()
    handles = [
        own.mlp.gate.register_forward_hook(repeat(number))
        for number, own in enumerate(layers)
        if number > layer
    ]
    try:
        return oracle.run(model, case, noise, (layer, clean[layer][at], at))
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("position", [-1, -3])
def test_against_hooks_on_the_routers(position):
    model, cases = make_model("qwen3_moe"), make_cases(3)
    with prepared(model):
        patches = [Patch.block(layer).with_fixed_routing() for layer in range(4)]
        found = TreeEngine(make_job(find_anatomy(model), patches, None, position)).run(cases)
        for index, case in enumerate(cases):
            clean: dict[int, torch.Tensor] = {}
            oracle.run(model, case, keep=clean)
            expected = [by_hand(model, case, layer, clean, position) for layer in range(4)]
            np.testing.assert_allclose(found.patched[index, :, 0], expected, atol=3e-4)
