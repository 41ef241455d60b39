"""The paper's effects, each equation once, as functions of plain arrays.

>>> from moetrace import effects
>>> effects.specificity(effects.rescue(patched, noised), star=69, controls=controls)

Equations 3, 4, 7, 9 and 11 to 13 and the ratios of Table 7 are in :mod:`contrasts`, the controls of Table 2
in :mod:`active_random`, the selection of section 3.4 in :mod:`recurrence`; :mod:`variance` splits the
variance of several draws.
"""

from moetrace.effects.active_random import control_count, draw_controls
from moetrace.effects.contrasts import (
    all_active,
    all_active_ranks,
    all_active_rescue,
    all_active_specificity,
    drop,
    gate_specificity,
    mean_over_set,
    ratio_of_means,
    rescue,
    specificity,
)
from moetrace.effects.recurrence import MEANS, Mean, mean_rescue, recurrence_first, required_cases
from moetrace.effects.variance import VarianceComponents, variance_components

__all__ = [
    "MEANS",
    "Mean",
    "VarianceComponents",
    "all_active",
    "all_active_ranks",
    "all_active_rescue",
    "all_active_specificity",
    "control_count",
    "draw_controls",
    "drop",
    "gate_specificity",
    "mean_over_set",
    "mean_rescue",
    "ratio_of_means",
    "recurrence_first",
    "required_cases",
    "rescue",
    "specificity",
    "variance_components",
]
