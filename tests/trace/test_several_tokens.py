"""Objects of several tokens: sums of log-probabilities under teacher forcing, against forwards of the prompt
and the object with hooks written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.cases import forced_sequences
from moetrace.errors import MetricError, NoFoilError, PromptLengthError, SameObjectError, TokenIdError
from tests.engines import oracle
from tests.engines.hybrids import HYBRIDS
from tests.engines.tiny import VOCAB, make_cases, make_model
from tests.engines.wide import make_wide

METRICS = ["logit_diff", "logprob", "prob", "prob_ratio"]


def longer(case: mt.Case, true: int, foil: int) -> mt.Case:
    """The case with objects of so many tokens."""
    own = [case.true_id, *((case.true_id + 7 * at) % VOCAB for at in range(1, true))]
    other = [case.foil_id, *((case.foil_id + 5 * at) % VOCAB for at in range(1, foil))]
    return mt.Case(case.input_ids, case.subject, own, other, case.case_id, case.relation_id)


SINGLE = make_cases(5)
CASES = [
    longer(case, *sizes) for case, sizes in zip(SINGLE, [(1, 1), (2, 1), (1, 3), (3, 2), (2, 2)], strict=True)
]


@pytest.fixture(scope="module")
def qwen():
    return make_model("qwen3_moe")


class ByHand:
    """Forwards of a prompt and an object behind it."""

    def __init__(self, model, case: mt.Case) -> None:
        self.model, self.case, self.last = model, case, len(case.input_ids) - 1

    def logprob(self, tokens, noise=None, layer=None, value=None, at=None):
        """Sum of the tokens' log-probabilities, and what the layer's block gave."""
        start, stop = self.case.subject
        kept: list[torch.Tensor] = []
        where = self.last if at is None else at

        def corrupt(_m, _a, out):
            out = out.clone()
            out[0, start:stop] += noise
            return out

        def write(_m, _a, out):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            flat = hidden.view(-1, hidden.shape[-1])
            kept.append(flat[where].clone())
            if value is not None:
                flat[where] = value
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handles = []
        if layer is not None:
            handles.append(self.model.model.layers[layer].mlp.register_forward_hook(write))
        if noise is not None:
            handles.append(self.model.get_input_embeddings().register_forward_hook(corrupt))
        try:
            with torch.no_grad():
                ids = torch.tensor([[*self.case.input_ids, *tokens[:-1]]])
                rows = self.model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(dim=-1)
        finally:
            for handle in handles:
                handle.remove()
        found = float(sum(rows[self.last + step, token] for step, token in enumerate(tokens)))
        return found, kept[0] if kept else None

    def patched(self, tokens, noise, layer, at=None):
        value = self.logprob(tokens, None, layer, at=at)[1]
        return self.logprob(tokens, noise, layer, value, at)[0]


def noise_of(model, case: mt.Case) -> torch.Tensor:
    return mt.SubjectNoise().sample(case, 32)[0] * 3.0 * oracle.embedding_output_std(model)


def of_sums(name: str, true, foil):
    return {
        "logit_diff": true - foil, "logprob": true, "prob": np.exp(true), "prob_ratio": np.exp(true - foil),
    }[name]  # fmt: skip


@pytest.mark.parametrize("readout", ["exact", "model"])
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_every_metric_is_that_of_forwards_with_the_object(qwen, engine, readout):
    found = mt.trace_layers(qwen, CASES, metric=[*METRICS, "kl"], engine=engine, readout=readout)
    layers = found["prob"].layers
    for index, case in enumerate(CASES):
        plain, noise = ByHand(qwen, case), noise_of(qwen, case)
        clean, noised = (
            [plain.logprob(own, way)[0] for own in (case.true_ids, case.foil_ids)] for way in (None, noise)
        )
        after = np.array(
            [[plain.patched(own, noise, x) for x in layers] for own in (case.true_ids, case.foil_ids)]
        )
        for name in METRICS:
            own, near = found[name], {"rel": 1e-4, "abs": 3e-5}
            assert own.cases.clean[index] == pytest.approx(of_sums(name, *clean), **near)
            assert own.cases.noised[index] == pytest.approx(of_sums(name, *noised), **near)
            patched = own.rows.patched.to_numpy().reshape(len(CASES), -1)[index]
            np.testing.assert_allclose(patched, of_sums(name, *after), rtol=1e-4, atol=3e-5)
    alone = mt.trace_layers(qwen, SINGLE, metric="kl", engine=engine, readout=readout)
    np.testing.assert_allclose(found["kl"].effects, alone.effects, atol=2e-5)  # of the next token


def test_of_single_tokens_sums_give_the_logit_difference(qwen):
    """The first case's objects are single tokens among others that aren't: the normaliser cancels."""
    several = mt.trace_layers(qwen, CASES, metric=METRICS)
    single = mt.trace_layers(qwen, SINGLE, metric=METRICS)
    for name in METRICS:
        np.testing.assert_allclose(several[name].effects[0], single[name].effects[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "kimi_linear"])
def test_hybrids_give_what_plain_forwards_give(family):
    model = make_wide(HYBRIDS[family])
    tree = mt.trace_layers(model, CASES, engine="tree")
    plain = mt.trace_layers(model, CASES, engine="reference")
    np.testing.assert_allclose(tree.effects, plain.effects, atol=5e-5)


def test_experts_coalitions_knockouts_and_routes(qwen):
    calls = [
        lambda **how: mt.trace_experts(
            qwen, CASES, layer=1, union=True, noise=mt.SubjectNoise(draws=2), **how
        ),
        lambda **how: mt.trace_coalitions(qwen, CASES, layer=1, sets="all", **how),
        lambda **how: mt.trace_knockout(qwen, CASES, layers=[1, 2], ablation="mean", **how),
        lambda **how: mt.trace_layers(qwen, CASES, mode="noise", metric="logprob", **how),
        lambda **how: mt.trace_routes(qwen, CASES, **how),
    ]
    for call in calls:
        tree, plain = call(), call(engine="reference")
        assert tree.provenance["engine"] == "tree"
        np.testing.assert_allclose(tree.effects, plain.effects, atol=5e-5)
        assert np.nanmax(np.abs(tree.effects)) > 1e-3


def test_positions_are_the_prompts(qwen):
    where = mt.trace_layers(qwen, CASES, position="all")
    case, index = CASES[3], 3
    plain, noise = ByHand(qwen, case), noise_of(qwen, case)
    before = of_sums("logit_diff", *(plain.logprob(own, noise)[0] for own in (case.true_ids, case.foil_ids)))
    rows = where.rows[(where.rows.case_id == case.case_id) & where.rows.rescue.notna()]
    assert rows.position.max() == len(case.input_ids) - 1
    for row in rows.itertuples():
        sums = [plain.patched(own, noise, row.layer, row.position) for own in (case.true_ids, case.foil_ids)]
        assert row.rescue == pytest.approx(of_sums("logit_diff", *sums) - before, abs=3e-5)
    last = mt.trace_layers(qwen, CASES)
    alone = rows[rows.position == len(case.input_ids) - 1]
    np.testing.assert_allclose(alone.rescue, last.effects[index], atol=1e-5)


def test_batches_and_resuming_change_nothing(qwen, tmp_path):
    whole = mt.trace_layers(qwen, CASES, out=tmp_path / "run")
    again = mt.trace_layers(qwen, CASES, out=tmp_path / "run", progress=False)
    np.testing.assert_array_equal(again.effects, whole.effects)
    small = mt.trace_layers(qwen, CASES, batch_tokens=1)
    np.testing.assert_allclose(small.effects, whole.effects, atol=1e-5)
    assert mt.load(tmp_path / "run").provenance["direct"] == "direct effects are of objects of one token"
    with pytest.raises(mt.MoetraceError, match="another call"):
        mt.trace_layers(qwen, SINGLE, out=tmp_path / "run")


def test_without_a_foil(qwen):
    bare = [mt.Case(c.input_ids, c.subject, c.true_ids, None, c.case_id) for c in CASES]
    alone, both = (
        mt.trace_layers(qwen, bare, metric="logprob"),
        mt.trace_layers(qwen, CASES, metric="logprob"),
    )
    np.testing.assert_allclose(alone.effects, both.effects, atol=1e-5)
    with pytest.raises(NoFoilError, match="metric 'logit_diff'"):
        mt.trace_layers(qwen, bare)


def test_selection_judges_by_the_sums(qwen):
    chosen = mt.select_cases(qwen, CASES, n=5, margin=-1e9, drop=-1e9, seed=None)
    assert [case.case_id for case in chosen] == [case.case_id for case in CASES]
    sums = [[ByHand(qwen, c).logprob(own)[0] for own in (c.true_ids, c.foil_ids)] for c in CASES]
    margins = sorted(true - foil for true, foil in sums)
    with pytest.warns(match="only 2 of the 5"):
        some = mt.select_cases(qwen, CASES, n=5, margin=np.mean(margins[-3:-1]), drop=-1e9)
    assert len(some) == 2


def test_a_users_function_sees_the_token_behind_the_prompt(qwen):
    seen = []

    def first(logits, case):
        seen.append(case)
        return logits[:, case.true_id]

    found = mt.trace_layers(qwen, CASES, metric=first, engine="tree")
    single = mt.trace_layers(qwen, SINGLE, metric=first, engine="tree")
    np.testing.assert_allclose(found.effects, single.effects, atol=1e-5)
    assert {type(case) for case in seen} == {mt.Case}


@pytest.mark.parametrize(
    ("true", "foil", "sequences"),
    [
        ((5,), (6,), 1),
        ((5, 6), (7,), 1),
        ((7,), (5, 6), 1),
        ((5, 6), (5, 7), 1),
        ((5, 6), (7, 6), 2),
        ((5,), (5, 6), 1),
    ],
)
def test_a_case_is_one_sequence_where_one_serves_both(true, foil, sequences):
    found = forced_sequences(mt.Case((1, 2, 3), (1, 2), true, foil, 9), VOCAB, iter([77]))
    assert len(found) == sequences
    assert [own.case_id for own in found] == [9, 77][:sequences]
    for name, tokens in (("true", true), ("foil", foil)):
        (own,) = [one for one in found if name in one.whole][:1]
        assert own.reads[name] == tokens
        assert own.input_ids[3:][: len(tokens) - 1] == tokens[:-1]


def test_what_cant_be_is_refused(qwen):
    case = CASES[1]
    with pytest.raises(
        MetricError, match=r"'rank' is of objects of one token, and 4 of 5 cases .* case ids 101"
    ):
        mt.trace_layers(qwen, CASES, metric="rank")
    same = mt.Case(case.input_ids, case.subject, [5, 6], [5, 6], 1)
    with pytest.raises(SameObjectError, match=r"both tokens \[5, 6\]"):
        mt.trace_layers(qwen, [same])
    far = mt.Case(case.input_ids, case.subject, [5, VOCAB], [6], 1)
    with pytest.raises(TokenIdError, match=r"true_more\[0\] is 97"):
        mt.trace_layers(qwen, [far])
    long = mt.Case(case.input_ids, case.subject, [5] * 120, [6], 1)
    with pytest.raises(PromptLengthError, match="longest object 120"):
        mt.trace_layers(qwen, [long])
    for bad, message in (
        ({"true_id": []}, "true_id is an empty row"),
        ({"true_id": [5, "x"]}, r"true_id\[1\] is 'x'"),
        ({"true_id": [5, 6], "true_more": (7,)}, "true_more is"),
        ({"true_id": 5, "foil_id": None, "foil_more": (7,)}, "there is no foil_id"),
    ):
        with pytest.raises(mt.MoetraceError, match=message):
            mt.Case(**{"input_ids": (1, 2, 3), "subject": (0, 1), "case_id": 1, "foil_id": 6, **bad})


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_files_and_fingerprints(tmp_path, suffix):
    cases = mt.CaseSet(CASES)
    path = tmp_path / f"cases{suffix}"
    cases.save(path)
    assert mt.CaseSet.load(path) == cases
    assert list(cases.frame().true_more) == [case.true_more for case in CASES]
    assert "true_more" not in mt.CaseSet(SINGLE).frame()
    others = [longer(case, 1, 1) for case in SINGLE]
    assert mt.CaseSet(others).fingerprint() == mt.CaseSet(SINGLE).fingerprint() != cases.fingerprint()
    if suffix == ".json":
        document = json.loads(path.read_text())
        document["cases"]["true_more"][1] = [3]
        path.write_text(json.dumps(document))
        with pytest.raises(mt.MoetraceError):
            mt.CaseSet.load(path)


def switched_off(model, case: mt.Case, off: set[int], where: int) -> list[float]:
    """Sums of both objects' log-probabilities with experts (of eight in each layer) off at one token."""
    handles = []
    for layer, block in enumerate(own.mlp for own in model.model.layers):
        chosen = torch.tensor([column % 8 for column in off if column // 8 == layer], dtype=torch.long)

        def silence(_m, args, kwargs, chosen=chosen):
            hidden, index, weights = (*args, *kwargs.values())[:3]
            weights = weights.clone()
            weights[where][torch.isin(index[where], chosen)] = 0
            return (hidden, index, weights), {}

        handles.append(block.experts.register_forward_pre_hook(silence, with_kwargs=True))
    plain = ByHand(model, case)
    found = [plain.logprob(own)[0] for own in (case.true_ids, case.foil_ids)]
    for handle in handles:
        handle.remove()
    return found


def test_curves_of_knock_outs(qwen):
    """At the prompt's last token, whatever follows it."""
    trace = mt.trace_knockout(qwen, CASES, metric="logit_diff")
    curves = trace.greedy(2, metric=["logit_diff", "prob", "kl"], draws=1, shares=[0.25])
    names = ["logit_diff", "prob"]
    for at in range(0, len(curves["prob"].sets), 3):
        own, row = set(curves["prob"].sets[at]), curves["prob"].rows.iloc[at]
        off = own if row.curve == "off" else set(range(32)) - own
        for index, case in enumerate(CASES):
            sums = switched_off(qwen, case, off, len(case.input_ids) - 1)
            for name in names:
                near = {"rel": 3e-4, "abs": 5e-5}
                assert curves[name].values[at, index] == pytest.approx(of_sums(name, *sums), **near)
        above = curves["logit_diff"].values[at] > 0
        assert row.accuracy == above.mean()
    alone = mt.trace_knockout(qwen, SINGLE, metric="kl").greedy(2, draws=1, shares=[0.25])
    first = trace.order()[:1].tolist()
    if alone.sets[1] == tuple(first):
        np.testing.assert_allclose(curves["kl"].values[1], alone.values[1], atol=2e-5)
    effect = curves["logit_diff"].values[1] - curves["logit_diff"].values[0]
    np.testing.assert_allclose(effect, trace.effects[:, first[0]], atol=5e-5)
    with pytest.raises(MetricError):
        trace.greedy(1, metric="rank")


def test_what_reads_single_tokens_alone_says_so(qwen):
    match = r"reads objects of one token, and 4 of 5 cases have objects of several: case ids \[101, 102, 103"
    with pytest.raises(mt.MoetraceError, match=f"run_protocol {match}"):
        mt.run_protocol(qwen, None, mt.CaseSet(CASES))
    with pytest.raises(mt.MoetraceError, match=f"screen_experts {match}"):
        mt.screen_experts(qwen, CASES)
    with pytest.raises(mt.MoetraceError, match=f"trace_paths {match}"):
        mt.trace_paths(qwen, CASES, [("L01E002", 2)])
