"""The draws that the compiled core makes, for twins to be fed with."""

from __future__ import annotations

import numpy as np

from moetrace import _stats

NO_LABELS = np.empty(0, np.int32)


def options(resamples: int, seed: int, clusters: int = 0, two_stage: bool = False) -> _stats.BootstrapOptions:
    return _stats.BootstrapOptions(
        interval=_stats.Interval.percentile,
        confidence=0.95,
        resamples=resamples,
        seed=seed,
        clusters=clusters,
        two_stage=two_stage,
        threads=1,
    )
