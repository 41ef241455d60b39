"""Adjustments of any p-values for their number."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from moetrace import _stats
from moetrace.arguments import shown
from moetrace.stats import checks
from moetrace.stats.checks import Floats, NanPolicy
from moetrace.stats.errors import StatisticsError
from moetrace.stats.results import AdjustResult

Method = Literal["holm", "bh"]


def adjust(p: npt.ArrayLike, method: Method = "holm", *, nan: NanPolicy = "raise") -> AdjustResult:
    """Adjust p-values for their number.

    >>> mt.stats.adjust([0.01, 0.04, 0.03]).p_adjusted
    array([0.03, 0.06, 0.06])

    Args:
        p: a vector of numbers from 0 to 1.
        method: ``"holm"`` for family-wise error under any dependence (Holm 1979), or ``"bh"`` for the
            false discovery rate (Benjamini and Hochberg 1995).
        nan: ``"omit"`` leaves NaN out of the family, and NaN in its place.

    Returns:
        An :class:`AdjustResult` with ``p_adjusted``, in the order of ``p``; ``n`` is the family's size.

    Raises:
        StatisticsError: for values outside [0, 1], NaN, or more than one dimension.
    """
    checks.choice(method, "method", ("holm", "bh"))
    checks.choice(nan, "nan", ("raise", "omit"))
    try:
        values = np.array(p, np.float64)
    except (TypeError, ValueError) as failure:
        raise StatisticsError(f"p must be numbers from 0 to 1; found {shown(p)}") from failure
    if values.ndim != 1:
        raise StatisticsError(f"p has shape {values.shape}; expected a vector")
    known = ~np.isnan(values)
    if nan == "raise" and not known.all():
        raise StatisticsError(f"p has {int((~known).sum())} NaN value(s); expected none, or nan='omit'")
    if ((values[known] < 0) | (values[known] > 1)).any():
        raise StatisticsError("p has values outside [0, 1]; expected probabilities")
    result = np.full_like(values, np.nan)
    result[known] = adjusted(values[known], method)
    return AdjustResult(p_value=values, p_adjusted=result, method=method, n=int(known.sum()))


def adjusted(p: Floats, method: Method) -> Floats:
    """The same without any check."""
    return _stats.adjust_holm(p) if method == "holm" else _stats.adjust_benjamini_hochberg(p)
