"""Memory that was freed and that the C library keeps: after a sweep it would stand beside the next one's."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed() -> None:
    """Return it to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
