"""A public call that all ranks make together."""

from __future__ import annotations

import functools
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from moetrace.arguments import shown
from moetrace.errors import EngineError, MoetraceWarning, RankError
from moetrace.ranks.line import Line, gathered

K = TypeVar("K")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Alone:
    """A process that traces by itself: what several ranks do together, for one."""

    rank, size = 0, 1
    mirrored = False  # whether all ranks run all batches, since they hold parts of one model

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes, warns and shows progress."""
        return self.rank == 0

    def own(self, batches: Sequence[list[T]], model: nn.Module) -> list[list[T]]:
        """The batches that this rank runs."""
        return list(batches)

    def share(self, what: str, value: T) -> list[T]:
        """The value of every rank, in order, once all are there."""
        return [value]

    def joined(self, what: str, parts: Mapping[K, T]) -> dict[K, T]:
        """What all ranks found of the batches that they own."""
        return dict(parts)

    def of_first(self, what: str, make: Callable[[], T]) -> T:
        """What ``make`` gives on the first rank, on all of them."""
        return make()

    def first_then_all(self, what: str, make: Callable[[], T]) -> T:
        """What ``make`` gives on each rank, on the first before the others."""
        return make()

    def agree(self, what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        """RankError that says what differs, where ranks don't have the same facts (JSON values)."""

    def look(self) -> None:
        """RankError where another rank failed; call it between steps."""


ALONE = Alone()


class Call(Alone):
    """One call of several ranks. The outermost of nested public calls is the one that counts."""

    def __init__(self, name: str, number: int, rank: int, size: int, store: Any) -> None:
        self.name, self.rank, self.size = name, rank, size
        self.line = Line(store, number, rank, size)
        self.watch: Callable[[], None] | None = None  # called while this rank waits for others
        self._step = self._bars = 0

    def own(self, batches: Sequence[list[T]], model: nn.Module) -> list[list[T]]:
        """The batches that this rank runs: whole, dealt out by their cases, the first to the first rank.

        All of them where the ranks hold parts of one model and run each forward together.
        """
        self.mirrored = spans_ranks(model)
        if self.mirrored:
            return list(batches)
        return dealt(batches, self.size)[self.rank]

    def share(self, what: str, value: T) -> list[T]:
        """The value of every rank. RankError where another rank failed, or was lost."""
        self._meet(what)
        found: list[T] = gathered(value, self.size)
        return found

    def joined(self, what: str, parts: Mapping[K, T]) -> dict[K, T]:
        """What all ranks found of the batches that they own."""
        each = [parts] if self.mirrored else self.share(what, parts)
        return {key: value for own in each for key, value in own.items()}

    def of_first(self, what: str, make: Callable[[], T]) -> T:
        """What the first rank makes."""
        found: list[Any] = self.share(what, make() if self.first else None)
        made: T = found[0]
        return made

    def first_then_all(self, what: str, make: Callable[[], T]) -> T:
        """First the first, then the others."""
        made = [make()] if self.first else []
        self._meet(what)
        return made[0] if made else make()

    def agree(self, what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        """RankError that names what differs and on which ranks."""
        own = json.loads(json.dumps(dict(facts()), default=str))
        found = self.share(what, own)
        differences = [
            f"{key} is {shown(found[0].get(key))} on rank 0 and {shown(other.get(key))} on rank {rank}"
            for rank, other in enumerate(found)
            for key in dict.fromkeys([*found[0], *other])
            if found[0].get(key) != other.get(key)
        ]
        if differences:
            more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
            raise RankError(
                f"ranks call {what} with different arguments: {'; '.join(differences[:4])}{more}. Expected "
                "the same call with the same model, cases and options on every rank"
            )

    def look(self) -> None:
        """RankError where another rank has failed."""
        if not self.line.noted("failed", [0]):
            return
        failed = json.loads(self.line.read("failed", 0))
        raise RankError(
            f"rank {failed['rank']} {failed['what']}; the other ranks stopped too. What was traced with "
            "out= is kept, and the same call on any number of ranks goes on with it"
        )

    def next_bar(self) -> int:
        """A number for a bar: that of the same bar on all ranks."""
        self._bars += 1
        return self._bars

    def _meet(self, what: str) -> None:
        """Wait until all ranks are at this step. RankError where one is at another, failed, or was lost."""
        self._step += 1
        name = f"step/{self._step}"
        self.line.note(name, what)
        self.line.wait_for_all(name, self._glance, what)
        steps = [self.line.read(name, rank) for rank in range(self.size)]
        if other := [f"{step} (rank {rank})" for rank, step in enumerate(steps) if step != steps[0]]:
            raise RankError(
                f"ranks don't make the same calls: {steps[0]} (rank 0), {', '.join(other[:4])}. Expected "
                "every rank to make the same calls in the same order; for one by a rank alone: with "
                "moetrace.ranks.alone()"
            )

    def _glance(self) -> None:
        if self.watch is not None:
            self.watch()
        # A step that all have reached counts, whatever a rank met after it.
        if not self.line.noted(f"step/{self._step}", list(range(self.size))):
            self.look()

    def __enter__(self) -> Call:
        self.line.open()
        self._quiet = ExitStack()
        if not self.first:  # a warning is the same on all ranks, and said once
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", MoetraceWarning)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, _: TracebackType | None
    ) -> None:
        self._quiet.close()
        try:
            if failure is None:
                self._end()
            else:
                self._fail(failure)
        finally:
            self.line.close()

    def _end(self) -> None:
        """Leave when all have come to the end, the first rank last, for the store may be its own."""
        try:
            self._meet(f"the end of {self.name}")
        except BaseException as failure:
            self._fail(failure)
            raise
        self.line.note("left", "")
        if self.first:
            self.line.linger("left")

    def _fail(self, failure: BaseException) -> None:
        """Let the others know, and stay a little so that they can hear of it."""
        global _told
        try:
            if not isinstance(failure, RankError) and self.line.count("failures", 1) == 1:
                what = "was stopped (Ctrl-C)" if isinstance(failure, KeyboardInterrupt) else told(failure)
                self.line.note("failed", json.dumps({"rank": self.rank, "what": what}), rank=0)
            self.line.note("left", "")
        except RankError:  # nobody is left to tell
            return
        stays = self.first or not isinstance(failure, RankError)
        _told = self.line.linger("left") if stays else True  # the first rank says what others failed with


def told(failure: BaseException) -> str:
    """An error in one line."""
    return f"failed with {type(failure).__name__}: {' '.join(str(failure).split())[:600]}"


def dealt(batches: Sequence[list[T]], size: int) -> list[list[list[T]]]:
    """Batches of each rank: the first batch is the first rank's, the others go where the fewest cases are."""
    hands: list[list[list[T]]] = [[] for _ in range(size)]
    load = [0] * size
    for batch in batches:
        least = load.index(min(load))
        hands[least].append(batch)
        load[least] += len(batch)
    return hands


def spans_ranks(model: nn.Module) -> bool:
    """Whether ranks hold parts of one model (tensor parallel, FSDP), so that each forward is of all ranks."""
    if int(getattr(model, "_tp_size", None) or 1) > 1:
        return True
    return any(
        hasattr(weight, "device_mesh") and weight.device_mesh.size() > 1 for weight in model.parameters()
    )


_alone: ContextVar[bool] = ContextVar("moetrace_alone", default=False)
_lock = threading.Lock()
_open: Call | None = None
_thread: int | None = None
_calls = 0
_told = False
_warned = False


def here() -> Alone:
    """The call that this thread is in, or ALONE."""
    return _open if _open is not None and _thread == threading.get_ident() else ALONE


def told_by_first() -> bool:
    """Whether the first rank has heard of what this rank's last call failed with, and says it."""
    return _told


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process traces by itself, whatever torch.distributed has been set up for.

    >>> if torch.distributed.get_rank() == 0:
    ...     with mt.ranks.alone():
    ...         mt.trace_layers(model, cases)
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def together(name: str) -> Iterator[Alone]:
    """A call that all ranks make, or part of one that is open. EngineError beside another thread's call."""
    global _open, _thread, _calls, _told
    if here() is not ALONE or not _several():
        yield here()
        return
    if not _lock.acquire(blocking=False):
        raise EngineError(
            f"another thread of this process is in {_open.name if _open else 'a call'}, and several ranks "
            "couldn't tell whose turn it is: make one call after another, or use moetrace.ranks.alone()"
        )
    try:
        store = dist.distributed_c10d._get_default_store()
        _calls += 1
        _told = False
        with Call(name, _calls, dist.get_rank(), dist.get_world_size(), store) as call:
            _open, _thread = call, threading.get_ident()
            try:
                yield call
            finally:
                _open = _thread = None
    finally:
        _lock.release()


def _several() -> bool:
    """Whether there are other ranks to trace with."""
    global _warned
    if _alone.get() or not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    started = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if started and not _warned and os.environ.get("RANK") == "0":
        _warned = True
        warnings.warn(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but torch.distributed isn't "
            "initialised, so each traces every case: call torch.distributed.init_process_group() first, "
            "or use moetrace.ranks.alone() where that is what you want",
            MoetraceWarning,
            stacklevel=5,
        )
    return False


def on_all_ranks(function: F) -> F:
    """A public function that every rank calls with the same arguments, and that gives all the same result."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with together(function.__name__):
            return function(*args, **kwargs)

    return called  # type: ignore[return-value]
