"""Metrics from one pass: against whole logits of plain runs, in both engines, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.engines.job import make_job
from moetrace.errors import ArgumentError, ArgumentTypeError, CorruptionError, MetricError, NoFoilError
from moetrace.metrics import as_metrics
from moetrace.models import forward as home
from moetrace.models import readout
from moetrace.models.anatomy import find_anatomy
from moetrace.trace.memory import BatchRows, logits_bytes
from tests.engines import oracle
from tests.engines.tiny import VOCAB, make_cases, make_model

CASES = make_cases(4)
NAMES = ["logit_diff", "logprob", "prob", "prob_ratio", "kl", "rank"]
WHOLE = ["logprob", "prob", "kl", "rank"]


def entropy(logits: torch.Tensor, case: mt.Case) -> torch.Tensor:
    p = logits.softmax(dim=1)
    return -(p * p.log()).sum(dim=1) + 0.001 * case.case_id


def second(logits: torch.Tensor, case: mt.Case) -> list[float]:
    return logits[:, 2].tolist()


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma3", "granitemoe"])
def model(request):
    """Logits plain, with a soft cap, and scaled."""
    return make_model(request.param)


@pytest.fixture(scope="module")
def qwen():
    return make_model("qwen3_moe")


def whole_logits(model, case: mt.Case, noise=None, patch=None, keep=None) -> np.ndarray:
    """All final logits of a plain run, one after the other as contrasts with token 0 and logit 0 itself."""
    found: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda m, a, out: found.append(out.logits[0, -1].double()))
    try:
        oracle.run(model, case, noise, patch, keep)
    finally:
        handle.remove()
    return found[0].numpy()


def expected(name: str, logits: np.ndarray, clean: np.ndarray, case: mt.Case) -> float:
    """A numpy twin of every metric."""
    shifted = logits - logits.max()
    log_p = shifted - np.log(np.exp(shifted).sum())
    moved = clean - clean.max()
    log_q = moved - np.log(np.exp(moved).sum())
    return {
        "logit_diff": logits[case.true_id] - logits[case.foil_id],
        "logprob": log_p[case.true_id],
        "prob": np.exp(log_p[case.true_id]),
        "prob_ratio": np.exp(log_p[case.true_id] - log_p[case.foil_id]),
        "kl": (np.exp(log_q) * (log_q - log_p)).sum(),
        "rank": 1.0 + (logits > logits[case.true_id]).sum(),
        "entropy": -(np.exp(log_p) * log_p).sum() + 0.001 * case.case_id,
        "second": logits[2],
    }[name]


def noise_of(model, case: mt.Case) -> torch.Tensor:
    drawn = mt.SubjectNoise().sample(case, 32)[0]
    return drawn * 3.0 * oracle.embedding_output_std(model)


@pytest.mark.parametrize("kind", ["exact", "model"])
@pytest.mark.parametrize("engine", ["tree", "reference"])
def test_every_metric_is_that_of_a_plain_run(model, engine, kind):
    asked = [*NAMES, entropy, second]
    found = mt.trace_layers(model, CASES, metric=asked, engine=engine, readout=kind)
    assert found.metrics == (*NAMES, "entropy", "second")
    for index, case in enumerate(CASES):
        outputs: dict = {}
        noise = noise_of(model, case)
        clean = whole_logits(model, case, keep=outputs)
        noised = whole_logits(model, case, noise)
        runs = [whole_logits(model, case, noise, (x, outputs[x][-1], -1)) for x in found["prob"].layers]
        for name in found.metrics:
            own = found[name]
            near = {"rel": 2e-3, "abs": 2e-4}
            before = expected(name, noised, clean, case)
            assert own.cases.clean[index] == pytest.approx(expected(name, clean, clean, case), **near)
            assert own.cases.noised[index] == pytest.approx(before, **near)
            after = np.array([expected(name, run, clean, case) for run in runs])
            patched = own.rows.patched.to_numpy().reshape(len(CASES), -1)[index]
            np.testing.assert_allclose(patched, after, rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(own.effects[index], patched - own.cases.noised[index], atol=1e-12)
    for name in WHOLE:
        assert np.abs(found[name].effects).max() > 1e-4


def test_experts_and_coalitions_in_every_metric(qwen):
    asked = ["prob", "kl", "rank", "logit_diff", entropy]
    noise = mt.SubjectNoise(draws=2)
    tree = mt.trace_experts(qwen, CASES, layer=1, metric=asked, union=True, noise=noise)
    plain = mt.trace_experts(qwen, CASES, layer=1, metric=asked, union=True, noise=noise, engine="reference")
    alone = mt.trace_experts(qwen, CASES, layer=1, union=True, noise=noise)
    np.testing.assert_allclose(tree["logit_diff"].effects, alone.effects, atol=1e-6)
    for name in tree:
        np.testing.assert_allclose(tree[name].effects, plain[name].effects, atol=1e-4)
        np.testing.assert_array_equal(tree[name].arrays.clean_active, alone.arrays.clean_active)
        assert np.abs(tree[name].effects).max() > 1e-4
    assert tree["prob"].direct is None
    assert tree["logit_diff"].direct is not None
    coal = mt.trace_coalitions(qwen, CASES, layer=1, sets="all", metric=["logprob", "prob"])
    other = mt.trace_coalitions(qwen, CASES, layer=1, sets="all", metric="prob", engine="reference")
    np.testing.assert_allclose(coal["prob"].effects, other.effects, atol=1e-5)
    assert coal["logprob"].shapley() is not None


def test_matched_and_scales_take_a_metric(qwen):
    star = mt.trace_experts(qwen, CASES, layer=1).select(min_active=1)
    for engine in ("tree", "reference"):
        pairs = mt.trace_matched(qwen, CASES, star, metric=["prob", "kl"], engine=engine)
        scales = mt.trace_noise_scales(qwen, CASES, star, scales=[1.0, 2.0], metric="prob", engine=engine)
        if engine == "tree":
            first = pairs, scales
    np.testing.assert_allclose(first[0]["kl"].effects, pairs["kl"].effects, atol=1e-4)
    np.testing.assert_allclose(first[1].effects, scales.effects, atol=1e-5)
    own = scales.normalised()
    block = scales.effects[:, 2] / 1.0
    taken = scales.cases.clean - scales.cases["noised_1"]
    assert own.ratio[2] == pytest.approx(block.mean() / taken.mean())


def test_one_metric_gives_a_plain_result(qwen):
    alone = mt.trace_layers(qwen, CASES, metric="prob")
    several = mt.trace_layers(qwen, CASES, metric=["logit_diff", "prob"])
    assert isinstance(alone, mt.LayerTrace)
    assert isinstance(several, mt.MetricTraces)
    np.testing.assert_allclose(alone.effects, several["prob"].effects, atol=1e-7)
    assert (alone.metric, alone.unit, alone.direct) == ("prob", "probability", None)
    paper = mt.trace_layers(qwen, CASES)
    np.testing.assert_allclose(paper.effects, several["logit_diff"].effects, atol=1e-6)
    assert "direct" in paper.rows
    assert "direct" not in alone.rows
    assert alone.provenance["direct"] == "direct effects are of the logit difference alone"


def test_the_whole_head_is_used_only_where_a_metric_needs_it(qwen, monkeypatch):
    read: list[int] = []
    whole = home.Readout.whole
    monkeypatch.setattr(home.Readout, "whole", lambda self, h, v: read.append(len(h)) or whole(self, h, v))
    mt.trace_layers(qwen, CASES)
    mt.trace_layers(qwen, CASES, metric=["logit_diff", "prob_ratio"])
    assert not read
    mt.trace_layers(qwen, CASES, metric="prob")
    assert sum(read) > len(CASES)


def test_parts_of_the_vocabulary_and_of_the_rows_change_nothing(qwen, monkeypatch):
    expected_ = mt.trace_layers(qwen, CASES, metric=["prob", "kl", entropy])
    monkeypatch.setattr(home, "LOGITS_AT_ONCE", 2 * VOCAB)
    monkeypatch.setattr(readout, "_TOKENS", 10)
    found = mt.trace_layers(qwen, CASES, metric=["prob", "kl", entropy])
    for name in found:
        np.testing.assert_allclose(found[name].effects, expected_[name].effects, atol=1e-6)


def test_kl_is_zero_in_the_clean_run_and_is_restored_downwards(qwen):
    found = mt.trace_layers(qwen, CASES, metric=["kl", "rank", "logprob"])
    np.testing.assert_allclose(found["kl"].cases.clean, 0.0, atol=1e-9)
    assert (found["kl"].cases.noised > 0).all()
    means = found["kl"].effects.mean(axis=0)
    assert means[found["kl"].layers.index(found["kl"].best)] == means.min()
    means = found["logprob"].effects.mean(axis=0)
    assert means[found["logprob"].layers.index(found["logprob"].best)] == means.max()


def test_a_foil_is_only_needed_where_it_is_compared_with(qwen):
    without = [replace(case, foil_id=None) for case in CASES]
    assert mt.Case([5, 6, 7], (0, 1), 8, case_id=3).foil_id is None
    for engine in ("tree", "reference"):
        found = mt.trace_layers(qwen, without, metric=["logprob", "kl"], engine=engine)
        same = mt.trace_layers(qwen, CASES, metric=["logprob", "kl"], engine=engine)
        for name in found:
            np.testing.assert_allclose(found[name].effects, same[name].effects, atol=1e-7)
    mixed = [*CASES[:2], *without[2:]]
    for metric in ("logit_diff", "prob_ratio", ["prob", "logit_diff"]):
        with pytest.raises(NoFoilError, match=r"2 of 4 cases have none: case ids 102, 103; .*'logprob'"):
            mt.trace_layers(qwen, mixed, metric=metric)
    with pytest.raises(NoFoilError):
        mt.select_cases(qwen, mixed, n=1)
    mt.trace_experts(qwen, without, layer=1, metric="prob")


def test_cases_without_a_foil_are_kept_in_files_and_tables(tmp_path):
    cases = mt.CaseSet([CASES[0], replace(CASES[1], foil_id=None)])
    for name in ("cases.json", "cases.parquet"):
        cases.save(tmp_path / name)
        again = mt.CaseSet.load(tmp_path / name)
        assert again == cases
        assert again.fingerprint() == cases.fingerprint()
    assert cases.frame().foil_id.isna().tolist() == [False, True]
    assert mt.Case([5, 6], (0, 1), 8, float("nan"), 3).foil_id is None
    with pytest.raises(mt.errors.CaseError, match="case_id is None"):
        mt.Case([5, 6], (0, 1), 8)
    assert cases._repr_html_()


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        ("probs", ArgumentError, "did you mean 'prob'.*'kl'"),
        ([], ArgumentError, "empty list"),
        (["prob", "prob"], ArgumentError, "'prob' twice"),
        ([lambda x, c: x[:, 0], lambda x, c: x[:, 1]], ArgumentError, "'function' twice"),
        (3, ArgumentTypeError, "a function of"),
        ({"prob": 1}, ArgumentTypeError, "metric is"),
        (None, ArgumentTypeError, "metric is None"),
        ([None], ArgumentTypeError, "metric is None"),
        (lambda logits, case: logits, MetricError, r"returned shape \(\d+, 97\) .*one number for each row"),
        (lambda logits, case: logits[:1, 0].repeat(99), MetricError, r"returned shape \(99,\)"),
        (lambda logits, case: "much", MetricError, "returned 'much'"),
        (lambda logits, case: None, MetricError, "returned None"),
    ],
)
def test_what_is_refused(qwen, metric, error, words):
    with pytest.raises(error, match=words):
        mt.trace_layers(qwen, CASES, layers=[1], metric=metric)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in qwen.modules())


def test_a_function_may_not_take_the_name_of_a_metric(qwen):
    def prob(logits, case):
        return logits[:, 0]

    with pytest.raises(ArgumentError, match="another name"):
        mt.trace_layers(qwen, CASES, metric=prob)


def test_a_function_that_fails_is_named(qwen):
    def wrong(logits, case):
        return logits[10**9]

    with pytest.raises(MetricError, match=r"'wrong' failed for case .*IndexError.*each row"):
        mt.trace_layers(qwen, CASES[:2], metric=wrong)
    with pytest.raises(CorruptionError, match=r"failed for case .*TypeError.*embeddings"):
        mt.trace_layers(qwen, CASES[:2], corruption=lambda case: case)


def test_a_function_cannot_change_the_logits_of_others(qwen):
    def greedy(logits, case):
        logits.zero_()
        return logits[:, 0]

    alone = mt.trace_layers(qwen, CASES, metric="prob")
    beside = mt.trace_layers(qwen, CASES, metric=[greedy, "prob"])
    np.testing.assert_allclose(beside["prob"].effects, alone.effects, atol=1e-7)


def test_values_that_are_not_finite_are_reported(qwen):
    def breaks(logits, case):
        return logits[:, 0] * (float("nan") if case.case_id == 101 else 1.0)

    with pytest.warns(mt.errors.MoetraceWarning, match="1 of 4 cases"):
        found = mt.trace_layers(qwen, CASES, metric=["prob", breaks])
    assert found["prob"].failed.case_id.tolist() == [101]
    assert 101 not in found["breaks"].cases.case_id.tolist()


@pytest.mark.parametrize("family", ["qwen3_moe", "jamba"])
def test_the_floor_is_by_metric_and_the_engine_is_checked_in_each(family):
    model = make_model(family)
    found = mt.trace_layers(model, CASES, metric=["logit_diff", "prob", "kl", second])
    assert set(found.noise_floor) == {"logit_diff", "prob", "kl", "second"}
    assert all(0 <= floor < 1e-3 for floor in found.noise_floor.values())
    assert found["prob"].noise_floor < found["logit_diff"].noise_floor or family == "jamba"


def test_a_metric_in_which_the_engines_differ_is_noticed(qwen, monkeypatch):
    """Logits beside the two objects that come out wrong in the tree are seen by a metric of all of them."""
    original = home._measured

    def wrong(metrics, cases, pairs, read, clean):
        found = original(metrics, cases, pairs, read, clean)
        if clean is None and len(metrics) > 1:  # the tree's rows
            found[1] += 0.5
        return found

    monkeypatch.setattr(home, "_measured", wrong)
    with pytest.warns(mt.errors.EngineWarning, match="0.5 in logprob"):
        found = mt.trace_layers(qwen, CASES, metric="logprob")
    assert found.provenance["engine"] == "reference"


def test_memory_for_the_whole_vocabulary_is_counted(qwen):
    batch = BatchRows(sequences=3, rows=50, read=7)
    jobs = {
        (name, kind): make_job(find_anatomy(qwen), [], readout=kind, metrics=as_metrics(name).metrics)
        for name in ("logit_diff", "prob")
        for kind in ("exact", "model")
    }
    assert logits_bytes(jobs["logit_diff", "exact"], batch) == 0
    assert logits_bytes(jobs["prob", "exact"], batch) == 7 * VOCAB * 28
    assert logits_bytes(jobs["prob", "model"], batch) == 7 * VOCAB * 28 + 3 * 7 * VOCAB * 4
