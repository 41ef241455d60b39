"""Versions, found without importing what they are of."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from moetrace import __version__


def versions() -> dict[str, str]:
    """Versions of the package, of Python, and of what the numbers depend on."""
    found = {"moetrace": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
