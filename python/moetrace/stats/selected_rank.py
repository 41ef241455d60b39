"""Rank of a selected candidate (Table 10)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from moetrace import _stats
from moetrace.arguments import shown
from moetrace.stats import checks
from moetrace.stats.errors import NotFiniteError, StatisticsError
from moetrace.stats.results import RankResult

Ties = Literal["worst", "average", "best"]
_TIES = {"worst": _stats.Ties.ahead, "average": _stats.Ties.midway, "best": _stats.Ties.behind}


def ranks(
    effects: npt.ArrayLike,
    selected: int | npt.ArrayLike,
    *,
    active: npt.ArrayLike | None = None,
    ties: Ties = "worst",
) -> RankResult:
    """Rank the selected candidate among the active ones, case by case (Table 10).

    >>> mt.stats.ranks(rescue, selected=69, active=clean_active).mean_rank

    A case is ranked when the selected candidate is active in it and another one is, too. Rank 1 is the
    largest effect; the percentile is (m - rank) / (m - 1) of m active candidates, so 1 for the best and 0
    for the worst.

    Args:
        effects: cases x candidates.
        selected: the column, or one column for each case (-1 where there is none).
        active: bools of the same shape; default where effects aren't NaN.
        ties: where the selected candidate stands among those with the very same effect: ``"worst"`` (a tie
            never speaks for it), ``"average"`` or ``"best"``. ``n_tied`` says in how many cases it matters.

    Returns:
        A :class:`RankResult`. ``top_1`` and ``top_2`` count ranks of at most 1 and 2.

    Raises:
        StatisticsError: for shapes that don't fit, a column out of range, or an active effect that isn't
            finite.
    """
    checks.choice(ties, "ties", tuple(_TIES))
    values = np.ascontiguousarray(checks.reals(effects, "effects"))
    if values.ndim != 2:
        raise StatisticsError(f"effects has shape {values.shape}; expected cases x candidates")
    mask = ~np.isnan(values) if active is None else _booleans(active)
    if mask.shape != values.shape:
        raise StatisticsError(f"active has shape {mask.shape}; expected that of effects, {values.shape}")
    if not np.isfinite(values[mask]).all():
        raise NotFiniteError("effects of active candidates are not all finite; expected finite ones")
    try:
        own = np.asarray(selected)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise StatisticsError(f"selected is {shown(selected)}; expected integers") from failure
    if own.dtype.kind not in "iu" or own.ndim > 1 or (own.ndim == 1 and own.shape != values.shape[:1]):
        raise StatisticsError("selected must be an integer, or an integer for each case")
    own = np.broadcast_to(own.astype(np.int64), values.shape[:1])
    if ((own < -1) | (own >= values.shape[1])).any():
        raise StatisticsError(
            f"selected has columns out of range; expected 0 to {values.shape[1] - 1}, or -1"
        )
    return _collect(_stats.rank_selected(values, mask, own, _TIES[ties]), ties)


def _booleans(active: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    try:
        return np.asarray(active, np.bool_)
    except (TypeError, ValueError, RuntimeError) as failure:
        raise StatisticsError(f"active is {shown(active)}; expected booleans") from failure


def _collect(found: _stats.SelectedRanks, ties: Ties) -> RankResult:
    ranked = found.rank > 0
    rank = np.where(ranked, found.rank, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        percentile = np.where(ranked, (found.candidates - rank) / (found.candidates - 1), np.nan)
    count = int(ranked.sum())
    return RankResult(
        rank=rank,
        percentile=percentile,
        candidates=found.candidates,
        tied=found.tied,
        n=len(rank),
        n_ranked=count,
        top_1=int((rank[ranked] <= 1).sum()),
        top_2=int((rank[ranked] <= 2).sum()),
        n_tied=int((found.tied[ranked] > 0).sum()),
        mean_rank=float(rank[ranked].mean()) if count else float("nan"),
        mean_percentile=float(percentile[ranked].mean()) if count else float("nan"),
        ties=ties,
    )
