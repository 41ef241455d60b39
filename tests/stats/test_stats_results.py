"""Results are small, frozen, readable, and turn into tables; none of it needs torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from moetrace import stats

X = np.random.default_rng(0).normal(0.3, 1, (30, 4))


def results(x):
    return [
        stats.bootstrap(x, n_resamples=50),
        stats.sign_flip(x, n_flips=50, correction="max_t"),
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_a_vector_gives_scalars_and_a_matrix_arrays(index):
    alone, together = results(X[:, 0])[index], results(X)[index]
    for name in alone._per_column:
        assert isinstance(getattr(alone, name), (float, int))
        assert getattr(together, name).shape == (4,)
    assert len(alone.frame()) == 1
    frame = together.frame()
    assert list(frame.columns) == list(together._per_column)
    assert len(frame) == 4


@pytest.mark.parametrize(
    "result", [*results(X), *results(X[:, 0]), stats.adjust([0.1, 0.2]), stats.ranks(X, 0)]
)
def test_results_are_frozen_and_readable(result):
    name = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, name, 0)
    text = repr(result)
    assert text.startswith(type(result).__name__)
    for field in result._per_column:
        assert field in text


def test_arrays_of_a_result_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        stats.bootstrap(X, n_resamples=50).ci_low[0] = 0.0


def test_settings_are_part_of_the_result():
    found = stats.bootstrap(X, ci="bca", confidence=0.9, n_resamples=60, seed=3, cluster=np.arange(30) % 5)
    assert (found.ci, found.confidence, found.n_resamples, found.seed) == ("bca", 0.9, 60, 3)
    assert (found.statistic, found.n_clusters, found.two_stage) == ("mean", 5, False)


@pytest.mark.parametrize(
    "x", [X[:, 0].tolist(), X[:, 0].astype(np.float32), (X[:, 0] > 0), (X[:, 0] * 10).astype(int), X[::2, 0]]
)
def test_anything_like_an_array_of_numbers_will_do(x):
    assert stats.bootstrap(x, n_resamples=50).estimate == pytest.approx(np.mean(np.asarray(x, float)))


def test_input_is_left_alone():
    before = X.copy()
    stats.bootstrap(X, n_resamples=50)
    stats.sign_flip(X, n_flips=50)
    np.testing.assert_array_equal(X, before)


def test_neither_torch_nor_pandas_is_imported():
    script = (
        "import sys, numpy as np, moetrace as mt\n"
        "x = np.arange(5.0)\n"
        "mt.stats.bootstrap(x), mt.stats.sign_flip(x), mt.stats.adjust([0.1])\n"
        "assert not {'torch', 'transformers', 'pandas', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
