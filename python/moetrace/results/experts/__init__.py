"""What is worked out from a trace of experts."""

from moetrace.results.experts.activity import Activity
from moetrace.results.experts.all_active import ActiveRanks, AllActive
from moetrace.results.experts.arrays import ExpertArrays
from moetrace.results.experts.contrast import Contrast
from moetrace.results.experts.errors import (
    CaseMismatchError,
    ExpertRangeError,
    FewControlsWarning,
    NeverActiveError,
    NoControlsError,
    NoRecurrentExpertError,
)
from moetrace.results.experts.expert import Expert, ExpertLike
from moetrace.results.experts.held_out import HeldOut
from moetrace.results.experts.specificity import Specificity
from moetrace.results.experts.stability import Stability

__all__ = [
    "ActiveRanks",
    "Activity",
    "AllActive",
    "CaseMismatchError",
    "Contrast",
    "Expert",
    "ExpertArrays",
    "ExpertLike",
    "ExpertRangeError",
    "FewControlsWarning",
    "HeldOut",
    "NeverActiveError",
    "NoControlsError",
    "NoRecurrentExpertError",
    "Specificity",
    "Stability",
]
