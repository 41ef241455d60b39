"""What is other for a time and comes back, also after an exception or Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C back until the end, so that what is changed or put back here is so wholly."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # other threads get no signals; a handler that isn't Python's raises nothing here
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[-1])


class Changes:
    """Attributes and entries that are other for a time: what was there comes back, the last changed first.

    A change is written down before it is made, and putting back is done wholly or, after Ctrl-C in the
    middle, once more.
    """

    def __init__(self) -> None:
        self._made: list[tuple[Callable[[Any], None], Any]] = []

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        self._make(partial(setattr, owner, name), getattr(owner, name), value)

    def entry(self, owner: dict[str, Any], name: str, value: Any) -> None:
        """Set an entry of a dictionary."""
        self._make(partial(owner.__setitem__, name), owner[name], value)

    def later(self, act: Callable[[], None]) -> None:
        """Do something when all is put back."""
        self._made.append((lambda _: act(), None))

    def _make(self, put: Callable[[Any], None], before: Any, value: Any) -> None:
        self._made.append((put, before))
        put(value)

    def undo(self) -> None:
        """Put everything back."""
        try:
            self._undo()
        except KeyboardInterrupt:  # it came before it could be held back
            self._undo()
            raise

    def _undo(self) -> None:
        with undisturbed():
            while self._made:
                put, before = self._made[-1]
                put(before)
                self._made.pop()
