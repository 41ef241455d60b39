"""Decoder layers that accelerate offloads, each brought in once for all forwards that pass it.

Its own hooks read a module's weights for every forward. Here a layer's are read into one buffer by a thread,
while the layer before computes, and the hooks are told to leave them alone. Where a layer runs on a GPU they
are read into pinned memory, and copied from there on a stream beside the one that computes; that part
has been written without a GPU at hand, and neither run nor measured on one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from moetrace.changes import Changes, undisturbed
from moetrace.errors import ModelError
from moetrace.weights import attach, detach, source_of
from moetrace.weights.held import put_in, value_of
from moetrace.weights.stored import FileRange, Offloaded, offloaded_modules

_ALIGNMENT = 64  # of a tensor in a buffer: a cache line


@contextmanager
def sourced(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """The source of offloaded layers is the model's for the time; nothing where none is offloaded."""
    source = offloaded_source(layers) if source_of(model) is None else None
    if source is None:
        yield
        return
    try:
        attach(model, source)
        yield
    finally:
        with undisturbed():
            source.end()
            detach(model)


def offloaded_source(layers: Sequence[nn.Module]) -> OffloadedSource | None:
    """The source of decoder layers that accelerate offloads; None where all their weights are in memory."""
    found = {}
    for index, layer in enumerate(layers):
        if absent := [own for own in offloaded_modules(layer) if own.absent]:
            found[index] = absent
    return OffloadedSource(found) if found else None


@dataclass
class _Layer:
    """A layer's values by module, the buffer that they are in, and when a GPU has got them."""

    values: list[dict[str, torch.Tensor]]
    buffer: torch.Tensor | None
    copied: list[tuple[torch.device, torch.Event]] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)


class OffloadedSource:
    """The offloaded modules of each layer, as a :class:`moetrace.weights.LayerSource`.

    What is in memory is left alone. ModelError where a file that holds weights is gone, cut off, or changed
    since the source was made.
    """

    def __init__(self, layers: dict[int, list[Offloaded]]) -> None:
        self._layers = layers
        self._states = {file.path: file.state() for own in layers.values() for file in _files(own)}
        self._room = max(sum(_aligned(size) for *_, size in _sizes(own)) for own in layers.values())
        self._entered: dict[int, int] = {}
        self._inside: dict[int, _Layer] = {}
        self._ahead: dict[int, Future[_Layer]] = {}
        self._reader: ThreadPoolExecutor | None = None
        self._stopped = threading.Event()
        self._free: list[torch.Tensor] = []
        self._streams: dict[torch.device, torch.Stream] = {}
        self.bytes_read = 0  # from disk; none of what is offloaded to memory

    def begin(self) -> None:
        """Check the files, and begin to read the first of the layers."""
        self.end()
        for layer in self._layers.values():
            self._check(layer)
        self._stopped.clear()
        self._reader = ThreadPoolExecutor(1, "moetrace-weights")
        self._read_next(-1)

    def enter(self, layer: int) -> None:
        """The layer's weights are in its modules on return, and the next offloaded layer is being read."""
        if layer not in self._layers:
            return
        if self._reader is None:
            self.begin()
        if not self._entered.get(layer):
            ahead = self._ahead.pop(layer, None)
            found = self._read(layer) if ahead is None else ahead.result()
            self._inside[layer] = found  # before anything is changed: end() puts it back
            for own, values in zip(self._layers[layer], found.values, strict=True):
                put_in(own, values, found.changes)
            _wait_for(found)
            self._read_next(layer)
        self._entered[layer] = self._entered.get(layer, 0) + 1

    def leave(self, layer: int) -> None:
        """The layer's modules hold what they held before, where it was left as often as entered."""
        count = self._entered.get(layer, 0) - 1
        if count > 0:
            self._entered[layer] = count
        elif layer in self._inside:
            self._put_back(layer)

    def end(self) -> None:
        """All layers are as they were, nothing is read any more, and the buffers are given back."""
        try:
            for layer in list(self._inside):
                self._put_back(layer)
        finally:
            self._stopped.set()
            if self._reader is not None:
                self._reader.shutdown(wait=True, cancel_futures=True)
            self._reader = None
            self._ahead.clear()
            self._free.clear()

    def _put_back(self, layer: int) -> None:
        found = self._inside[layer]
        found.changes.undo()
        for _, event in found.copied:
            event.synchronize()
        if found.buffer is not None:
            self._free.append(found.buffer)
        self._inside.pop(layer)
        self._entered.pop(layer, None)

    def _read_next(self, after: int) -> None:
        """Have the thread read the next layer that isn't in yet."""
        waiting = [x for x in self._layers if x > after and x not in self._inside and x not in self._ahead]
        if waiting and self._reader is not None:
            self._ahead[min(waiting)] = self._reader.submit(self._read, min(waiting))

    def _read(self, layer: int) -> _Layer:
        """A layer's values where its modules run; in the thread."""
        modules = self._layers[layer]
        self._check(modules)
        buffer = self._buffer() if any(size for *_, size in _sizes(modules)) else None
        found, at = _Layer([{} for _ in modules], buffer), 0
        for index, name, size in _sizes(modules):
            if self._stopped.is_set():
                break
            own, into = modules[index], None
            if size and buffer is not None:
                into, at = buffer[at : at + size], at + _aligned(size)
            value = value_of(own, name, into)
            self.bytes_read += size if isinstance(own.place(name), FileRange) else 0
            found.values[index][name] = self._moved(value, own.device, into)
        found.copied = [(device, stream.record_event()) for device, stream in self._streams.items()]
        return found

    def _moved(self, value: torch.Tensor, device: torch.device, into: torch.Tensor | None) -> torch.Tensor:
        """A value on its way to a GPU; on the processor as it is."""
        if device.type == "cpu":
            return value
        fits = into is not None and value.nbytes <= into.nbytes
        if (
            into is not None
            and fits
            and value.untyped_storage().data_ptr() != into.untyped_storage().data_ptr()
        ):
            pinned = into[: value.nbytes].view(value.dtype).view(value.shape)
            value = pinned.copy_(value)
        stream = self._streams.setdefault(device, torch.Stream(device))
        with stream:
            return value.to(device, non_blocking=True)

    def _buffer(self) -> torch.Tensor:
        """Room for any layer: one that was left, or new. Two take turns in a sweep."""
        try:
            return self._free.pop()
        except IndexError:
            pinned = any(own.device.type != "cpu" for layer in self._layers.values() for own in layer)
            return torch.empty(self._room, dtype=torch.uint8, pin_memory=pinned)

    def _check(self, modules: list[Offloaded]) -> None:
        for file in _files(modules):
            if file.state()[2:] != self._states[file.path][2:]:
                raise ModelError(
                    f"{file.path}, which holds weights of the model, was changed while the model is traced; "
                    "load the model anew and trace it again"
                )


def _files(modules: list[Offloaded]) -> Iterator[FileRange]:
    for own in modules:
        for place in map(own.place, own.names):
            if isinstance(place, FileRange):
                yield place


def _sizes(modules: list[Offloaded]) -> Iterator[tuple[int, str, int]]:
    """Number of the module, name, and bytes that a buffer needs: none for what is used where it lies."""
    for index, own in enumerate(modules):
        for name in own.names:
            place = own.place(name)
            size = place.size if isinstance(place, FileRange) else place.nbytes
            yield index, name, 0 if isinstance(place, torch.Tensor) and own.device.type == "cpu" else size


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _wait_for(found: _Layer) -> None:
    """Have what computes now begin after the copies, and keep their memory until it is through."""
    for device, event in found.copied:
        torch.accelerator.current_stream(device).wait_event(event)
    for values in found.values:
        for value in values.values():
            if value.device.type != "cpu":
                value.record_stream(torch.accelerator.current_stream(value.device))
