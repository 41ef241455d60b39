"""One expert among the others of its layer."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from moetrace.results.experts.arrays import Bools, Counts, Floats
from moetrace.results.experts.expert import Expert


@dataclass(frozen=True, eq=False)
class StarView:
    """What the comparisons read: all experts of the star's layer, in the order of their numbers.

    ``rescue`` and ``active``: (cases, experts of the layer), the rescue 0 where not clean-active.
    ``cases``: case_id and relation_id. ``place``: the star's column.
    """

    star: Expert
    place: int
    experts: Counts
    cases: pd.DataFrame
    rescue: Floats
    active: Bools
    noised_active: Bools

    @property
    def star_rescue(self) -> Floats:
        """Rescue of the star in every case; 0 where it isn't clean-active."""
        column: Floats = self.rescue[:, self.place]
        return column

    @property
    def star_active(self) -> Bools:
        """Where the star is clean-active."""
        column: Bools = self.active[:, self.place]
        return column

    @property
    def others(self) -> Bools:
        """A(x) without the star (equation 11), as bools (cases, experts)."""
        others = self.active.copy()
        others[:, self.place] = False
        return others
