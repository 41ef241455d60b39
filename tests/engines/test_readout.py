"""How logits are read: exactly, or as the model's own head and dtype round them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import moetrace as mt
from tests.engines.tiny import make_cases, make_model


@pytest.fixture(scope="module")
def half():
    """A model in bfloat16 whose experts move the logits by about as much as its dtype rounds them."""
    model = make_model("qwen3_moe")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.mul_(0.02)
    return model.bfloat16()


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_rounded_logits_give_exact_zeros_and_exact_ones_none(half, engine):
    cases = make_cases(8)
    found = {
        readout: mt.trace_experts(half, cases, layer=3, readout=readout, engine=engine).rows
        for readout in ("exact", "model")
    }
    active = {readout: rows[rows.clean_active] for readout, rows in found.items()}
    zeros = {readout: int((rows.rescue == 0.0).sum()) for readout, rows in active.items()}
    assert zeros["model"] > 0
    assert zeros["exact"] == 0
    # What the model gives is what its dtype can hold: logits of bfloat16, not of float64.
    patched = active["model"].patched.to_numpy()
    assert not np.array_equal(patched, active["exact"].patched.to_numpy())
    np.testing.assert_allclose(patched, active["exact"].patched, atol=0.05 * np.abs(patched).max())


def test_in_float32_both_are_the_same_beyond_rounding():
    model, cases = make_model("qwen3_moe"), make_cases(4)
    exact, own = (mt.trace_layers(model, cases, readout=readout) for readout in ("exact", "model"))
    np.testing.assert_allclose(exact.effects, own.effects, atol=1e-4)
    assert not np.array_equal(exact.effects, own.effects)


def test_models_logits_are_the_models(half):
    case = make_cases(3)[2]
    traced = mt.trace_layers(half, [case], readout="model")
    with torch.no_grad():
        logits = half(input_ids=torch.tensor([case.input_ids])).logits[0, -1].double()
    assert traced.cases.clean[0] == pytest.approx(float(logits[case.true_id] - logits[case.foil_id]), abs=0.1)


def test_the_readout_is_recorded_and_part_of_the_call(tmp_path):
    model, cases = make_model("qwen3_moe"), make_cases(2)
    for readout in ("exact", "model"):
        out = tmp_path / readout
        found = mt.trace_layers(model, cases, layers=[1], readout=readout, out=out)
        assert found.provenance["readout"] == readout
        assert json.loads((out / "call.json").read_text())["readout"] == readout
        assert mt.load(out).provenance["readout"] == readout
    assert mt.trace_layers(model, cases, layers=[1]).provenance["readout"] == "exact"
    for readout, other in (("exact", "model"), ("model", "exact")):
        out = tmp_path / readout
        with pytest.raises(mt.errors.RunFolderError, match=r"different: readout\)"):
            mt.trace_layers(model, cases, layers=[1], readout=other, out=out)
        mt.trace_layers(model, cases, layers=[1], readout=readout, out=out)  # the same goes on


def test_what_is_no_readout_is_refused():
    with pytest.raises(mt.errors.ArgumentError, match="'exact' or 'model'"):
        mt.trace_layers(make_model("qwen3_moe"), make_cases(1), readout="rounded")


def test_the_docstring_names_both():
    text = mt.trace_layers.__doc__
    assert "``readout``" in text
    assert '"exact"' in text
    assert '"model"' in text
