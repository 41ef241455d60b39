"""Active-random controls (section 3.4, Table 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.arguments import as_integer, as_seed, shown
from moetrace.effects.contrasts import Bools
from moetrace.errors import ArgumentError
from moetrace.stats import sample_without_replacement

_WORD = 2**64 - 1  # streams of the generator are unsigned, case ids may be negative


def control_count(controls: Any, top_k: int) -> int:
    """How many controls a case gets: "auto" is 3, or 1 where the router takes two experts (Table 2).

    >>> control_count("auto", top_k=8), control_count("auto", top_k=2), control_count(5, top_k=8)
    (3, 1, 5)

    Raises:
        ArgumentError: neither "auto" nor an integer of at least 1.
    """
    if isinstance(controls, str) and controls == "auto":
        return 1 if top_k == 2 else 3
    expected = "'auto' or an integer of at least 1"
    count = as_integer(controls, "controls", expected)
    if count < 1:
        raise ArgumentError(f"controls is {shown(count)}; expected {expected}")
    return count


def draw_controls(others: Bools, count: int, case_ids: npt.NDArray[np.int64], seed: int) -> Bools:
    """R of equation 7: up to ``count`` of each case's other clean-active experts, without replacement.

    >>> controls = draw_controls(all_active(clean_active, star=69), 3, case_ids, seed=0)

    ``others`` and the result: bool (cases, experts). A case with fewer others gets them all. A case's draw is
    a function of (seed, case id) and of the experts active in it: not of the other cases.
    """
    seed = as_seed(seed)
    drawn = np.zeros(others.shape, np.bool_)
    for case, case_id in enumerate(case_ids.tolist()):
        active = np.flatnonzero(others[case])
        k = min(count, len(active))
        chosen = sample_without_replacement(len(active), k, seed=seed, stream=case_id & _WORD)
        drawn[case, active[chosen]] = True
    return drawn
