"""How often an expert is active, and how many zero rows its average keeps (Table 3)."""

from __future__ import annotations

from dataclasses import dataclass

from moetrace.results.experts.expert import Expert
from moetrace.results.experts.view import StarView


@dataclass(frozen=True)
class Activity:
    """Counts of cases.

    Attributes:
        active: the clean run's router selects the expert. n: all cases.
        noised_active: the noised run's router does.
        zero_rows: rescue is exactly 0. Every inactive case is one; an active one can be, too, where the
            logits are so coarse (bfloat16) that the patch moves neither.
        zero_while_active: those of the second kind.
    """

    star: Expert
    active: int
    n: int
    noised_active: int
    zero_rows: int
    zero_while_active: int

    def __str__(self) -> str:
        return f"{self.star} clean-active in {self.active}/{self.n}, {self.zero_rows} zero rows"


def activity(view: StarView) -> Activity:
    """Counts for the star of a view."""
    zero = view.star_rescue == 0
    return Activity(
        star=view.star,
        active=int(view.star_active.sum()),
        n=len(zero),
        noised_active=int(view.noised_active[:, view.place].sum()),
        zero_rows=int(zero.sum()),
        zero_while_active=int((zero & view.star_active).sum()),
    )
