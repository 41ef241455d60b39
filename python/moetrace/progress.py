"""Progress: a bar where somebody watches, in a terminal or a notebook; plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = bool | Callable[[int, int], None] | None
EVERY = 10.0  # seconds between two lines of a log


def somebody_watches() -> bool:
    """Whether standard error is a terminal or this is a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel: that ipykernel was imported doesn't make it one."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


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


class _Lines:
    """A line now and then, with the time that is left: a bar would fill a log."""

    def __init__(self, total: int, desc: str) -> None:
        self._total, self._desc, self._done = total, desc, 0
        self._start = self._told = time.monotonic()

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if self._done and now - self._told >= EVERY:
            self._told = now
            left = (now - self._start) / self._done * (self._total - self._done)
            self._tell(f"{clock(left)} left")

    def end(self) -> None:
        """Say how long it took, if anything was said before."""
        if self._told > self._start:
            self._tell(f"{clock(time.monotonic() - self._start)} in all")

    def _tell(self, what: str) -> None:
        print(f"{self._desc}: {self._done:,} of {self._total:,} cases, {what}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """A time as a person reads it.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress_bar(total: int, desc: str, progress: Progress = None) -> Iterator[Any]:
    """Yield an object with ``update(n)``.

    ``progress``: None shows a bar (done, rate, time left) in a terminal or a notebook. True does, and writes
    a line to standard error every :data:`EVERY` seconds elsewhere. False shows nothing; a function is called
    with (done, total) instead.
    """
    if callable(progress):
        yield _Calls(total, progress)
    elif progress is not False and somebody_watches():
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=desc, unit="case", dynamic_ncols=True, leave=False) as bar:
            yield bar
    elif progress is True:
        lines = _Lines(total, desc)
        yield lines
        lines.end()
    else:
        yield _Silent()
