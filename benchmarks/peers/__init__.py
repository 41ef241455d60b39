"""One module a peer: the full (cases x layers) rescue matrix, written as the peer's documentation shows it.

Each module has ``requirement`` (the package that it imports, None for plain transformers) and
``prepare(model)``, which wraps a twin of the model once, outside the measured time, and gives the function
``sweep(cases, noise)`` that is measured: rescue as a float32 array, cases x layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from benchmarks.model import Case

Sweep: TypeAlias = Callable[[Sequence[Case], Mapping[int, Tensor]], "np.ndarray"]
