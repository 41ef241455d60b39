"""A model whose map of layers and tokens is known: blocks and experts at every position."""

from __future__ import annotations

import numpy as np
import pytest

import moetrace as mt
from moetrace.errors import ArgumentError
from moetrace.planted import FAMILIES, plant_positions

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module", params=FAMILIES)
def moved(request):
    return plant_positions(request.param, n=4, layers=4, moves=2)


def before_subject(case):
    return case.subject[0] - 1 if case.subject[0] else case.subject[1]


def test_the_block_map(moved, engine):
    assert len({len(case.input_ids) for case in moved.cases}) > 3
    found = mt.trace_layers(moved.model, moved.cases, position="all", engine=engine)
    truth, sites = moved.truth, found.sites
    expected = truth.layers[:, sites.layer, sites.position]
    assert len(sites) == truth.layers[0].size
    np.testing.assert_allclose(found.cases.clean, truth.clean, **TOLERANCE)
    np.testing.assert_allclose(found.cases.noised, truth.noised, **TOLERANCE)
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)  # NaN in the same places
    np.testing.assert_array_equal(found.effects[expected == 0], 0.0)


def test_the_expert_map(moved, engine):
    found = mt.trace_experts(moved.model, moved.cases, position="all", engine=engine)
    sites = found.sites
    expected = moved.truth.experts[:, sites.layer, sites.position, sites.expert]
    # No site that rescues anything is missing.
    assert np.nansum(expected) == pytest.approx(np.nansum(moved.truth.experts), abs=1e-9)
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
    np.testing.assert_array_equal(found.effects[expected == 0], 0.0)


def test_what_the_map_says(moved):
    truth, writer, reader = moved.truth, moved.writer, moved.reader
    drop = truth.clean - truth.noised
    assert len(mt.select_cases(moved.model, moved.cases, n=4)) == len(moved.cases)
    assert (drop > 0.8).all()
    at_subject, at_last = truth.layers_at("subject_last"), truth.layers_at("last")
    # One layer at the subject gives most of it back; behind the move the last token's layers share all of it.
    assert (at_subject[:, writer.layer] > 0.75 * drop).all()
    np.testing.assert_array_equal(np.delete(at_subject, writer.layer, axis=1), 0.0)
    np.testing.assert_array_equal(at_last[:, : moved.moves], 0.0)
    np.testing.assert_allclose(at_last.sum(axis=1), drop, atol=1e-9)
    np.testing.assert_allclose(at_last[:, moved.moves], 0.6 * drop, atol=1e-9)
    # Nothing anywhere else but where noise wrote at the subject's earlier tokens.
    subject = truth.layers_at("subject") - at_subject
    assert 0 < np.abs(subject).max() < 0.25
    total = np.nansum(truth.layers, axis=2)
    np.testing.assert_allclose(total, truth.layers_at("subject") + at_last, atol=1e-9)
    experts = truth.experts_at("subject")
    written = experts[:, writer.layer, writer.expert]
    np.testing.assert_allclose(written, truth.layers_at("subject")[:, writer.layer], atol=1e-9)
    alone = np.nansum(truth.experts[:, writer.layer, :, writer.expert], axis=1)
    np.testing.assert_allclose(alone, at_subject[:, writer.layer], atol=1e-9)
    assert (experts != 0).sum() == len(moved.cases)
    assert (truth.experts_at("last")[:, reader.layer, reader.expert] == at_last[:, reader.layer]).all()


@pytest.mark.filterwarnings("ignore::moetrace.errors.NoEffectWarning")
def test_positions_by_name(moved, engine):
    names = ["last", "subject_last", "subject", "after_subject", before_subject, 2]
    labels = [str(getattr(name, "__name__", name)) for name in names]
    blocks = mt.trace_layers(moved.model, moved.cases, position=names, engine=engine)
    experts = mt.trace_experts(moved.model, moved.cases, position=names, engine=engine)
    assert [str(label) for label in blocks.positions] == labels
    for name, label in zip(names, blocks.positions, strict=True):
        expected = moved.truth.layers_at(name)
        np.testing.assert_allclose(blocks.at(label).effects, expected, **TOLERANCE)
        sites, expected = experts.at(label).sites, moved.truth.experts_at(name)
        found = experts.at(label).effects
        np.testing.assert_allclose(found, expected[:, sites.layer, sites.expert], **TOLERANCE)
    assert blocks.best == moved.writer.layer
    assert experts.select("subject_last") == moved.writer
    assert experts.select("last") == moved.reader


@pytest.mark.parametrize("noise", [mt.SubjectNoise(scale=1.0, seed=7), mt.SubjectNoise(draws=3)])
def test_other_noise(moved, engine, noise):
    truth = moved.truth_under(noise)
    found = mt.trace_layers(moved.model, moved.cases, position="all", noise=noise, engine=engine)
    sites = found.sites
    np.testing.assert_allclose(found.cases.noised, truth.noised, **TOLERANCE)
    np.testing.assert_allclose(found.effects, truth.layers[:, sites.layer, sites.position], **TOLERANCE)
    assert np.nanmax(np.abs(truth.layers - moved.truth.layers)) > 0.05


@pytest.mark.parametrize(("layers", "layer", "moves"), [(2, 0, 1), (4, 0, 3), (4, 1, 2)])
def test_any_layers(layers, layer, moves):
    planted = plant_positions(n=3, layers=layers, layer=layer, moves=moves, seed=3)
    found = mt.trace_layers(planted.model, planted.cases, position="all")
    sites = found.sites
    expected = planted.truth.layers[:, sites.layer, sites.position]
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
    by_hand = planted.truth.layers_at("last")[:, moves] / (planted.truth.clean - planted.truth.noised)
    np.testing.assert_allclose(by_hand, 1.0 if moves == layers - 1 else 0.6, atol=1e-9)


def test_refused():
    with pytest.raises(ArgumentError, match="moves is 1; expected a layer behind layer 1"):
        plant_positions(layer=1, moves=1)
    with pytest.raises(ArgumentError, match="of 3 layers"):
        plant_positions(layers=3, moves=3)
    planted = plant_positions(n=2)
    with pytest.raises(ArgumentError, match="'all' or a list"):
        planted.truth.layers_at("all")
    with pytest.raises(ArgumentError, match="outside the prompt"):
        planted.truth.layers_at(99)
    with pytest.raises(ArgumentError, match="noise"):
        planted.truth_under("loud")


def two_tokens(case):
    """The subject's last token and the prompt's."""
    return [case.subject[1] - 1, -1]


@pytest.mark.parametrize("position", ["subject_last", "last", "subject", "all", two_tokens])
@pytest.mark.filterwarnings("ignore::moetrace.errors.NoEffectWarning")
def test_experts_switched_off(moved, engine, position):
    found = mt.trace_knockout(moved.model, moved.cases, position=position, engine=engine)
    truth = moved.necessity.zero_at(position)
    assert found.provenance["engine"] == engine
    np.testing.assert_allclose(found.effects.reshape(truth.shape), truth, **TOLERANCE)
    assert truth.min() < -0.5
    writer, reader = moved.writer, moved.reader
    lost = moved.truth.clean - 0.5  # what the last token brings along stays
    reads, writes = (truth[:, own.layer, own.expert] for own in (reader, writer))
    if position in ("last", "all", two_tokens):
        np.testing.assert_allclose(reads, -0.6 * lost, atol=1e-6)
        assert reader in found.important(2)
    if position != "last":
        assert (writes < -0.7 * lost).all()
        assert found.important(1) == [writer]
    assert found.auroc([reader if position == "last" else writer]) > 0.9


@pytest.mark.filterwarnings("ignore::moetrace.errors.NoEffectWarning")
def test_noised_values_in_the_clean_run(moved, engine):
    found = mt.trace_layers(moved.model, moved.cases, position="all", mode="noise", engine=engine)
    truth, sites = moved.necessity, found.sites
    expected = truth.noised_layers[:, sites.layer, sites.position]
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
    assert found.best == moved.writer.layer
    found = mt.trace_experts(moved.model, moved.cases, position="all", mode="noise", engine=engine)
    sites = found.sites
    expected = truth.noised_experts[:, sites.layer, sites.position, sites.expert]
    np.testing.assert_allclose(found.effects, expected, **TOLERANCE)
    for name in ("subject_last", "subject", "last"):
        layers = mt.trace_layers(moved.model, moved.cases, position=name, mode="noise", engine=engine)
        np.testing.assert_allclose(layers.effects, truth.noised_layers_at(name), **TOLERANCE)
        experts = mt.trace_experts(moved.model, moved.cases, position=name, mode="noise", engine=engine)
        expected = truth.noised_experts_at(name)
        np.testing.assert_allclose(experts.effects.reshape(expected.shape), expected, **TOLERANCE)
    # What a layer takes isn't what it gives back: the norm of a token counts beside what is written.
    back, taken = moved.truth.layers_at("subject_last"), -truth.noised_layers_at("subject_last")
    assert (taken[:, moved.writer.layer] > 0.2).all()
    assert np.abs(back - taken).max() > 1e-3


@pytest.mark.filterwarnings("ignore::moetrace.errors.NoEffectWarning")
def test_direct_effects_of_the_map(moved):
    for name in ("subject_last", "last"):
        found = mt.trace_layers(moved.model, moved.cases, position=name)
        place = [
            own.subject[1] - 1 if name == "subject_last" else len(own.input_ids) - 1 for own in moved.cases
        ]
        expected = np.stack([own[:, at] for own, at in zip(moved.direct_layers, place, strict=True)])
        np.testing.assert_allclose(found.direct, expected, **TOLERANCE)
        assert (np.abs(expected).max() > 0.5) == (name == "last")
