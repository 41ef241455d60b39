"""Corruptions beside Gaussian noise: both engines against hooks written by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace.corruptions import Embedding, as_corruption
from moetrace.errors import ArgumentError, ArgumentTypeError, CorruptionError, NoEffectWarning
from tests.engines import oracle
from tests.engines.tiny import VOCAB, make_cases, make_model

CASES = make_cases(4)
FAMILIES = ("qwen3_moe", "granitemoe", "gemma3")  # embeddings plain, scaled behind the module, and inside it


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return make_model(request.param)


@pytest.fixture(scope="module")
def qwen():
    return make_model("qwen3_moe")


def table_of(model: torch.nn.Module) -> torch.Tensor:
    """What the embedding puts out for every token."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.arange(VOCAB)[None])[0]


def corrupted(model, case: mt.Case, values: torch.Tensor, patch=None, keep=None) -> float:
    """A plain run whose subject's embeddings are these values."""
    start, stop = case.subject
    own = table_of(model)[list(case.input_ids[start:stop])]
    return oracle.run(model, case, values - own, patch, keep)


def swap_rows(case: mt.Case, embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings.flip(0) * 0.5 + 0.01 * case.case_id


def own_rows(model, case: mt.Case) -> torch.Tensor:
    return table_of(model)[list(case.input_ids[slice(*case.subject)])]


def uniform_values(model, case: mt.Case, draw: int) -> torch.Tensor:
    start, stop = case.subject
    table = table_of(model)
    generator = torch.Generator().manual_seed(7 + case.case_id)
    drawn = [torch.rand(stop - start, table.shape[1], generator=generator) for _ in range(2)][draw]
    noise = (2 * drawn - 1) * 2.0 * table.double().std().item()
    return own_rows(model, case) + noise


EXPECTED = {
    "mean": (mt.MeanEmbedding(), lambda model, case, draw: table_of(model).mean(dim=0).expand(1, -1)),
    "zero": (mt.ZeroEmbedding(), lambda model, case, draw: 0 * table_of(model)[:1]),
    "function": (
        swap_rows,
        lambda model, case, draw: swap_rows(case, own_rows(model, case)),
    ),
    "uniform": (mt.UniformNoise(2.0, seed=7, draws=2), uniform_values),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["tree", "reference"])
@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_those_of_a_plain_corrupted_run(model, name, engine):
    corruption, values_of = EXPECTED[name]
    draws = getattr(corruption, "draws", 1)
    found = mt.trace_layers(model, CASES, corruption=corruption, engine=engine)
    for index, case in enumerate(CASES):
        clean: dict = {}
        oracle.run(model, case, keep=clean)
        values = [values_of(model, case, draw) for draw in range(draws)]
        noised = np.array([corrupted(model, case, own) for own in values])
        assert found.cases.noised[index] == pytest.approx(noised.mean(), abs=2e-4)
        for column, layer in enumerate(found.layers):
            patch = (layer, clean[layer][-1], -1)
            patched = np.array([corrupted(model, case, own, patch) for own in values])
            assert found.effects[index, column] == pytest.approx((patched - noised).mean(), abs=2e-4)


def test_experts_and_coalitions_take_a_corruption(qwen):
    for options in ({"corruption": mt.MeanEmbedding()}, {"corruption": mt.UniformNoise(2.0, draws=2)}):
        tree = mt.trace_experts(qwen, CASES, layer=1, **options)
        plain = mt.trace_experts(qwen, CASES, layer=1, engine="reference", **options)
        np.testing.assert_allclose(tree.effects, plain.effects, atol=1e-4)
        assert np.abs(tree.effects).max() > 1e-2
        whole = mt.trace_coalitions(qwen, CASES, layer=1, sets="clean", **options)
        again = mt.trace_coalitions(qwen, CASES, layer=1, sets="clean", engine="reference", **options)
        np.testing.assert_allclose(whole.effects, again.effects, atol=1e-4)


def test_noise_may_be_given_as_corruption(qwen):
    noise = mt.SubjectNoise(2.0, seed=3)
    by_noise = mt.trace_layers(qwen, CASES, noise=noise)
    by_corruption = mt.trace_layers(qwen, CASES, corruption=noise)
    np.testing.assert_array_equal(by_noise.effects, by_corruption.effects)
    assert by_noise.provenance["noise"] == by_corruption.provenance["noise"]


def test_selection_scores_under_the_corruption(qwen):
    scores = mt.select_cases(qwen, CASES, n=4, margin=-99, drop=-99, corruption=mt.ZeroEmbedding())
    noised = mt.trace_layers(qwen, CASES, layers=[0], corruption=mt.ZeroEmbedding()).cases
    drop = (noised.clean - noised.noised).to_numpy()
    least = float(np.sort(drop)[-2])
    kept = mt.select_cases(qwen, CASES, n=2, margin=-99, drop=least - 1e-4, corruption=mt.ZeroEmbedding())
    assert len(scores) == 4
    assert {c.case_id for c in kept} == set(noised.case_id[np.argsort(drop)[-2:]])


def test_provenance_and_run_folders_tell_corruptions_apart(qwen, tmp_path):
    first = mt.trace_layers(qwen, CASES, layers=[1], corruption=mt.MeanEmbedding(), out=tmp_path / "run")
    assert first.provenance["corruption"] == {"name": "mean_embedding", "draws": 1}
    assert "noise" not in first.provenance
    again = mt.trace_layers(qwen, CASES, layers=[1], corruption=mt.MeanEmbedding(), out=tmp_path / "run")
    np.testing.assert_array_equal(first.effects, again.effects)
    assert mt.load(tmp_path / "run").provenance["corruption"]["name"] == "mean_embedding"
    for other in ({"corruption": mt.ZeroEmbedding()}, {"noise": None}, {"corruption": swap_rows}):
        with pytest.raises(mt.errors.RunFolderError, match="another call"):
            mt.trace_layers(qwen, CASES, layers=[1], out=tmp_path / "run", **other)
    noised = mt.trace_layers(qwen, CASES, layers=[1])
    with pytest.raises(mt.errors.RunFolderError, match="corruption"):
        noised.save(tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"differ in (noise|corruption)"):
        mt.concat([first.subset([100]), noised.subset([101])])


def test_two_functions_are_two_calls():
    one = as_corruption(corruption=lambda case, embeddings: embeddings * 2.0)
    other = as_corruption(corruption=lambda case, embeddings: embeddings * 3.0)
    assert one.facts()["corruption"]["name"] == "function"
    assert one.facts() != other.facts()
    assert as_corruption(corruption=swap_rows).facts()["corruption"]["name"] == "swap_rows"


def test_uniform_noise_is_what_it_says():
    embedding = Embedding(torch.nn.Embedding(50, 400), 50, 400, "cpu")
    case = mt.Case([1, 2, 3, 4], (1, 3), 5, 6, case_id=11)
    values = mt.UniformNoise(2.0, draws=3).values(case, embedding)
    assert values.shape == (3, 2, 400)
    assert values.dtype is torch.float32
    half = 2.0 * embedding.module.weight.double().std().item()
    assert half * 0.99 < values.abs().max() <= half
    assert float(values.std()) == pytest.approx(half / 3**0.5, rel=0.05)
    torch.testing.assert_close(mt.UniformNoise(2.0).values(case, embedding)[0], values[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"noise": 2.0, "corruption": mt.ZeroEmbedding()}, ArgumentError, "both noise and corruption"),
        ({"corruption": "zero"}, ArgumentTypeError, "MeanEmbedding"),
        ({"corruption": mt.ZeroEmbedding}, ArgumentTypeError, "ZeroEmbedding"),
        ({"corruption": 3.0}, ArgumentTypeError, "corruption is 3.0"),
        ({"corruption": lambda case, e: e[:0]}, CorruptionError, r"returned shape \(0, 32\).*case 10"),
        ({"corruption": lambda case, e: e[..., :-1]}, CorruptionError, r"expected .*\(1, 32\)"),
        ({"corruption": lambda case, e: "no"}, CorruptionError, "returned 'no'"),
        ({"corruption": lambda case, e: e * float("nan")}, CorruptionError, "NaN or infinite"),
        ({"corruption": mt.UniformNoise(seed=-1000)}, ArgumentError, "seed"),
    ],
)
def test_what_is_refused(qwen, options, error, words):
    with pytest.raises(error, match=words):
        mt.trace_layers(qwen, CASES, layers=[1], **options)
    assert not any(module._forward_hooks for module in qwen.modules())


@pytest.mark.parametrize("values", [{"scale": -1.0}, {"seed": 0.5}, {"draws": 0}])
def test_uniform_noise_refuses(values):
    with pytest.raises(ArgumentError):
        mt.UniformNoise(**values)


def test_uniform_noise_of_a_zero_embedding_is_said_to_do_nothing():
    model = make_model("qwen3_moe")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    with pytest.warns(NoEffectWarning, match="zero everywhere"):
        mt.trace_layers(model, CASES, layers=[1], corruption=mt.UniformNoise())
