"""One bar over all ranks' cases, on the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moetrace.progress import Progress
from moetrace.progress import progress_bar as plain_bar
from moetrace.ranks.call import Call, here


class _Counted:
    """Counts with all ranks; the first shows the sum, also while it waits for the others."""

    def __init__(self, call: Call, bar: Any) -> None:
        self._call, self._bar, self._shown = call, bar, 0
        self._name = f"bar/{call.next_bar()}"

    def update(self, n: int = 1) -> None:
        """So many more cases of this rank. RankError where another rank has failed."""
        counts = self._call.first or not self._call.mirrored  # ranks that run all batches count once
        self._show(self._call.line.count(self._name, n if counts else 0))
        self._call.look()

    def look(self) -> None:
        """What the others have done."""
        self._show(self._call.line.count(self._name, 0))

    def _show(self, total: int) -> None:
        if total > self._shown:
            self._bar.update(total - self._shown)
            self._shown = total


@contextmanager
def progress_bar(total: int, desc: str, progress: Progress = None) -> Iterator[Any]:
    """As :func:`moetrace.progress.progress_bar`; where ranks trace together each updates by what it did."""
    call = here()
    if not isinstance(call, Call):
        with plain_bar(total, desc, progress) as bar:
            yield bar
        return
    with plain_bar(total, desc, progress if call.first else False) as bar:
        counted = _Counted(call, bar)
        call.watch = counted.look if call.first else None
        try:
            yield counted
        finally:
            call.watch = None
