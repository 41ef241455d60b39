"""Values of coalitions of experts, on plain arrays (appendix G; equations 14 and 15 are two coalitions).

>>> from moetrace import coalition
>>> masks = coalition.subsets(8)                         # 255 coalitions of 8 experts
>>> patches = coalition.membership(masks, 8) @ deltas    # each one's summed patch vectors
>>> values[:, 0], values[:, masks] = 0, rescue           # (cases, 2^8): nothing patched, nothing rescued
>>> coalition.shapley(values), coalition.shapley_interaction(values)

A coalition is a bitmask: bit j is set when player j belongs to it; a player is an expert of the list that the
caller keeps. For more players than have all their coalitions patched, :func:`sample_permutations` and
:func:`sampled_shapley` estimate the same values with standard errors.
"""

from moetrace.coalition.exact import (
    banzhaf,
    banzhaf_interaction,
    efficiency_gap,
    shapley,
    shapley_interaction,
)
from moetrace.coalition.listed import Additivity, SmallestCoalition, additivity, smallest_coalition
from moetrace.coalition.masks import (
    LIMIT,
    MAX_COMPLETE,
    MAX_PLAYERS,
    check_count,
    members,
    membership,
    subsets,
)
from moetrace.coalition.sampled import (
    SampledShapley,
    prefix_coalitions,
    sample_permutations,
    sampled_shapley,
)
from moetrace.coalition.sets import checked_sets

__all__ = [
    "LIMIT",
    "MAX_COMPLETE",
    "MAX_PLAYERS",
    "Additivity",
    "SampledShapley",
    "SmallestCoalition",
    "additivity",
    "banzhaf",
    "banzhaf_interaction",
    "check_count",
    "checked_sets",
    "efficiency_gap",
    "members",
    "membership",
    "prefix_coalitions",
    "sample_permutations",
    "sampled_shapley",
    "shapley",
    "shapley_interaction",
    "smallest_coalition",
    "subsets",
]
