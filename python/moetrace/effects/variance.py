"""How much of a mean's variance comes from the draws of a corruption, and how much from the cases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.errors import ArgumentError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class VarianceComponents:
    """One entry for each site. See :func:`variance_components`."""

    mean: Floats
    between: Floats
    within: Floats
    icc: Floats
    draws_share: Floats
    standard_error: Floats


def variance_components(values: Floats) -> VarianceComponents:
    """Variance of effects split into that between cases and that within them, between draws.

    >>> variance_components(effects)                    # (cases, sites, draws)

    The mixed model of one random factor: value[c, d] = mean + case[c] + draw[c, d], both of mean 0, every
    case with as many draws (Searle, Casella and McCulloch 1992, section 3.5). Estimates are those of the
    analysis of variance, by the method of moments, from the mean squares of cases and of draws in cases:

    - ``within``: MS_within; ``between``: (MS_between - MS_within) / draws, 0 where that is negative;
    - ``icc``: between / (between + within), what two draws of one case share;
    - ``draws_share``: within / draws over between + within / draws, the part of the variance of a case's
      averaged effect that other draws would change;
    - ``standard_error``: of the mean over cases, sqrt(MS_between / (cases * draws)): it holds both.

    NaN where there are fewer than two cases, and in ratios of zero. ArgumentError for fewer than two draws.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 3 or given.shape[2] < 2:
        raise ArgumentError(
            f"values have shape {given.shape}; expected (cases, sites, draws) with two draws or more"
        )
    cases, _, draws = given.shape
    by_case = given.mean(axis=2)
    mean = by_case.mean(axis=0) if cases else np.full(given.shape[1], np.nan)
    squares_within = ((given - by_case[:, :, None]) ** 2).sum(axis=(0, 2))
    squares_between = draws * ((by_case - mean) ** 2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = squares_within / (cases * (draws - 1))
        ms_between = squares_between / (cases - 1) if cases > 1 else np.full_like(mean, np.nan)
        between = np.maximum((ms_between - within) / draws, 0.0)
        icc = between / (between + within)
        draws_share = within / draws / (between + within / draws)
        standard_error = np.sqrt(ms_between / (cases * draws)) if cases else np.full_like(mean, np.nan)
    return VarianceComponents(mean, between, within, icc, draws_share, standard_error)
