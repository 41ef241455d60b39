"""Resampling statistics on plain arrays; needs numpy alone, and not torch.

>>> import moetrace as mt
>>> mt.stats.bootstrap(rescue, ci="bca")
>>> mt.stats.sign_flip(effects, correction="max_t").p_adjusted
>>> mt.stats.adjust(p_values, method="holm").p_adjusted

All draws come from Philox 4x32-10, a counter-based generator: draw i of resample b is a function of
(seed, b, i), so integers and counts (p-values, ranks) are the same on every platform, for any number of
threads. Floats are the same for any number of threads and every instruction set of a processor; between
platforms they may differ by the last bits of the C library's functions (erfc, exp, log).
"""

from moetrace.stats.adjustment import adjust
from moetrace.stats.draws import philox_integers, sample_without_replacement
from moetrace.stats.errors import (
    DegenerateWarning,
    FewClustersWarning,
    NotFiniteError,
    StatisticsError,
    TooFewCasesError,
    TooFewClustersError,
)
from moetrace.stats.flips import sign_flip
from moetrace.stats.intervals import bootstrap
from moetrace.stats.results import AdjustResult, BootstrapResult, RankResult, SignFlipResult
from moetrace.stats.selected_rank import ranks
from moetrace.stats.summary import summary_table

__all__ = [
    "AdjustResult",
    "BootstrapResult",
    "DegenerateWarning",
    "FewClustersWarning",
    "NotFiniteError",
    "RankResult",
    "SignFlipResult",
    "StatisticsError",
    "TooFewCasesError",
    "TooFewClustersError",
    "adjust",
    "bootstrap",
    "philox_integers",
    "ranks",
    "sample_without_replacement",
    "sign_flip",
    "summary_table",
]
