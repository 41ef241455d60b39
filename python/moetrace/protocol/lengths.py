"""Prompts that are too long for the model fall out of a run by a reason with a name."""

from __future__ import annotations

from collections import Counter

from moetrace.cases import CaseSet

REASON, STEP = "prompt_too_long", "prompt_fits"


def within_positions(cases: CaseSet, positions: int | None) -> CaseSet:
    """The cases whose prompts the model has positions for (None: for any).

    >>> within_positions(cases, 128).dropped["prompt_too_long"]
    2

    The funnel goes on with ``prompt_fits`` where a case fell, and is as it was where none did.
    """
    kept = [
        place for place, case in enumerate(cases) if positions is None or len(case.input_ids) <= positions
    ]
    fallen = len(cases) - len(kept)
    if not fallen:
        return cases
    funnel = {**cases.funnel, STEP: len(kept)}
    return cases.take(kept, funnel=funnel, dropped=Counter(cases.dropped) + Counter({REASON: fallen}))
