"""Rescue and what it is held against: equations 3, 4, 7, 9 and 11 to 13, and the ratios of Table 7.

Everything is in logits of the difference between true and foil object (equation 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import ArgumentError
from moetrace.stats import BootstrapResult, RankResult, bootstrap, ranks

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def drop(clean: Floats, noised: Floats) -> Floats:
    """What noise takes away (equation 3): clean minus noised.

    >>> drop(clean, noised).mean()

    ``clean``: (cases,). ``noised``: (cases,), or (cases, draws), each draw against the one clean run.
    """
    runs = np.asarray(noised)
    taken: Floats = np.asarray(clean).reshape(-1, *(1,) * (runs.ndim - 1)) - runs
    return taken


def rescue(patched: Floats, noised: Floats) -> Floats:
    """Rescue (equation 4): patched minus noised.

    >>> rescue(outcome.patched, outcome.noised)       # (cases, patches, draws)

    ``patched``: (cases, patches, draws), or (cases, patches). ``noised``: (cases, draws), or (cases,); it
    serves all patches of its case. Of one patch both have the same shape.

    Raises:
        ArgumentError: the shapes don't fit: numpy's own broadcasting would subtract other cases' runs.
    """
    after, before = np.asarray(patched), np.asarray(noised)
    # The patches of a case are the axis that its noised run lacks.
    base = before[:, None] if after.ndim == before.ndim + 1 and before.ndim else before
    same = after.shape if after.ndim == before.ndim else (after.shape[0], 1, *after.shape[2:])
    if base.shape != same:
        raise ArgumentError(
            f"patched has shape {after.shape} and noised {before.shape}; expected (cases, patches, draws) "
            "and (cases, draws), (cases, patches) and (cases,), or one shape for both"
        )
    restored: Floats = after - base
    return restored


def mean_over_set(rescue: Floats, experts: Bools) -> Floats:
    """(cases,): mean rescue of a set of experts in each case, NaN where the set is empty.

    >>> mean_over_set(rescue, controls)

    ``rescue`` and ``experts``, the members of the set: (cases, experts).
    """
    count = experts.sum(axis=1)
    total = np.where(experts, rescue, 0.0).sum(axis=1)
    mean: Floats = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean


def specificity(rescue: Floats, star: int, controls: Bools) -> Floats:
    """Spec (equation 7): rescue of the selected expert minus the mean rescue of its controls.

    >>> specificity(rescue, star=69, controls=draw_controls(others, 3, case_ids, seed=0))

    ``rescue``: (cases, experts), 0 for experts that aren't clean-active. ``star``: the selected expert's
    column. ``controls``: bool (cases, experts), the set R. NaN where R is empty.
    """
    spec: Floats = rescue[:, star] - mean_over_set(rescue, controls)
    return spec


def gate_specificity(selected: Floats, matched: Floats) -> Floats:
    """Spec_gate (equation 9): rescue of the selected expert minus that of its gate-weight-matched control.

    >>> gate_specificity(effects[:, 0], effects[:, 1]).mean()

    (cases,) each; the same contrast of patch vectors scaled to equal norm (equation 10) is Table 9's second
    column.
    """
    spec: Floats = np.asarray(selected) - np.asarray(matched)
    return spec


def all_active(active: Bools, star: int) -> Bools:
    """A⁻ (equation 11): the clean-active experts without the selected one, bool (cases, experts).

    >>> all_active(clean_active, star=69).sum(axis=1)
    """
    others = np.array(active, np.bool_)
    others[:, star] = False
    return others


def all_active_rescue(rescue: Floats, active: Bools, star: int) -> Floats:
    """(cases,): mean rescue over A⁻ (equation 12), NaN where the selected expert is alone.

    >>> all_active_rescue(rescue, clean_active, star=69)
    """
    return mean_over_set(rescue, all_active(active, star))


def all_active_specificity(rescue: Floats, active: Bools, star: int) -> Floats:
    """Spec_all (equation 13): rescue of the selected expert minus the mean rescue over A⁻.

    >>> np.nanmean(all_active_specificity(rescue, clean_active, star=69))

    NaN where the selected expert isn't clean-active or is alone: there the contrast isn't defined.
    """
    spec = rescue[:, star] - all_active_rescue(rescue, active, star)
    defined: Floats = np.where(active[:, star], spec, np.nan)
    return defined


def all_active_ranks(rescue: Floats, active: Bools, star: int) -> RankResult:
    """Rank and percentile of the selected expert among the clean-active ones (Table 10).

    >>> all_active_ranks(rescue, clean_active, star=69).mean_rank

    Rank 1 is the largest rescue, percentile 1 the best and 0 the worst; a tie counts against the selected
    expert. Ranked are the cases where it and another expert are clean-active.
    """
    return ranks(rescue, star, active=active, ties="worst")


def ratio_of_means(values: Floats, layer_rescue: Floats, **options: Any) -> BootstrapResult:
    """Mean of ``values`` over mean layer rescue, with its bootstrap interval (Table 7).

    >>> ratio_of_means(star_rescue, layer_rescue, seed=0).estimate

    (cases,) each, of the same cases, which are resampled together. ``options``: those of
    :func:`moetrace.stats.bootstrap`.
    """
    return bootstrap(values, layer_rescue, statistic="ratio", **options)
