"""What goes into the page as it is: data that no text can break out of, scripts, and who may run them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from moetrace.errors import MissingPackageError

# Only these can end a script element or open a comment in it; in JSON the escapes are the same text.
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def script_json(value: Any) -> str:
    """JSON for a ``<script type="application/json">``: ASCII, without ``<``, ``>`` and ``&``; NaN is null.

    >>> script_json({"subject": "</script>"})
    '{"subject":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def packed(values: npt.ArrayLike, dtype: str = "<f4") -> dict[str, str]:
    """An array as base64 of its little-endian bytes; ``dtype`` is "<f4", "<u2" or "<u4"."""
    raw = np.ascontiguousarray(values, dtype=dtype).tobytes()
    return {"dtype": dtype[1:], "base64": base64.b64encode(raw).decode("ascii")}


def floats(values: Any, digits: int = 6) -> list[float | None]:
    """Numbers for a chart, to so many significant digits; None for what isn't finite."""
    plain = np.asarray(values, dtype=float).ravel().tolist()
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in plain]


def asset(name: str) -> str:
    """The text of one of the page's own files, with plain line ends."""
    text = (resources.files("moetrace.report") / "assets" / name).read_text(encoding="utf-8")
    return _inline(text)


def plotly_script() -> str:
    """plotly.js, whole; MissingPackageError with the remedy where its package isn't there."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as failure:
        raise MissingPackageError(
            f'a report needs plotly ({failure}): pip install "moetrace[report]"'
        ) from failure
    return _inline(str(get_plotlyjs()))


@cache
def packed_text(text: str) -> str:
    """Text as base64 of its gzip, which a browser unpacks by itself: of plotly.js 2 MB instead of 5."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)).decode("ascii")


def content_policy(scripts: Iterable[str]) -> str:
    """A Content-Security-Policy by which these scripts run, no other does, and nothing is fetched."""
    digests = (hashlib.sha256(script.encode("utf-8")).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _inline(text: str) -> str:
    """Text as a browser's parser sees it inside an element: digests are of that."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(value: Any) -> Any:
    """JSON values only."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
