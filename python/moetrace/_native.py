"""The compiled core, imported once and with an explanation when that fails."""

from __future__ import annotations

import torch

from moetrace.errors import CoreImportError

LEAST, BELOW = (2, 11), (3,)  # versions of torch that the core's stable ABI serves


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


if not LEAST <= _version(torch.__version__) < BELOW:
    raise CoreImportError(
        f"torch {torch.__version__} is installed; moetrace needs torch>=2.11,<3: pip install 'torch>=2.11,<3'"
    )
try:
    from moetrace import _core
except ImportError as failure:
    raise CoreImportError(
        f"the compiled core of moetrace can't be imported beside torch {torch.__version__}: {failure}; "
        "install moetrace again (pip install --force-reinstall --no-deps moetrace)"
    ) from failure

__all__ = ["_core"]
