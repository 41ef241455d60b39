"""The table behind every summary."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from moetrace import stats

COLUMNS = ["mean", "positive_fraction", "ci_low", "ci_high", "p_value", "n"]


@pytest.fixture
def effects():
    rng = np.random.default_rng(0)
    x = rng.normal(0.2, 1, (40, 6))
    x[rng.random((40, 6)) < 0.3] = 0.0
    return x


def test_it_is_made_of_the_statistics(effects):
    table = stats.summary_table(effects)
    assert list(table.columns) == COLUMNS
    interval = stats.bootstrap(effects, n_resamples=5000)
    test = stats.sign_flip(effects, n_flips=10_000)
    np.testing.assert_array_equal(table["mean"], interval.estimate)
    np.testing.assert_array_equal(table["ci_low"], interval.ci_low)
    np.testing.assert_array_equal(table["ci_high"], interval.ci_high)
    np.testing.assert_array_equal(table["p_value"], test.p_value)
    np.testing.assert_array_equal(table["positive_fraction"], (effects > 0).mean(axis=0))
    assert table["n"].tolist() == [40] * 6


@pytest.mark.parametrize("statistic", [None, "mean", "t"])
@pytest.mark.parametrize("correction", ["max_t", "max_t_single", "holm", "bh"])
def test_corrections(effects, correction, statistic):
    how = {"correction": correction, "statistic": statistic, "n_flips": 500}
    table = stats.summary_table(effects, **how)
    assert list(table.columns) == [*COLUMNS[:5], "p_adjusted", "n"]
    np.testing.assert_array_equal(table["p_adjusted"], stats.sign_flip(effects, **how).p_adjusted)


def test_arguments_reach_the_statistics(effects):
    labels = np.arange(40) % 7
    arguments = {"ci": "bca", "n_resamples": 300, "seed": 5, "confidence": 0.8}
    table = stats.summary_table(effects, cluster=labels, n_flips=64, **arguments)
    expected = stats.bootstrap(effects, cluster=labels, **arguments)
    np.testing.assert_array_equal(table["ci_low"], expected.ci_low)
    assert (
        stats.sign_flip(effects, cluster=labels, seed=5, n_flips=64).p_value.tolist()
        == table["p_value"].tolist()
    )


def test_sites_with_holes_keep_their_row(effects):
    effects[:3, 0] = np.nan
    effects[1:, 2] = np.nan
    effects[:, 4] = np.nan
    effects[:, 5] = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = stats.summary_table(effects, correction="max_t", n_flips=200, n_resamples=200)
    assert table["n"].tolist() == [37, 40, 1, 40, 0, 40]
    alone = stats.bootstrap(effects[3:, 0], n_resamples=200)
    assert table.loc[0, ["ci_low", "ci_high"]].tolist() == [alone.ci_low, alone.ci_high]
    assert table.loc[2, "mean"] == effects[0, 2]
    assert table.loc[2, ["ci_low", "ci_high", "p_value", "p_adjusted"]].isna().all()
    assert table.loc[4].drop("n").isna().all()
    assert table.loc[5, ["mean", "ci_low", "ci_high"]].tolist() == [0, 0, 0]
    assert table.loc[5, ["p_value", "p_adjusted"]].tolist() == [1, 1]


def test_a_site_whose_cases_are_of_one_cluster_has_no_interval(effects):
    labels = np.repeat(["P17", "P27", "P30", "P36"], 10)
    effects[10:, 1] = np.nan
    table = stats.summary_table(effects, cluster=labels, n_resamples=100)
    assert np.isnan(table.loc[1, "ci_low"])
    assert not np.isnan(table.loc[0, "ci_low"])


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (5, 0)])
def test_groups_too_small_for_a_test_are_no_error(shape):
    table = stats.summary_table(np.ones(shape), correction="holm")
    assert isinstance(table, pd.DataFrame)
    assert len(table) == shape[1]
    assert table["p_value"].isna().all()
    assert (table["n"] == shape[0]).all()
