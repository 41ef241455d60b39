"""Reproducible choices, the same on every platform."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moetrace import _stats
from moetrace.stats import checks

_WORD = 2**32 - 1
_LONG = 2**64 - 1


def sample_without_replacement(n: int, k: int, seed: int = 0, stream: int = 0) -> npt.NDArray[np.int64]:
    """``k`` distinct integers of ``range(n)`` in random order.

    >>> sample_without_replacement(8, 3, seed=0, stream=case_id)     # controls of a case

    A function of the four arguments alone (Philox 4x32-10): not of the order of calls, the platform or
    anything drawn before. Every ordered choice is equally likely.

    Args:
        n: 0 to 2^32 - 1.
        k: 0 to n.
        seed: 0 to 2^64 - 1.
        stream: 0 to 2^64 - 1, for instance a case id: streams are independent of each other.

    Raises:
        StatisticsError: for an argument out of range.
    """
    size = checks.whole(n, "n", 0, _WORD)
    return _stats.sample_without_replacement(
        size, checks.whole(k, "k", 0, size), checks.seed(seed), checks.whole(stream, "stream", 0, _LONG)
    )


def philox_integers(n: int, size: int, seed: int = 0, stream: int = 0) -> npt.NDArray[np.uint32]:
    """``size`` integers, each uniform over ``range(n)``, independent of each other.

    >>> philox_integers(128, 10, seed=0, stream=case_id)

    A function of the four arguments alone; a longer draw begins with a shorter one's integers.

    Args:
        n: 1 to 2^32 - 1.
        size: 0 to 2^32 - 1.
        seed: 0 to 2^64 - 1.
        stream: 0 to 2^64 - 1.

    Raises:
        StatisticsError: for an argument out of range.
    """
    return _stats.integers(
        checks.whole(n, "n", 1, _WORD),
        checks.whole(size, "size", 0, _WORD),
        checks.seed(seed),
        checks.whole(stream, "stream", 0, _LONG),
    )
