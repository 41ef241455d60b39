from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import find_anatomy
from moetrace.planted import plant
from moetrace.results.expert_name import ExpertRangeError
from moetrace.trace.routes import refuse_unknown_routing
from tests.engines.tiny import make_model


@pytest.fixture(scope="module")
def routes(model, cases):
    return mt.trace_routes(model, cases)


def test_rescue_is_the_layer_sweep_and_the_last_layer_has_no_later_routers(model, cases, routes):
    layers = mt.trace_layers(model, cases)
    np.testing.assert_allclose(routes.effects, layers.effects, atol=2e-4)
    np.testing.assert_allclose(routes.effects[:, -1], routes.fixed[:, -1], atol=2e-4)
    assert np.abs(routes.routing[:, :-1]).max() > 0.05
    rows = routes.rows
    assert list(rows.columns)[2:4] == ["layer", "patch"]
    assert (rows.patch == "block").all()
    np.testing.assert_allclose(rows.rescue, rows.fixed + rows.routing, atol=1e-12)


def test_engines_agree(model, cases, routes):
    plain = mt.trace_routes(model, cases, engine="reference")
    np.testing.assert_allclose(routes.fixed, plain.fixed, atol=3e-4)
    np.testing.assert_allclose(routes.effects, plain.effects, atol=3e-4)


def test_experts(model, cases):
    exact = mt.trace_experts(model, cases)
    best = exact.candidates(mean="all").head(3)
    found = mt.trace_routes(model, cases, experts=best.star.tolist())
    assert found.sites.patch.tolist() == best.star.tolist()
    columns = [
        int(np.flatnonzero((exact.sites == [s.layer, s.expert]).all(axis=1))[0]) for s in best.itertuples()
    ]
    np.testing.assert_allclose(found.effects, exact.effects[:, columns], atol=2e-4)
    idle = ~exact.arrays.clean_active[:, columns]
    assert idle.any()
    assert (found.effects[idle] == 0).all()
    assert (found.fixed[idle] == 0).all()
    plain = mt.trace_routes(model, cases, experts=best.star.tolist(), engine="reference")
    np.testing.assert_allclose(found.fixed, plain.fixed, atol=3e-4)
    both = mt.trace_routes(model, cases, layers=[1], experts=[(0, 3)], position=-2)
    assert both.sites.patch.tolist() == ["block", "L00E003"]


def test_planted_routers_that_never_change_their_mind_carry_nothing():
    planted = plant("set", n=6)
    found = mt.trace_routes(planted.model, planted.cases)
    np.testing.assert_allclose(found.fixed, planted.truth.layers, atol=1e-4)
    np.testing.assert_allclose(found.routing, 0.0, atol=1e-4)


def test_saved_joined_shown(routes, tmp_path):
    routes.save(tmp_path / "routes")
    again = mt.load(tmp_path / "routes")
    assert isinstance(again, mt.RouteTrace)
    pd.testing.assert_frame_equal(again.rows, routes.rows)
    ids = routes.cases.case_id.tolist()
    joined = mt.concat([routes.subset(ids[:2]), routes.subset(ids[2:])])
    pd.testing.assert_frame_equal(joined.rows, routes.rows)
    table = routes.summary(correction="holm")
    assert table.effect.tolist()[:3] == ["rescue", "fixed", "routing"]
    np.testing.assert_allclose(table["mean"][table.effect == "routing"], routes.routing.mean(axis=0))
    assert "routing" in routes._repr_html_()
    pytest.importorskip("matplotlib").use("Agg")
    assert len(routes.plot().get_lines()) >= 2


def test_a_run_folder_is_resumed(model, cases, routes, tmp_path):
    first = mt.trace_routes(model, cases, layers=[0, 1], out=tmp_path / "run")
    again = mt.trace_routes(model, cases, layers=[0, 1], out=tmp_path / "run")
    np.testing.assert_array_equal(first.fixed, again.fixed)
    np.testing.assert_allclose(first.fixed, routes.fixed[:, :2], atol=2e-4)


def test_refused_by_name(model, cases):
    with pytest.raises(ExpertRangeError, match="L01E099"):
        mt.trace_routes(model, cases, experts=["L01E099"])
    with pytest.raises(errors.ArgumentError, match="experts is empty"):
        mt.trace_routes(model, cases, experts=[])
    with pytest.raises(errors.ArgumentError, match="twice"):
        mt.trace_routes(model, cases, experts=["L01E001", (1, 1)])
    with pytest.raises(errors.LayerRangeError, match="layer 9"):
        mt.trace_routes(model, cases, layers=9)
    with pytest.raises(errors.LayoutError, match="no layers with routed experts"):
        mt.trace_routes(make_model("llama"), cases)
    anatomy = find_anatomy(model)
    sites = list(anatomy.sites)
    sites[2] = replace(sites[2], experts=None)
    with pytest.raises(errors.LayoutError, match=r"layer 2 .* can't be fixed"):
        refuse_unknown_routing(replace(anatomy, sites=tuple(sites)), 1)
    refuse_unknown_routing(replace(anatomy, sites=tuple(sites)), 2)


def test_other_metrics_are_in_their_unit(model, cases):
    pytest.importorskip("matplotlib").use("Agg")
    found = mt.trace_routes(model, cases, layers=[0, 1], metric="kl")
    assert " nats; " in repr(found)
    assert found.plot().get_ylabel() == "mean rescue (nats)"


def around(case):
    return [case.subject[0], len(case.input_ids) - 1]


@pytest.mark.parametrize("position", ["subject", around])
def test_several_tokens_together(model, cases, position):
    star = mt.trace_experts(model, cases, layer=0, position=position).select(min_active=1)
    call = {"layers": [0, 1], "experts": [star], "position": position, "noise": mt.SubjectNoise(draws=2)}
    found = mt.trace_routes(model, cases, **call)
    plain = mt.trace_routes(model, cases, **call, engine="reference")
    np.testing.assert_allclose(found.effects, plain.effects, atol=3e-4)
    np.testing.assert_allclose(found.fixed, plain.fixed, atol=3e-4)
    assert np.abs(found.routing).max() > 0.02
    own = {"position": position, "noise": call["noise"]}
    layers = mt.trace_layers(model, cases, layers=[0, 1], **own)
    np.testing.assert_allclose(found.effects[:, :2], layers.effects, atol=3e-4)
    experts = mt.trace_experts(model, cases, layer=0, **own)
    np.testing.assert_allclose(found.effects[:, 2], experts.effects[:, star.expert], atol=3e-4)
    assert found.provenance["position"] == (position if position == "subject" else "around")
    assert (found.variance_components().draws == 2).all()


@pytest.mark.parametrize("position", ["all", ["subject", "last"]])
def test_one_place_at_a_time(model, cases, position):
    with pytest.raises(errors.ArgumentError, match="trace_routes once for each position"):
        mt.trace_routes(model, cases, position=position)
