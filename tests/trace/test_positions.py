"""``position=`` in all its forms: by both engines, by hooks written by hand, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import moetrace as mt
from moetrace.effects import variance_components
from moetrace.engines.job import make_job
from moetrace.errors import ArgumentError, NoEffectWarning
from moetrace.models.anatomy import find_anatomy
from moetrace.results.roles import ROLES, role_of
from tests.engines.tiny import make_cases, make_model
from tests.trace.hand import run_by_hand

CASES = make_cases(5)
NOISE = mt.SubjectNoise(draws=2)


def third_from_last(case: mt.Case) -> int:
    return -3


def around_the_subject(case: mt.Case) -> list[int]:
    return [case.subject[1], case.subject[0]]


ONE = {
    "last": lambda case: [len(case.input_ids) - 1],
    "subject_last": lambda case: [case.subject[1] - 1],
    "subject_first": lambda case: [case.subject[0]],
    "after_subject": lambda case: [case.subject[1]],
    5: lambda case: [5],
    -2: lambda case: [len(case.input_ids) - 2],
    third_from_last: lambda case: [len(case.input_ids) - 3],
}
SEVERAL = {
    "subject": lambda case: list(range(*case.subject)),
    around_the_subject: lambda case: sorted([case.subject[0], case.subject[1]]),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        yield


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("qwen3_moe")


def expected_rescue(model: Any, case: mt.Case, tokens: list[int], layer: int) -> float:
    """Mean over draws of patched minus noised (equation 4), by hooks written by hand."""
    job = make_job(find_anatomy(model), [], NOISE)
    found = []
    for noise in job.corruptor.values(case):
        _, clean = run_by_hand(model, case, None, layer, {})
        noised, _ = run_by_hand(model, case, noise, layer, {})
        patched, _ = run_by_hand(model, case, noise, layer, {at: clean[at] for at in tokens})
        found.append(patched - noised)
    return float(np.mean(found))


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3"])
def test_every_form_is_what_hooks_by_hand_give(family: str) -> None:
    model, layer = make_model(family), 1
    forms = {**ONE, **SEVERAL}
    found = mt.trace_layers(model, CASES[:2], layers=layer, position=list(forms), noise=NOISE)
    alone = {p: mt.trace_layers(model, CASES[:2], layers=layer, position=p, noise=NOISE) for p in forms}
    assert found.positions == [str(getattr(p, "__name__", p)) for p in forms]
    for column, (position, tokens) in enumerate(forms.items()):
        assert "position" not in alone[position].rows
        np.testing.assert_allclose(alone[position].effects[:, 0], found.effects[:, column], atol=2e-4)
        for row, case in enumerate(CASES[:2]):
            assert found.tokens[row, column] == tokens(case)[-1]
            expected = expected_rescue(model, case, tokens(case), layer)
            assert found.effects[row, column] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window", "deepseek_v3", "gemma3"])
def test_every_token_by_both_engines(family: str) -> None:
    model = make_model(family)
    found, expected = (
        mt.trace_layers(model, CASES, position="all", noise=NOISE, engine=engine)
        for engine in ("tree", "reference")
    )
    np.testing.assert_allclose(found.effects, expected.effects, atol=3e-4)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.direct, expected.direct, atol=3e-4)
    assert found.provenance["engine"] == "tree"
    for row, case in enumerate(CASES):
        n = len(case.input_ids)
        by_token = found.effects[row].reshape(len(found.layers), -1)
        assert np.isnan(by_token[:, n:]).all()
        assert not np.isnan(by_token[:, :n]).any()
        assert (by_token[:, : case.subject[0]] == 0).all()  # the same in both runs
        assert (by_token[-1, : n - 1] == 0).all() or np.abs(by_token[-1, : n - 1]).max() < 1e-5
        assert (found.direct[row].reshape(len(found.layers), -1)[:, : n - 1] == 0).all()  # no direct path
    last = mt.trace_layers(model, CASES, noise=NOISE)
    for row, case in enumerate(CASES):
        at = len(case.input_ids) - 1
        own = found.effects[row].reshape(len(found.layers), -1)[:, at]
        chosen = [found.layers.index(layer) for layer in last.layers]
        np.testing.assert_allclose(own[chosen], last.effects[row], atol=2e-4)


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral_window", "deepseek_v3", "gpt_oss"])
def test_experts_at_every_token_by_both_engines(family: str, union: bool) -> None:
    model = make_model(family)
    options: dict[str, Any] = {"layer": 2, "union": union, "noise": NOISE}
    for position in ("all", ["subject", "subject_last", third_from_last, "last"]):
        found, expected = (
            mt.trace_experts(model, CASES, position=position, engine=engine, **options)
            for engine in ("tree", "reference")
        )
        np.testing.assert_allclose(found.effects, expected.effects, atol=3e-4)
        mine, theirs = found.rows, expected.rows
        numbers = [name for name in mine.columns if mine[name].dtype.kind in "fib"]
        np.testing.assert_allclose(mine[numbers].to_numpy(float), theirs[numbers].to_numpy(float), atol=1e-3)
    for name in ("subject_last", "last"):
        alone = mt.trace_experts(model, CASES, position=name, **options)
        own = found.at(name)
        np.testing.assert_allclose(own.effects, alone.effects, atol=2e-4)
        pd.testing.assert_frame_equal(own.rows, alone.rows, atol=1e-3)
    # At several tokens an expert is active where it is at any of them, and its weights are sums.
    subject = found.at("subject").arrays
    for row, case in enumerate(CASES):
        if case.subject[1] - case.subject[0] == 1:
            one = found.at("subject_last").arrays
            np.testing.assert_array_equal(subject.clean_active[row], one.clean_active[row])
            np.testing.assert_allclose(subject.clean_weight[row], one.clean_weight[row], atol=1e-6)
        assert subject.clean_weight[row].sum() == pytest.approx(
            (case.subject[1] - case.subject[0]) * found.at("last").arrays.clean_weight[row].sum(), rel=0.7
        )


def test_all_experts_of_a_subject_are_its_blocks(model: Any) -> None:
    """Blocks that are nothing but their routed experts: every patch of the union adds up to the block's."""
    one = mt.trace_layers(model, CASES[:3], layers=2, position="subject")
    whole = mt.trace_coalitions(model, CASES[:3], layer=2, sets="union", position="subject_last")
    last = mt.trace_layers(model, CASES[:3], layers=2, position="subject_last")
    np.testing.assert_allclose(whole.effects[:, -1], last.effects[:, 0], atol=2e-4)
    alone = [row for row, case in enumerate(CASES[:3]) if case.subject[1] - case.subject[0] == 1]
    np.testing.assert_allclose(one.effects[alone], last.effects[alone], atol=2e-4)


def test_results_do_not_depend_on_batches(model: Any) -> None:
    whole = mt.trace_layers(model, CASES, position="all", noise=NOISE)
    for options in ({"batch_tokens": 1}, {"batch_tokens": 300}):
        cut = mt.trace_layers(model, CASES, position="all", noise=NOISE, **options)
        np.testing.assert_allclose(cut.effects, whole.effects, atol=1e-4)
    turned = mt.trace_layers(model, CASES[::-1], position="all", noise=NOISE)
    np.testing.assert_allclose(turned.subset([c.case_id for c in CASES]).effects, whole.effects, atol=1e-4)
    experts = mt.trace_experts(model, CASES, layer=1, position="all")
    small = mt.trace_experts(model, CASES, layer=1, position="all", batch_tokens=1)
    np.testing.assert_allclose(small.effects, experts.effects, atol=1e-4)


def test_rows_say_position_and_token(model: Any) -> None:
    named = mt.trace_layers(model, CASES, position=["subject_first", "last"])
    rows = named.rows
    assert list(rows.columns[:5]) == ["case_id", "relation_id", "layer", "position", "token"]
    first = rows[rows.position == "subject_first"].groupby("case_id").token.first()
    assert [first[case.case_id] for case in CASES] == [case.subject[0] for case in CASES]
    every = mt.trace_layers(model, CASES, position="all")
    assert len(every.rows) == sum(len(case.input_ids) for case in CASES) * len(every.layers)
    assert (every.rows.position == every.rows.token).all()
    one = mt.trace_layers(model, CASES, position=["last"])
    assert set(one.rows.position) == {"last"}
    assert every.best_position in every.positions
    means = every.summary()
    best = means.loc[means["mean"].where(means.n == len(CASES)).idxmax()]
    assert (every.best, every.best_position) == (best.layer, best.position)
    assert means.n.tolist() == (~np.isnan(every.effects)).sum(axis=0).tolist()
    with pytest.raises(ArgumentError, match="did you mean 'last'"):
        named.at("lst")
    with pytest.raises(ArgumentError, match="position='all'"):
        named.roles()


def test_roles_are_means_over_tokens(model: Any) -> None:
    assert [role_of(at, (2, 5), 9) for at in range(9)] == [
        "prefix", "prefix", "first subject", "middle subject", "last subject", "first after", "further",
        "further", "last token",
    ]  # fmt: skip
    assert [role_of(at, (0, 1), 2) for at in range(2)] == ["last subject", "last token"]
    assert role_of(1, (0, 2), 2) == "last subject"
    every = mt.trace_layers(model, CASES, position="all")
    roles = every.roles()
    rows = every.rows.merge(every.cases[["case_id", "subject_start", "subject_stop", "input_ids"]])
    rows["role"] = [
        role_of(row.token, (row.subject_start, row.subject_stop), len(row.input_ids))
        for row in rows.itertuples()
    ]
    expected = rows.groupby(["case_id", "layer", "role"]).rescue.mean()
    found = roles.rows.set_index(["case_id", "layer", "position"]).rescue
    assert len(found) == len(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12)
    assert set(roles.positions) <= set(ROLES)
    table = mt.trace_experts(model, CASES, layer=1, position="all").roles()
    assert set(table.position) == set(roles.positions)


def test_files_subsets_and_joins_keep_meaning(model: Any, tmp_path: Any) -> None:
    layers = mt.trace_layers(model, CASES, position="all")
    experts = mt.trace_experts(model, CASES, layer=[1, 2], position=["subject", "last"])
    for name, trace in (("layers", layers), ("experts", experts)):
        trace.save(tmp_path / name)
        back = mt.load(tmp_path / name)
        assert type(back) is type(trace)
        pd.testing.assert_frame_equal(back.rows, trace.rows)
        pd.testing.assert_frame_equal(back.cases, trace.cases)
        np.testing.assert_array_equal(back.effects, trace.effects)
        ids = [CASES[3].case_id, CASES[0].case_id]
        part = back.subset(ids)
        np.testing.assert_array_equal(part.effects, trace.effects[[3, 0]])
        assert part.cases.case_id.tolist() == ids
        both = mt.concat([trace.subset(ids), trace.subset([CASES[1].case_id])])
        np.testing.assert_array_equal(both.effects, trace.effects[[3, 0, 1]])
    # Maps of every token whose longest prompts differ.
    by_length = sorted(CASES, key=lambda case: len(case.input_ids))
    for function in (mt.trace_layers, mt.trace_experts):
        short = function(model, by_length[:2], position="all")
        long = function(model, by_length[2:], position="all")
        assert short.effects.shape[1] < long.effects.shape[1]
        joined = mt.concat([short, long])
        whole = function(model, by_length, position="all")
        np.testing.assert_allclose(joined.effects, whole.effects, atol=1e-4)
        np.testing.assert_array_equal(joined.tokens, whole.tokens)


def test_a_run_folder_resumes_a_map(model: Any, tmp_path: Any) -> None:
    options: dict[str, Any] = {"position": ["subject", third_from_last], "layer": 1, "batch_tokens": 1}
    stop = {"done": 0}

    def interrupt(done: int, total: int) -> None:
        stop["done"] = done
        if done >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mt.trace_experts(model, CASES, out=tmp_path / "run", progress=interrupt, **options)
    found = mt.trace_experts(model, CASES, out=tmp_path / "run", **options)
    whole = mt.trace_experts(model, CASES, **options)
    np.testing.assert_array_equal(found.effects, whole.effects)

    def third_from_last_(case: mt.Case) -> int:
        return -2

    third_from_last_.__name__ = "third_from_last"
    options["position"] = ["subject", third_from_last_]
    with pytest.raises(mt.errors.RunFolderError, match="tokens"):
        mt.trace_experts(model, CASES, out=tmp_path / "run", **options)


def test_pictures(model: Any) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    every = mt.trace_layers(model, CASES, position="all")
    names = [label.get_text() for label in every.plot().get_yticklabels()]
    assert [name.split(" (")[0] for name in names] == every.roles().positions
    case = CASES[1]

    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return f" word{ids[0]}"

    axis = every.plot(case=case.case_id, tokenizer=Tokenizer())
    expected = [
        f"word{token}" + "*" * (case.subject[0] <= at < case.subject[1])
        for at, token in enumerate(case.input_ids)
    ]
    assert [label.get_text() for label in axis.get_yticklabels()] == expected
    by_id = every.plot(case=case.case_id).get_yticklabels()
    assert by_id[0].get_text() == str(case.input_ids[0])
    with pytest.raises(ArgumentError, match="case 5 isn't"):
        every.plot(case=5)
    experts = mt.trace_experts(model, CASES, layer=1, position=["subject", "last"])
    assert [label.get_text() for label in experts.plot().get_yticklabels()] == ["subject", "last"]
    experts.plot(position="last")
    mt.trace_experts(model, CASES, layer=1, position="all").plot()
    pyplot.close("all")


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ("subjct", "did you mean 'subject'"),
        ("first", "after_subject"),
        ([], "empty list"),
        (["last", "last"], "'last' twice"),
        ([3, 3], "3 twice"),
        ([third_from_last, third_from_last], "twice"),
        (["all", "last"], "every token by itself already"),
        (99, "position 99 is outside the prompt of case 100, which has 14 tokens"),
        ([0, -15], "position -15 is outside"),
        (1.5, "position is 1.5"),
        (None, "position is None"),
        (True, "position is True"),
        ([None], r"position\[0\] is None"),
        ({"last": 1}, "position is"),
        (lambda case: "last", "gave 'last' for case 100"),
        (lambda case: None, "gave None for case 100"),
        (lambda case: [], r"gave \[\] for case 100"),
        (lambda case: [1, 1], "twice"),
        (lambda case: [1, 1 - len(case.input_ids)], "twice"),
        (lambda case: 14, "gave 14, which is outside the prompt of case 100"),
        (lambda case: [0.5], r"gave \[0.5\]"),
        (lambda case: case.nothing, "failed for case 100 .AttributeError"),
    ],
)
def test_what_is_refused(model: Any, position: Any, words: str) -> None:
    for function in (mt.trace_layers, mt.trace_experts):
        with pytest.raises(ArgumentError, match=words):
            function(model, CASES, position=position)


@pytest.mark.parametrize("position", ["all", "subject", ["last", "subject_last"], around_the_subject])
def test_traces_of_one_token_refuse_several(model: Any, position: Any) -> None:
    for call in (
        lambda: mt.trace_coalitions(model, CASES, layer=1, position=position),
        lambda: mt.trace_matched(model, CASES, (1, 2), position=position),
        lambda: mt.trace_noise_scales(model, CASES, (1, 2), position=position),
    ):
        with pytest.raises(ArgumentError, match="one token of each"):
            call()


def test_no_token_behind_a_subject(model: Any) -> None:
    case = mt.Case((5, 6, 7, 8), (1, 4), 3, 4, 7)
    with pytest.raises(ArgumentError, match="case 7 has no token after its subject"):
        mt.trace_layers(model, [case], position="after_subject", final_subject="keep")


def test_warnings_where_nothing_can_happen(model: Any) -> None:
    late = [mt.Case(case.input_ids, (3, 5), 10, 40, case.case_id) for case in CASES]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mt.trace_layers(model, late, position="all")
        assert not [own for own in caught if own.category is NoEffectWarning]
    with pytest.warns(NoEffectWarning, match="position '1' lies before the subject in 5 of 5"):
        mt.trace_layers(model, late, layers=0, position=[1, "last"])


def test_the_model_comes_back_as_it_was_where_a_function_fails(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ArgumentError):
        mt.trace_layers(model, CASES, position=lambda case: 99)
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_maps_have_metrics_ratios_and_draws_of_the_cases_that_are_there(tmp_path):
    model, cases = make_model("qwen3_moe"), make_cases(6)
    noise = mt.SubjectNoise(draws=2)
    found = mt.trace_layers(model, cases, position="all", metric=["logit_diff", "prob"], noise=noise)
    found.save(tmp_path / "maps")
    again = mt.load(tmp_path / "maps")["prob"]
    np.testing.assert_array_equal(again.effects, found["prob"].effects)
    ratios, parts = again.normalised(n_resamples=50), again.variance_components()
    lengths = np.array([len(case.input_ids) for case in cases])
    for at, site in enumerate(again.sites.itertuples()):
        who = np.flatnonzero(lengths > site.position)
        assert ratios.n[at] == parts.n[at] == len(who)
        alone = variance_components(again.by_draw[who][:, [at]])
        np.testing.assert_array_equal(parts.within[at], alone.within[0])
        if len(who) > 1:
            drops = (again.cases.clean - again.cases.noised).to_numpy()[who]
            assert ratios.ratio[at] == pytest.approx(again.effects[who, at].sum() / drops.sum())
        else:
            assert np.isnan(ratios.ratio[at])


def test_the_best_position_is_one_that_every_case_has() -> None:
    """A token index that a single long prompt has isn't compared with means over all cases."""
    model, cases = make_model("qwen3_moe"), make_cases(6)
    every = mt.trace_layers(model, cases, position="all")
    shortest = min(len(case.input_ids) for case in cases)
    assert shortest < max(len(case.input_ids) for case in cases)
    means = every.summary()
    assert means["mean"].idxmax() != means["mean"].where(means.position < shortest).idxmax()
    assert every.best_position < shortest
    assert means.set_index(["layer", "position"]).n[every.best, every.best_position] == len(cases)
    roles = every.roles()
    table = roles.summary()
    some = table[table.n == len(cases)]
    best = some.loc[some["mean"].idxmax()]
    assert (roles.best, roles.best_position) == (best.layer, best.position)
    assert {"last subject", "last token"} <= set(some.position)


def test_maps_keep_single_draws(model: Any, tmp_path: Any) -> None:
    noise = mt.SubjectNoise(draws=3)
    experts = mt.trace_experts(model, CASES, layer=[1, 2], position="all", noise=noise)
    np.testing.assert_allclose(experts.by_draw.mean(axis=2), experts.effects, atol=1e-12)
    first = mt.trace_experts(model, CASES, layer=[1, 2], position="all")
    np.testing.assert_allclose(experts.by_draw[:, :, 0], first.effects, atol=2e-4)
    parts = experts.variance_components()
    own = experts.at(4).variance_components()
    there = (parts.position == 4).to_numpy()
    np.testing.assert_allclose(parts.within[there], own.within)
    assert parts.n[there].tolist() == own.n.tolist()
    experts.save(tmp_path / "map")
    np.testing.assert_array_equal(mt.load(tmp_path / "map").by_draw, experts.by_draw)
    short = sorted(CASES, key=lambda case: len(case.input_ids))
    call: dict[str, Any] = {"layer": [1, 2], "position": "all", "noise": noise}
    halves = [mt.trace_experts(model, half, **call) for half in (short[:2], short[2:])]
    joined = mt.concat(halves).subset([case.case_id for case in CASES])
    np.testing.assert_allclose(joined.by_draw, experts.by_draw, atol=2e-4)

    layers = mt.trace_layers(model, CASES, position="all", noise=noise)
    roles = layers.roles()
    np.testing.assert_allclose(roles.by_draw.mean(axis=2), roles.effects, atol=1e-12)
    last = roles.variance_components().query("position == 'last token'").set_index("layer")
    plain = mt.trace_layers(model, CASES, noise=noise).variance_components().set_index("layer")
    np.testing.assert_allclose(last.within[plain.index], plain.within, atol=2e-3)


def test_draws_of_noised_values_are_against_the_clean_run(model: Any) -> None:
    found = mt.trace_experts(model, CASES, layer=2, noise=NOISE, mode="noise")
    np.testing.assert_allclose(found.by_draw.mean(axis=2), found.effects, atol=1e-12)


def test_results_that_hold_means_alone_say_so(model: Any) -> None:
    found = mt.screen_experts(model, CASES, position="all", noise=NOISE, verify=False)
    with pytest.raises(ArgumentError, match=r"traced with 2 draws .* holds their means alone"):
        found.variance_components()
    with pytest.raises(ArgumentError, match="one draw of the corruption"):
        mt.trace_layers(model, CASES).variance_components()
