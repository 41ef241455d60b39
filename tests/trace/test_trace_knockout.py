from __future__ import annotations

import gc
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import moetrace as mt
from moetrace import errors
from moetrace.engines.job import Origin, make_job
from moetrace.engines.knockout import Ablation
from moetrace.engines.places import all_together
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.experts import routed_call
from moetrace.trace.experts import expert_sweeps
from tests.engines.tiny import make_cases, make_model
from tests.engines.wide import llama4
from tests.weights.folders import load_plain, load_streamed, save

COLUMNS = ["case_id", "relation_id", "layer", "expert", "clean_active", "clean", "ablated", "effect"]


@pytest.fixture(scope="module")
def cases():
    return mt.CaseSet(make_cases(5))


@pytest.fixture(scope="module")
def knock(model, cases):
    return mt.trace_knockout(model, cases)


def test_rows(knock, cases):
    rows = knock.rows
    assert rows.columns.tolist() == COLUMNS
    assert len(rows) == 5 * 4 * 8
    np.testing.assert_allclose(rows.effect, rows.ablated - rows.clean, atol=1e-12)
    assert (rows.effect[~rows.clean_active] == 0).all()
    assert rows.clean_active.sum() == 5 * 4 * 2
    assert knock.provenance["ablation"] == "zero"
    assert knock.provenance["engine"] == "tree"
    assert 0 <= knock.noise_floor < 1e-4
    summary = knock.summary(n_resamples=50, n_flips=50)
    np.testing.assert_allclose(summary["mean"], knock.effects.mean(axis=0))


def test_clean_is_the_models_own(knock, model, cases):
    for index, case in enumerate(cases):
        with torch.no_grad():
            logits = model(torch.tensor([case.input_ids])).logits[0, -1].double()
        expected = float(logits[case.true_id] - logits[case.foil_id])
        assert knock.cases.clean[index] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample", "reroute"])
@pytest.mark.parametrize("position", ["subject_last", -2, "subject", "all", lambda case: [1, -2]])
def test_earlier_positions(model, cases, ablation, position):
    options = {"ablation": ablation, "position": position, "layers": [1, 2]}
    tree = mt.trace_knockout(model, cases, engine="tree", **options)
    plain = mt.trace_knockout(model, cases, engine="reference", **options)
    np.testing.assert_allclose(tree.effects, plain.effects, atol=2e-4)
    np.testing.assert_array_equal(tree.clean_active, plain.clean_active)
    assert np.abs(tree.effects).max() > 1e-3


def test_every_token_together_in_parts_and_by_name(model, cases):
    """A case that is cut into several passes: some have no run at the first tokens."""
    whole = mt.trace_knockout(model, cases, position="all", engine="tree")
    assert whole.provenance["position"] == "all"
    parts = mt.trace_knockout(model, cases, position="all", engine="tree", batch_tokens=1)
    np.testing.assert_allclose(parts.effects, whole.effects, atol=1e-4)
    np.testing.assert_array_equal(parts.clean_active, whole.clean_active)
    for layer, expert in ((0, 3), (2, 6)):
        one = mt.trace_knockout(model, cases, (layer, expert), position="all", engine="tree")
        np.testing.assert_allclose(one.effects[:, 0], whole.effects[:, 8 * layer + expert], atol=1e-4)
    assert whole.clean_active.mean() > 0.5
    for engine in ("tree", "reference"):
        curves = mt.trace_knockout(model, cases, layers=1, position="all", engine=engine)
        first = curves.greedy(1, draws=0, shares=[1.0])
        (best,) = curves.important(1)
        own = curves.effects[:, best.expert]
        np.testing.assert_allclose(first.values[1] - first.values[0], own, atol=2e-4)


def test_rows_of_every_token_together(model, cases):
    """A chain begins where its slot's expert can be routed to for the first time, two a token."""
    anatomy = find_anatomy(model)
    place = all_together(cases)
    sweeps = expert_sweeps(anatomy, [1, 2], [place], False, Origin.NOISE)
    ablation = Ablation("zero", lambda case: range(len(case.input_ids)))
    job = make_job(anatomy, [], 0.0, (place,), sweeps, ablation=ablation)
    for case in cases:
        length = len(case.input_ids)
        chains = sum(max(0, length - slot // 2) for slot in range(8))
        assert TreeEngine(job).rows_of(case) == length + 1 + 2 * chains


def test_some_experts(knock, model, cases):
    named = [mt.Expert(2, 5), mt.Expert(0, 1), mt.Expert(2, 0)]
    columns = [2 * 8 + 5, 1, 2 * 8]
    for given in (named, [str(one) for one in named], [(2, 5), (0, 1), (2, 0)]):
        found = mt.trace_knockout(model, cases, given)
        assert found.experts == sorted(named)
        np.testing.assert_allclose(found.effects, knock.effects[:, sorted(columns)], atol=1e-4)
    numbers = mt.trace_knockout(model, cases, [5, 0], layers=2)
    assert numbers.experts == [mt.Expert(2, 0), mt.Expert(2, 5)]
    assert mt.trace_knockout(model, cases, "L02E005").experts == [mt.Expert(2, 5)]


def test_batches_and_order_change_nothing(knock, model, cases):
    small = mt.trace_knockout(model, list(cases)[::-1], batch_tokens=64)
    np.testing.assert_allclose(small.effects[::-1], knock.effects, atol=1e-4)


def test_donors_depend_on_the_case_alone(model, cases):
    options = {"ablation": "resample", "layers": 1, "reference": cases, "seed": 5}
    every = mt.trace_knockout(model, cases, **options)
    some = mt.trace_knockout(model, cases[2:], **options)
    np.testing.assert_array_equal(some.donors, every.donors[2:])
    active = every.clean_active
    assert (every.donors[~active] == -1).all()
    own = every.cases.case_id.to_numpy()
    assert (every.donors != own[:, None])[active].all()
    assert every.rows.donor.tolist() == every.donors.ravel().tolist()
    other = mt.trace_knockout(model, cases, **{**options, "seed": 6})
    assert (other.donors != every.donors).any()


def test_another_reference_set_gives_other_means(model, cases):
    others = [mt.Case(c.input_ids[::-1], (0, 1), c.true_id, c.foil_id, 900 + i) for i, c in enumerate(cases)]
    reference = [*others, *cases]
    own = mt.trace_knockout(model, cases, layers=1, ablation="mean")
    found = mt.trace_knockout(model, cases, layers=1, ablation="mean", reference=reference)
    assert np.abs(found.effects - own.effects).max() > 1e-3
    assert found.provenance["reference"] != own.provenance["reference"]


def test_saved_and_loaded(tmp_path, model, cases):
    trace = mt.trace_knockout(model, cases, layers=[0, 1], ablation="resample")
    trace.save(tmp_path / "knock")
    again = mt.load(tmp_path / "knock")
    assert isinstance(again, mt.KnockoutTrace)
    np.testing.assert_array_equal(again.rows, trace.rows)
    assert again.important(3) == trace.important(3)
    with pytest.raises(errors.ArgumentError, match="knockout_curves"):
        again.greedy(2)
    curves = mt.knockout_curves(again, model, cases, 2, draws=1, shares=[0.5])
    expected = trace.greedy(2, draws=1, shares=[0.5])
    np.testing.assert_allclose(curves.values, expected.values, atol=1e-6)
    with pytest.raises(errors.ArgumentError, match="isn't the one that was traced"):
        mt.knockout_curves(again, make_model("qwen3_moe", seed=1), cases, 2)
    with pytest.raises(errors.ArgumentError, match="lacks 1 of the trace"):
        mt.knockout_curves(again, model, cases[1:], 2)


def test_a_run_folder_is_gone_on_with(tmp_path, model, cases, knock):
    found = mt.trace_knockout(model, cases, out=tmp_path / "run")
    np.testing.assert_array_equal(found.effects, knock.effects)
    again = mt.trace_knockout(model, cases, out=tmp_path / "run")
    np.testing.assert_array_equal(again.effects, knock.effects)
    with pytest.raises(errors.RunFolderError):
        mt.trace_knockout(model, cases, ablation="mean", out=tmp_path / "run")


def test_subset_and_concat(knock, model, cases):
    half = knock.subset([case.case_id for case in cases[:2]])
    curves = half.greedy(2, draws=1, shares=[0.5])
    assert curves.values.shape[1] == 2
    both = mt.concat([half, knock.subset([case.case_id for case in cases[2:]])])
    np.testing.assert_array_equal(both.effects, knock.effects)
    other = mt.trace_knockout(model, cases[2:], ablation="mean")
    with pytest.raises(errors.ArgumentError):
        mt.concat([half, other])


def test_curves_are_those_of_hooks_by_hand(knock, model, cases):
    """Sets switched off together, by setting their weights to zero at the last token."""
    curves = knock.greedy(4, draws=2, shares=[0.25])
    for row, own, differences in zip(curves.rows.itertuples(), curves.sets, curves.values, strict=True):
        chosen = set(own) if row.curve == "off" else set(range(32)) - set(own)
        for case, found in zip(cases, differences, strict=True):
            assert found == pytest.approx(by_hand(model, case, chosen), abs=2e-4)
    off = curves.rows[curves.rows.curve == "off"]
    assert off.groupby(["order", "draw"])["count"].apply(list).tolist() == [[0, 1, 2, 3, 4]] * 5
    assert curves.areas().order.tolist() == ["importance", "frequency", "random"]
    for curve in ("off", "keep"):
        for value in ("logit_diff", "accuracy", "top_1", "faithfulness"):
            assert curves.plot(curve, value).get_xlabel()


def by_hand(model: Any, case: mt.Case, off: set[int]) -> float:
    logits = logits_by_hand(model, case, off)
    return float(logits[case.true_id] - logits[case.foil_id])


def logits_by_hand(model: Any, case: mt.Case, off: set[int]) -> torch.Tensor:
    """Of the last token, where experts (of eight in each layer) have no weight there."""
    handles = []
    for layer, block in enumerate(own.mlp for own in model.model.layers):
        experts = torch.tensor([column % 8 for column in off if column // 8 == layer], dtype=torch.long)

        def silence(module: Any, args: Any, kwargs: Any, experts: Any = experts) -> Any:
            hidden, index, weights = routed_call(module, args, kwargs, "")
            weights = weights.clone()
            weights[-1][torch.isin(index[-1], experts)] = 0
            return (hidden, index, weights), {}

        handles.append(block.experts.register_forward_pre_hook(silence, with_kwargs=True))
    with torch.no_grad():
        logits = model(torch.tensor([case.input_ids])).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    return logits


def test_controls_are_routed_to_as_often(knock):
    """Each control of equal frequency is the closest that was left, see effects.frequency_matched_sets."""
    frequency = knock.clean_active.sum(axis=0)
    curves = knock.greedy(3, draws=2, shares=[1.0])
    order = knock.order()[:3]
    for row, own in zip(curves.rows.itertuples(), curves.sets, strict=True):
        if row.curve == "off" and row.order == "frequency" and row.count == 3:
            free = set(range(32)) - set(order.tolist())
            for chosen, control in zip(order.tolist(), own, strict=True):
                best = min(abs(int(frequency[one]) - int(frequency[chosen])) for one in free)
                assert abs(int(frequency[control]) - int(frequency[chosen])) == best
                free.remove(control)
        if row.order != "importance" and row.curve == "off":
            assert not set(own) & set(order.tolist())


@pytest.mark.parametrize("ablation", ["mean", "resample", "reroute"])
def test_curves_begin_with_the_traces_own_effects(model, cases, ablation):
    trace = mt.trace_knockout(model, cases, layers=[1, 2], ablation=ablation)
    curves = trace.greedy(2, draws=0, shares=[0.5])
    (first,) = trace.important(1)
    own = trace.effects[:, trace.experts.index(first)]
    np.testing.assert_allclose(curves.values[1] - curves.values[0], own, atol=2e-4)
    assert np.isfinite(curves.values).all()


def test_the_model_comes_back_as_it_was_and_may_go(cases):
    own = make_model("qwen3_moe", seed=3)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in own.modules())
    trace = mt.trace_knockout(own, cases, layers=1, ablation="reroute")
    trace.greedy(1, draws=1, shares=[0.5])
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in own.modules())
    assert all(torch.equal(before[name], value) for name, value in own.state_dict().items())
    del own
    gc.collect()
    with pytest.raises(errors.ArgumentError, match="the model that was traced is gone"):
        trace.greedy(1)


def test_pictures(knock):
    for kind in ("experts", "heatmap"):
        ax = knock.plot(kind=kind, n_flips=50, n_resamples=50)
        assert "switched off" in ax.get_title(loc="left") + ax.get_title()
    assert "KnockoutTrace(5 cases x 32 experts" in repr(knock)
    assert "most important" in knock._repr_html_()


@cache
def scaled_tokens() -> Any:
    torch.manual_seed(0)
    model = tf.Llama4ForCausalLM(llama4()).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25)
    return model


@pytest.mark.parametrize("position", ["last", "all"])
def test_experts_that_are_given_scaled_tokens_are_switched_off_literally(position):
    """Llama 4: setting a router's score to zero takes the expert away."""
    model, cases = scaled_tokens(), make_cases(3)
    layer = 1
    found = mt.trace_knockout(model, cases, layers=layer, position=position)
    assert found.provenance["engine"] == "reference"
    router = model.model.layers[layer].feed_forward.router
    for index, case in enumerate(cases):
        tokens = slice(None) if position == "all" else slice(-1, None)
        for expert in range(8):

            def silence(_m: Any, _a: Any, out: Any, expert: int = expert, tokens: slice = tokens) -> Any:
                scores = out[0].clone()
                scores[tokens, expert] = 0
                return scores, out[1]

            handle = router.register_forward_hook(silence)
            with torch.no_grad():
                logits = model(torch.tensor([case.input_ids]), use_cache=False).logits[0, -1].double()
            handle.remove()
            expected = float(logits[case.true_id] - logits[case.foil_id]) - found.cases.clean[index]
            assert found.effects[index, expert] == pytest.approx(expected, abs=2e-4)
    assert (np.abs(found.effects) > 1e-3).sum() >= 3
    with pytest.raises(errors.EngineError, match="plain forwards"):
        mt.trace_knockout(model, cases, layers=layer, engine="tree")
    for ablation in ("mean", "resample", "reroute"):
        other = mt.trace_knockout(model, cases, layers=layer, ablation=ablation, position=position)
        assert np.isfinite(other.effects).all()
        assert np.abs(other.effects - found.effects).max() > 1e-3


WRONG = [
    ({"ablation": "median"}, errors.ArgumentError, "'median'"),
    ({"experts": ["L01E008"]}, errors.ArgumentError, "L01E008 doesn't exist"),
    ({"experts": ["L09E000"]}, errors.LayerRangeError, "layer 9"),
    ({"experts": []}, errors.ArgumentError, "experts is empty"),
    ({"experts": ["L01E001", (1, 1)]}, errors.ArgumentError, "repeats L01E001"),
    ({"experts": [1, 2]}, errors.ArgumentError, "give layers="),
    ({"experts": ["L01E001"], "layers": 1}, errors.ArgumentError, "expected one of them"),
    ({"layers": 7}, errors.LayerRangeError, "layer 7"),
    ({"reference": []}, errors.NoCasesError, "reference set holds no cases"),
    ({"position": "first"}, errors.ArgumentError, "first"),
    ({"position": 99}, errors.ArgumentError, "99"),
    ({"noise": 3.0}, errors.ArgumentError, "noise"),
    ({"mode": "noise"}, errors.ArgumentError, "mode"),
    ({"position": ["last", "subject"]}, errors.ArgumentError, "once for each of the list"),
    ({"metric": "perplexity"}, errors.ArgumentError, "perplexity"),
]


@pytest.mark.parametrize(("options", "error", "match"), WRONG)
def test_bad_input(model, cases, options, error, match):
    with pytest.raises(error, match=match):
        mt.trace_knockout(model, cases, **options)


def test_one_case_has_no_donor(model, cases):
    with pytest.raises(errors.ArgumentError, match="needs at least two cases"):
        mt.trace_knockout(model, cases[:1], ablation="resample")
    assert len(mt.trace_knockout(model, cases[:1], ablation="resample", reference=cases[:2])) == 1


@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_a_mean_needs_a_case_that_routes_to_the_expert(model, cases, engine):
    with pytest.raises(errors.ArgumentError, match=r"no token of the reference set \(1 cases\).* L0\dE00\d"):
        mt.trace_knockout(model, cases[1:], ablation="mean", reference=cases[:1], engine=engine)


def test_dense_models_have_no_experts(cases):
    with pytest.raises(errors.LayoutError, match="no layers with routed experts"):
        mt.trace_knockout(make_model("llama"), cases)


def test_no_cases_are_no_missing_reference(model):
    with pytest.raises(errors.NoCasesError, match="there are no cases; expected one"):
        mt.trace_knockout(model, [])


def test_a_knock_out_is_no_share_of_a_drop(knock):
    with pytest.raises(errors.ArgumentError, match="no corrupted run"):
        knock.normalised()


def test_a_router_whose_logits_are_not_told_is_refused(cases):
    own = make_model("qwen3_moe", seed=5)
    kind = type(own.model.layers[1].mlp.gate)

    class Other(kind):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor) -> Any:
            flat = hidden_states.reshape(-1, self.hidden_dim)
            logits = (flat[:, None] * self.weight).sum(dim=-1)  # no product that is known
            top, index = torch.softmax(logits, -1).topk(self.top_k, dim=-1)
            return logits, top / top.sum(dim=-1, keepdim=True), index

    own.model.layers[1].mlp.gate.__class__ = Other
    assert np.isfinite(mt.trace_knockout(own, cases, layers=1).effects).all()
    with pytest.raises(errors.LayoutError, match=r"layer 1: .*Other.*'zero', 'mean' and 'resample'"):
        mt.trace_knockout(own, cases, layers=1, ablation="reroute")


@pytest.mark.parametrize("n", [0, 33])
def test_curves_of_more_experts_than_there_are(knock, n):
    with pytest.raises(errors.ArgumentError, match="n is"):
        knock.greedy(n)


def test_reroute_must_leave_the_router_a_choice(model, cases):
    trace = mt.trace_knockout(model, cases, layers=1, ablation="reroute")
    with pytest.raises(errors.ArgumentError, match=r"7 experts of layer 1 .* takes 2, could choose among 1"):
        trace.greedy(7, draws=0)


def test_cases_with_infinite_logits_are_set_aside(cases):
    own = make_model("qwen3_moe", seed=3)
    with torch.no_grad():
        own.lm_head.weight[cases[1].true_id] = torch.inf
    for position in ("last", "all"):
        with pytest.warns(errors.NonFiniteWarning, match=str(cases[1].case_id)):
            found = mt.trace_knockout(own, cases, layers=1, position=position)
        assert found.failed.case_id.tolist() == [cases[1].case_id]
        assert len(found) == 4
        assert np.isfinite(found.effects).all()


@pytest.mark.parametrize("ablation", ["resample", "reroute"])
@pytest.mark.parametrize("position", ["last", "all"])
def test_weights_that_stay_on_disk(tmp_path, cases, ablation, position):
    made = save("qwen3_moe", tmp_path)
    options = {"ablation": ablation, "position": position, "layers": [1, 3]}
    plain = mt.trace_knockout(load_plain(made, tmp_path), cases, **options)
    streamed, _ = load_streamed(made, tmp_path)
    found = mt.trace_knockout(streamed, cases, **options)
    np.testing.assert_allclose(found.effects, plain.effects, atol=2e-4)
    np.testing.assert_array_equal(found.clean_active, plain.clean_active)
    curves = found.greedy(1, draws=0, shares=[0.5])
    assert np.isfinite(curves.values).all()
