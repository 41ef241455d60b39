"""The compiled core, imported once and with an explanation when that fails."""

from __future__ import annotations

import torch

from moetrace.errors import MoetraceError

try:
    from moetrace import _core
except ImportError as failure:
    raise MoetraceError(
        f"the compiled core of moetrace could not be imported ({failure}); it is built for one minor "
        f"version of torch, and torch {torch.__version__} is installed: reinstall moetrace beside this torch"
    ) from failure


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


if _minor(_core.TORCH_VERSION) != _minor(torch.__version__):
    raise MoetraceError(
        f"the compiled core of moetrace was built with torch {_core.TORCH_VERSION}, but torch "
        f"{torch.__version__} is installed: reinstall moetrace beside this torch"
    )

__all__ = ["_core"]
