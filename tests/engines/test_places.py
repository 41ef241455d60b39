"""Patches at several places and from either run: the tree engine against plain forwards, and those against
hooks written by hand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import moetrace as mt
from moetrace._native import _core
from moetrace.engines.job import Origin, Patch, Sweep, make_job
from moetrace.engines.places import LAST, Place
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.self_check import Witness
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.state import prepared
from tests.engines.test_expert_patches import assert_same, every_patch
from tests.engines.tiny import make_cases, make_model
from tests.trace.hand import run_by_hand

Chosen, Join = _core.Chosen, _core.Join
CASES = make_cases(3)
PLACES = (
    LAST,
    Place("subject", lambda case: tuple(range(*case.subject)), most=3),
    Place("ends", lambda case: (case.subject[0], len(case.input_ids) - 1), most=2),
    # A token that only some cases have.
    Place("thirteenth", lambda case: (12,) if len(case.input_ids) > 12 else ()),
    Place("second", lambda case: (1,)),
)


def blocks_and_experts(anatomy, draws=2):
    """Block patches of every layer at every place from either run; expert patches and sweeps of some."""
    patches = [
        patch
        for origin in Origin
        for place in range(len(PLACES))
        for patch in (
            *(Patch.block(layer, place, origin) for layer in anatomy.default_layers()),
            Patch.null(1, place, origin),
        )
    ]
    sweeps = []
    for layer in anatomy.sparse_layers[-2:]:
        for place, origin in enumerate(Origin, 1):
            patches += [
                Patch.of_experts(layer, Chosen.CLEAN, place=place, origin=origin),
                Patch.of_experts(layer, Chosen.UNION, place=place, origin=origin),
                Patch.of_experts(layer, Chosen.SUBSET, subset=0b100101, place=place, origin=origin),
                Patch.of_experts(layer, Chosen.EXPERTS, experts=[1, 3, 5], place=place, origin=origin),
                Patch.of_experts(layer, Chosen.MATCHED, experts=[2], place=place, origin=origin),
            ]
        sweeps += [
            Sweep(layer, 8, True, 1, Origin.DENOISE),
            Sweep(layer, 8, False, 2, Origin.NOISE),
            Sweep(layer, 2, True, 3),
            Sweep(layer, 2, False, 4, Origin.NOISE),
        ]
    return make_job(anatomy, patches, mt.SubjectNoise(draws=draws), PLACES, sweeps)


@cache
def by_plain_forwards(family):
    """A model, its job and what plain forwards find, once for all ways in which forks join."""
    model = make_model(family)
    with prepared(model):
        job = blocks_and_experts(find_anatomy(model))
        return model, job, ReferenceEngine(job).run(CASES)


@pytest.mark.parametrize("join", Join)
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window", "deepseek_v3", "gpt_oss", "gemma3"])
def test_tree_equals_reference(family, join):
    model, job, expected = by_plain_forwards(family)
    with prepared(model):
        found = TreeEngine(job, join).run(CASES)
        cut = TreeEngine(job, join, batch_tokens=1).run(CASES[:1])
    assert_same(found, expected)
    np.testing.assert_allclose(cut.patched, found.patched[:1], atol=2e-4)
    absent = np.array([len(case.input_ids) <= 12 for case in CASES])
    assert absent.any()
    assert not absent.all()
    there = np.array([patch.place != 3 for patch in job.patches]) | ~absent[:, None]
    np.testing.assert_array_equal(found.present, there)
    np.testing.assert_array_equal(np.isnan(found.patched).all(axis=2), ~there)
    assert found.finite().all()
    for (_, place), own in found.routing.items():
        if place == 3:
            assert not own.patched_active[absent].any()
            assert np.isnan(own.clean_logit[absent]).all()


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3"])
def test_reference_is_the_definition(family):
    model, case = make_model(family), CASES[1]
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [Patch.block(2, place, origin) for origin in Origin for place in (0, 1, 2, 4)]
        job = make_job(anatomy, patches, mt.SubjectNoise(draws=2), PLACES)
        found = ReferenceEngine(job).run([case])
        for draw, noise in enumerate(job.corruptor.values(case)):
            _, clean = run_by_hand(model, case, None, 2, {})
            _, noised = run_by_hand(model, case, noise, 2, {})
            for column, patch in enumerate(patches):
                tokens = PLACES[patch.place].find(case)
                denoise = patch.origin is Origin.DENOISE
                rows = {at: (clean if denoise else noised)[at] for at in tokens}
                expected, _ = run_by_hand(model, case, noise if denoise else None, 2, rows)
                assert found.patched[0, column, draw] == pytest.approx(expected, abs=2e-4)
    assert np.ptp(found.patched) > 0.1


def test_all_tokens_from_either_run_give_the_other_run():
    """Every block output of the whole prompt and every layer exchanged in layer 0 of a model whose attention
    is left out: nothing is left of the run that it leaves from but what attention and embedding carry."""
    model, cases = make_model("qwen3_moe"), make_cases(2)
    everything = (Place("every", lambda case: tuple(range(len(case.input_ids))), most=14),)
    with prepared(model):
        union = [Patch.of_experts(2, Chosen.UNION, origin=origin) for origin in Origin]
        job = make_job(
            find_anatomy(model), [*(Patch.block(2, 0, o) for o in Origin), *union], None, everything
        )
        found = TreeEngine(job).run(cases)
    # All experts of either run together are the whole block.
    np.testing.assert_allclose(found.patched[:, 2:], found.patched[:, :2], atol=2e-4)
    assert (np.abs(found.patched[:, 0] - found.noised) > 1e-3).all()
    assert (np.abs(found.patched[:, 1, 0] - found.clean) > 1e-3).all()


def test_a_witness_names_only_places_that_its_case_has():
    model = make_model("qwen3_moe")
    short = next(case for case in CASES if len(case.input_ids) <= 12)
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [Patch.block(1, 3), Patch.block(2, 1, Origin.NOISE), Patch.block(3, 3), Patch.block(2, 4)]
        job = make_job(anatomy, patches, None, PLACES, [Sweep(1, 2, False, 3), Sweep(2, 6, True, 1)])
        outcome = TreeEngine(job).run([short])
        witness = Witness.of(job, short)
        assert witness.columns == (1, 3)
        found = witness.compare(witness.plain(), outcome, Join.AFTER_LAYER)
        assert found.difference < 2e-4
        swept = make_job(anatomy, [Patch.block(1, 3)], None, PLACES, job.sweeps)
        witness = Witness.of(swept, short)
        assert [sweep.place for sweep in witness.firsts] == [1]
        outcome = TreeEngine(swept).run([short])
        assert witness.compare(witness.plain(), outcome, Join.AFTER_LAYER).difference < 2e-4
        np.testing.assert_allclose(witness.plain().patched, witness.found(outcome).patched, atol=2e-4)


def test_one_place_of_every_kind_of_patch_at_several_tokens():
    model, cases = make_model("qwen2_moe"), make_cases(3)
    with prepared(model):
        job = make_job(find_anatomy(model), every_patch(2), None, PLACES[1:2], [Sweep(2, 6, True)])
        assert_same(TreeEngine(job).run(cases), ReferenceEngine(job).run(cases))
