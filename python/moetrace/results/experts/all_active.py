"""An expert beside all others that are clean-active with it (appendix C.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moetrace.results.experts.contrast import Contrast
from moetrace.results.experts.expert import Expert
from moetrace.results.experts.view import StarView


class AllActive(Contrast):
    """Rescue of an expert minus the mean rescue of all other clean-active ones (equations 11 to 13).

    >>> held.all_active(star).summary()

    ``rows``: case_id, relation_id, star_rescue, control_rescue (equation 12), specificity (equation 13),
    others (how many); only the cases where the star and another expert of its layer are clean-active.
    """


def all_active(view: StarView) -> AllActive:
    """Equations 11 to 13 over the cases where they are defined."""
    others = view.others
    keep = view.star_active & others.any(axis=1)
    count = others.sum(axis=1)[keep]
    mean = np.where(others, view.rescue, 0.0).sum(axis=1)[keep] / count
    rows = view.cases.loc[keep, ["case_id", "relation_id"]].reset_index(drop=True)
    rows["star_rescue"] = view.star_rescue[keep]
    rows["control_rescue"] = mean
    rows["specificity"] = view.star_rescue[keep] - mean
    rows["others"] = count
    return AllActive(view.star, rows)


@dataclass(frozen=True, eq=False, repr=False)
class ActiveRanks:
    """Where an expert's rescue stands among the clean-active ones of its layer (Table 10).

    >>> held.ranks(star).mean_rank

    Attributes:
        rows: case_id, relation_id, rank (1 is the largest rescue; a tie counts against the expert),
            percentile (1 the best, 0 the worst), active (experts ranked, the star included), tied (others
            with the very same rescue); one row for each ranked case.
        n: cases of the trace. n_ranked: those where the star and another expert are clean-active.
        top_1, top_2: in how many of them the rank is at most 1, at most 2.
        mean_rank, mean_percentile: over the ranked cases.
        contrast: selected minus all other active experts, over the same cases.
    """

    star: Expert
    rows: pd.DataFrame
    n: int
    n_ranked: int
    top_1: int
    top_2: int
    mean_rank: float
    mean_percentile: float
    contrast: AllActive

    def summary(self, **options: Any) -> pd.DataFrame:
        """Table 10: metric, value, and for the contrast ci_low and ci_high.

        ``options``: those of :meth:`ExpertTrace.summary`, but ``by``.
        """
        own = self.contrast.summary(**options).set_index("quantity").loc["specificity"]
        nan = float("nan")
        return pd.DataFrame(
            [
                ("ranked_cases", float(self.n_ranked), nan, nan),
                ("top_1", float(self.top_1), nan, nan),
                ("top_2", float(self.top_2), nan, nan),
                ("mean_rank", self.mean_rank, nan, nan),
                ("mean_percentile", self.mean_percentile, nan, nan),
                ("selected_minus_others", float(own["mean"]), float(own.ci_low), float(own.ci_high)),
            ],
            columns=["metric", "value", "ci_low", "ci_high"],
        )

    def __repr__(self) -> str:
        return (
            f"ActiveRanks({self.star}: first in {self.top_1} and among the first two in {self.top_2} of "
            f"{self.n_ranked} ranked cases of {self.n}, mean rank {self.mean_rank:.2f}, mean percentile "
            f"{self.mean_percentile:.2f}, {self.contrast.mean:+.3f} above the other active experts)"
        )


def active_ranks(view: StarView) -> ActiveRanks:
    """Ranks over the cases where the star is clean-active beside another expert."""
    from moetrace.stats import ranks

    found = ranks(view.rescue, view.place, active=view.active)
    keep = ~np.isnan(found.rank)
    rows = view.cases.loc[keep, ["case_id", "relation_id"]].reset_index(drop=True)
    rows["rank"] = found.rank[keep].astype(np.int64)
    rows["percentile"] = found.percentile[keep]
    rows["active"] = view.active.sum(axis=1)[keep]
    rows["tied"] = found.tied[keep]
    return ActiveRanks(
        star=view.star,
        rows=rows,
        n=found.n,
        n_ranked=found.n_ranked,
        top_1=found.top_1,
        top_2=found.top_2,
        mean_rank=found.mean_rank,
        mean_percentile=found.mean_percentile,
        contrast=all_active(view),
    )
