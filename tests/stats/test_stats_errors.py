"""What is refused, and what the message says."""

from __future__ import annotations

import numpy as np
import pytest

from moetrace.errors import ArgumentError, MoetraceError, MoetraceWarning
from moetrace.stats import (
    DegenerateWarning,
    NotFiniteError,
    StatisticsError,
    TooFewCasesError,
    TooFewClustersError,
    bootstrap,
    sign_flip,
    summary_table,
)

X = np.arange(6.0)


@pytest.mark.parametrize("call", [bootstrap, sign_flip])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([], TooFewCasesError, r"0 case\(s\); expected at least 2"),
        ([1.0], TooFewCasesError, r"1 case\(s\)"),
        (np.empty((0, 3)), TooFewCasesError, "0 case"),
        ([1.0, np.nan], NotFiniteError, "nan='omit'"),
        ([1.0, np.inf], NotFiniteError, "infinite"),
        (np.ones((2, 2, 2)), StatisticsError, r"shape \(2, 2, 2\)"),
        (3.0, StatisticsError, r"shape \(\)"),
        (["a", "b"], StatisticsError, "real numbers"),
        ([1 + 1j, 2.0], StatisticsError, "real numbers"),
        ([[1.0], [1.0, 2.0]], StatisticsError, "real numbers"),
    ],
)
def test_data(call, x, error, message):
    with pytest.raises(error, match=message):
        call(x)


@pytest.mark.parametrize("call", [bootstrap, sign_flip])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cluster": [1] * 6}, TooFewClustersError, "at least two"),
        ({"cluster": [1, 2]}, StatisticsError, r"shape \(2,\)"),
        ({"cluster": [[1, 2, 3, 4, 5, 6]]}, StatisticsError, "shape"),
        ({"cluster": [1.0, 2, 3, 4, 5, np.nan]}, StatisticsError, "NaN labels"),
        ({"cluster": np.array(["a", 1, None, 2, 3, 4], object)}, StatisticsError, "one kind"),
        ({"seed": -1}, StatisticsError, "seed is -1"),
        ({"seed": 1.5}, StatisticsError, "seed"),
        ({"seed": 2**64}, StatisticsError, "seed"),
        ({"threads": 0}, StatisticsError, "threads"),
        ({"nan": "drop"}, StatisticsError, "'raise' or 'omit'"),
        ({"statistic": "mode"}, StatisticsError, "statistic is 'mode'"),
    ],
)
def test_common_arguments(call, arguments, error, message):
    with pytest.raises(error, match=message):
        call(X, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 0}, "confidence is 0"),
        ({"confidence": 1.0}, "strictly between"),
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": float("nan")}, "confidence"),
        ({"confidence": "high"}, "confidence"),
        ({"n_resamples": 1}, "n_resamples is 1"),
        ({"n_resamples": 10**9}, "n_resamples"),
        ({"n_resamples": True}, "n_resamples"),
        ({"ci": "normal"}, "ci is 'normal'"),
        ({"q": 1.5, "statistic": "quantile"}, "q is 1.5"),
        ({"statistic": "ratio"}, "needs a second sample"),
        ({"y": X}, "takes no second sample"),
        ({"y": X[:3], "statistic": "ratio"}, "same cases"),
        ({"y": np.zeros(6), "statistic": "ratio"}, "mean of zero"),
        ({"y": np.eye(6)[0], "statistic": "ratio"}, "in a resample"),
        ({"two_stage": True}, "needs cluster labels"),
        ({"ci": "studentized", "cluster": [0, 0, 1, 1, 2, 2]}, "without clusters"),
        ({"ci": "studentized", "statistic": "positive_fraction"}, "use ci='bca'"),
    ],
)
def test_bootstrap_arguments(arguments, message):
    with pytest.raises(StatisticsError, match=message):
        bootstrap(X, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_flips": 0}, "n_flips"),
        ({"correction": "bonferroni"}, "correction"),
        ({"n_flips": 2**40}, "n_flips"),
    ],
)
def test_sign_flip_arguments(arguments, message):
    with pytest.raises(StatisticsError, match=message):
        sign_flip(X, **arguments)


def test_omitting_may_leave_too_little():
    holes = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, 1.0]])
    for call in (bootstrap, sign_flip):
        with pytest.raises(TooFewCasesError, match="column 1 has 1"):
            call(holes, nan="omit")
    with pytest.raises(TooFewClustersError):
        bootstrap(np.array([1.0, 2.0, np.nan]), nan="omit", cluster=["a", "a", "b"])
    with pytest.raises(TooFewClustersError):
        sign_flip(np.array([1.0, 2.0, np.nan]), nan="omit", cluster=["a", "a", "b"])


def test_infinities_are_never_omitted():
    for call in (bootstrap, sign_flip):
        with pytest.raises(NotFiniteError):
            call([1.0, 2.0, np.inf], nan="omit")


def test_summary_refuses_what_the_statistics_refuse():
    with pytest.raises(StatisticsError, match="cases x sites"):
        summary_table(X)
    with pytest.raises(StatisticsError, match="infinite"):
        summary_table(np.array([[1.0], [np.inf]]))
    with pytest.raises(TooFewClustersError):
        summary_table(X[:, None], cluster=["P17"] * 6)
    with pytest.raises(StatisticsError, match="correction"):
        summary_table(X[:, None], correction="step_down")
    with pytest.raises(StatisticsError, match="ci is"):
        summary_table(X[:, None], ci="none")
    for wrong in ({"confidence": None}, {"n_flips": 0}, {"n_resamples": 1}, {"seed": -1}, {"statistic": "f"}):
        with pytest.raises(StatisticsError, match=f"{next(iter(wrong))} is"):
            summary_table(np.ones((1, 2)), **wrong)


def test_all_errors_are_the_packages_own():
    assert issubclass(StatisticsError, MoetraceError)
    assert issubclass(StatisticsError, ArgumentError)
    assert issubclass(StatisticsError, ValueError)
    assert issubclass(DegenerateWarning, MoetraceWarning)
