"""The line between ranks: short notes in the store of torch.distributed, and who is still there."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from moetrace.errors import MoetraceWarning, RankError

BEAT = 2.0  # seconds between two signs of life
LOST_AFTER = 60.0  # seconds without one
ARRIVE_WITHIN = 1800.0  # seconds for every rank to make a call that one has made
LINGER = 5.0  # seconds that a rank which failed stays, so that others can hear of it
_POLL = 0.05


class Line:
    """Notes of one call of all ranks, under a number that is theirs alone.

    Nothing here blocks for longer than a glance, so that Ctrl-C is heard, and a rank that never comes is
    missed. Bulk data go through collectives, which are entered once all ranks are known to be there.
    """

    def __init__(self, store: Any, number: int, rank: int, size: int) -> None:
        self._store, self.rank, self.size = store, rank, size
        self._prefix = f"moetrace/{number}"
        self._late: set[int] = set()
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="moetrace-beats", daemon=True)

    def open(self) -> None:
        """Begin to give signs of life."""
        self._beats.start()

    def close(self) -> None:
        """End them."""
        self._over.set()
        self._beats.join()

    def _beat(self) -> None:
        while not self._over.is_set():
            with suppress(RuntimeError):  # a store that is gone is noticed where it is needed
                self._store.add(self._key("beat", self.rank), 1)
            self._over.wait(BEAT)

    def note(self, name: str, text: str, rank: int | None = None) -> None:
        """Leave a text under a name, this rank's unless another is given."""
        with _reachable():
            self._store.set(self._key(name, self.rank if rank is None else rank), text)

    def read(self, name: str, rank: int) -> str:
        """A text that is there."""
        with _reachable():
            return bytes(self._store.get(self._key(name, rank))).decode()

    def noted(self, name: str, ranks: list[int]) -> bool:
        """Whether all of these ranks left a text under the name."""
        with _reachable():
            return bool(self._store.check([self._key(name, rank) for rank in ranks]))

    def count(self, name: str, more: int) -> int:
        """Add to a number that is common to all ranks, and give it."""
        with _reachable():
            return int(self._store.add(self._key(name, 0), more))

    def missing(self, name: str) -> list[int]:
        """Ranks that left no text under the name."""
        return [rank for rank in range(self.size) if not self.noted(name, [rank])]

    def wait_for_all(self, name: str, glance: Callable[[], None], what: str) -> None:
        """Wait until all ranks left a text under the name; ``glance`` is called now and then.

        RankError where one that is missing gave no sign of life for too long.
        """
        everyone = list(range(self.size))
        begin = looked = time.monotonic()
        heard: dict[int, tuple[int, float]] = {}
        pause = 0.001
        while not self.noted(name, everyone):
            glance()
            now = time.monotonic()
            if now - looked >= BEAT:
                looked = now
                for rank in self.missing(name):
                    self._listen(rank, heard, begin, now, what)
            time.sleep(pause)
            pause = min(2 * pause, _POLL)
        glance()

    def _listen(
        self, rank: int, heard: dict[int, tuple[int, float]], begin: float, now: float, what: str
    ) -> None:
        """RankError where a rank is lost, or never came."""
        with _reachable():
            beats = int(self._store.add(self._key("beat", rank), 0))
        if beats == 0 and now - begin > ARRIVE_WITHIN:
            raise RankError(
                f"rank {rank} hasn't called {what} within {ARRIVE_WITHIN / 60:.3g} minutes of rank "
                f"{self.rank}'s call; expected every rank to make the same calls. For a trace by one rank "
                "alone: with moetrace.ranks.alone()"
            )
        if beats == 0 and now - begin > LOST_AFTER and rank not in self._late:
            self._late.add(rank)
            warnings.warn(f"waiting for rank {rank} to call {what}", MoetraceWarning, stacklevel=2)
        if beats and heard.setdefault(rank, (beats, now))[0] != beats:
            heard[rank] = (beats, now)
        if beats and now - heard[rank][1] > LOST_AFTER:
            raise RankError(
                f"rank {rank} is lost: nothing was heard of it for {LOST_AFTER:.0f} seconds during {what}. "
                "What was traced with out= is kept: start the ranks again, as many as you like, to go on"
            )

    def linger(self, name: str, seconds: float = LINGER) -> bool:
        """Wait a little for all others to leave a text under the name; whether rank 0 did."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        end = time.monotonic() + seconds
        try:
            while not self.noted(name, others) and time.monotonic() < end:
                time.sleep(_POLL / 5)
            return self.noted(name, [0])
        except RankError:
            return False

    def _key(self, name: str, rank: int) -> str:
        return f"{self._prefix}/{name}/{rank}"


@contextmanager
def _reachable() -> Iterator[None]:
    """RankError where the store is gone."""
    try:
        yield
    except RuntimeError as failure:  # torch's DistNetworkError and DistStoreError among them
        raise RankError(
            f"the store of torch.distributed can't be reached ({str(failure).splitlines()[0]:.120}): rank 0, "
            "or what started the ranks, has ended. What was traced with out= is kept: start the ranks again, "
            "as many as you like, to go on"
        ) from failure


def gathered(value: Any, size: int) -> list[Any]:
    """The value of every rank, in order; all ranks have to be known to be there."""
    found: list[Any] = [None] * size
    try:
        dist.all_gather_object(found, value)
    except RuntimeError as failure:
        raise RankError(
            f"a rank was lost while results were exchanged ({str(failure).splitlines()[0]:.120}). What was "
            "traced with out= is kept: start the ranks again, as many as you like, to go on"
        ) from failure
    return found
