"""A progress bar where somebody watches: in a terminal or a notebook, none elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = bool | Callable[[int, int], None] | None


def somebody_watches() -> bool:
    """Whether standard error is a terminal or this is a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class _Calls:
    """Counts up and tells a user's function."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self._total, self._done, self._tell = total, 0, tell

    def update(self, n: int = 1) -> None:
        self._done += n
        self._tell(self._done, self._total)


class _Silent:
    def update(self, n: int = 1) -> None:
        pass


@contextmanager
def progress_bar(total: int, desc: str, progress: Progress = None) -> Iterator[Any]:
    """Yield an object with ``update(n)``.

    ``progress``: None shows a bar (done, rate, time left) in a terminal or a notebook, True always,
    False never; a function is called with (done, total) instead.
    """
    if callable(progress):
        yield _Calls(total, progress)
    elif progress is True or (progress is None and somebody_watches()):
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=desc, unit="case", dynamic_ncols=True, leave=False) as bar:
            yield bar
    else:
        yield _Silent()
