"""A checkpoint's decoder layers, read while they are needed; all other weights are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import CheckpointError, ModelError
from moetrace.weights import attach
from moetrace.weights.checkpoint import Checkpoint, Entry, read_checkpoint
from moetrace.weights.conversion import Computed, Part, Placed
from moetrace.weights.skeleton import build_skeleton

_ALIGNMENT = 64  # of a tensor in a buffer: a cache line


@dataclass(frozen=True)
class _View:
    """A tensor in a buffer."""

    offset: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, base: torch.Tensor) -> torch.Tensor:
        return base[self.offset : self.offset + self.bytes].view(self.dtype).view(self.shape)


@dataclass
class _Plan:
    """What is read for a layer and where it goes, and the parameters that come of it."""

    segments: list[Any] = field(default_factory=list)
    placed: dict[str, _View] = field(default_factory=dict)
    computed: list[tuple[Computed, dict[str, _View]]] = field(default_factory=list)
    size: int = 0

    def add(self, part: Part, checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> None:
        if isinstance(part, Placed):
            view = self._room(shapes[part.target], part.stored)
            for run in part.runs:
                entry, item = checkpoint.entries[run.source], part.stored.itemsize
                self._read(entry, run.start * item, run.count * item, view.offset + run.at * item)
            self.placed[part.target] = view
            return
        views = {}
        for source in part.sources:
            entry = checkpoint.entries[source.name]
            view = views[source.name] = self._room(entry.shape, entry.dtype)
            self._read(entry, 0, entry.bytes, view.offset)
        self.computed.append((part, views))

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> _View:
        view = _View(self.size, prod(shape) * dtype.itemsize, dtype, shape)
        self.size += -(-view.bytes // _ALIGNMENT) * _ALIGNMENT
        return view

    def _read(self, entry: Entry, start: int, count: int, destination: int) -> None:
        if count:
            self.segments.append(_core.Segment(entry.shard, entry.offset + start, count, destination))

    def values(self, model: nn.Module, base: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, from what was read."""
        found = {name: view.of(base) for name, view in self.placed.items()}
        for part, views in self.computed:
            found |= part.compute(model, {name: view.of(base) for name, view in views.items()})
        return found


@dataclass(frozen=True)
class _Place:
    """Where a module keeps a parameter or buffer; ``absent``: what is there while the values aren't."""

    module: nn.Module
    name: str
    absent: torch.Tensor

    @property
    def _holder(self) -> dict[str, torch.Tensor | None]:
        own: Any = self.module._parameters
        return own if self.name in own else self.module._buffers

    def put(self, value: torch.Tensor) -> torch.Tensor | None:
        """Hold a value; what was held before."""
        before = self._holder[self.name]
        self._holder[self.name] = value
        return before


def _as_held(value: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Values in the dtype and kind of the tensor that stands for them."""
    value = value.to(absent.dtype)
    if isinstance(absent, nn.Parameter):
        value = nn.Parameter(value, requires_grad=absent.requires_grad)
    return value


class StreamedLayers:
    """The layers of a checkpoint, one at a time.

    Every layer enters before its forward and leaves behind it, so the model works as any other does.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[nn.Module], checkpoint: Checkpoint, parts: Sequence[Part]
    ) -> None:
        self._model = model
        self._layers = tuple(layers)
        self._checkpoint = checkpoint
        self._places, self._plans, rest = _by_layer(model, layers, checkpoint, parts)
        self._reader = self._new_reader()
        self._bytes_before = _load(model, checkpoint, rest)
        self._entered: dict[int, int] = {}
        self._held: dict[int, tuple[torch.Tensor, list[tuple[_Place, Any]]]] = {}
        self._in_forward: list[int] = []
        self._sweeping = False
        self._mark()
        for number, layer in enumerate(self._layers):
            # A block may be called without its layer. Experts may not have hooks: compiled routines look for them.
            for module in (layer, *(own for name, own in layer.named_children() if name != "experts")):
                module.register_forward_pre_hook(partial(self._before, number))
                module.register_forward_hook(partial(self._behind, number), always_call=True)

        for module in model.modules():
            if any(inner in self._layers for inner in module.modules()):
                module._apply = partial(self._refuse_move, module)  # type: ignore[method-assign]
        model.save_pretrained = partial(  # type: ignore[assignment]
            self._refuse, "saved", f"the checkpoint is in {checkpoint.folder} already"
        )

    def _new_reader(self) -> Any:
        files = [str(shard.path) for shard in self._checkpoint.shards]
        return _core.LayerReader(files, [plan.segments for plan in self._plans])

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk so far, those of loading included."""
        return self._bytes_before + int(self._reader.bytes_read)

    @property
    def seconds_waited(self) -> float:
        """How long a layer's forward has waited for its weights so far."""
        return float(self._reader.seconds_waited)

    def begin(self) -> None:
        """Check the files and start reading the first layer. CheckpointError."""
        self.end()
        self._checkpoint.verify()
        self._sweeping = True
        self._reader.prefetch(0)

    def enter(self, layer: int) -> None:
        """Put a layer's weights into its modules, and start reading the next one. CheckpointError."""
        if not self._entered.get(layer):
            self._bring(layer)
        self._entered[layer] = self._entered.get(layer, 0) + 1
        if layer + 1 < len(self._layers):
            self._reader.prefetch(layer + 1)

    def leave(self, layer: int) -> None:
        """Take a layer's weights away when it was left as often as it was entered."""
        count = self._entered.get(layer, 0)
        if count > 1:
            self._entered[layer] = count - 1
        elif count:
            self._take(layer)

    def end(self) -> None:
        """Take all weights of layers away; no thread reads any more."""
        self._sweeping = False
        self._in_forward.clear()
        for layer in list(self._entered):
            self._take(layer)
        self._reader.stop()

    def _bring(self, layer: int) -> None:
        try:
            buffer = self._reader.acquire(layer)
        except _core.ReadError as failure:
            self._checkpoint.verify()
            raise CheckpointError(
                f"layer {layer} can't be read: {failure}; look at the disk, or fetch the checkpoint again"
            ) from failure
        put: list[tuple[_Place, Any]] = []
        try:
            self._checkpoint.verify()
            with torch.inference_mode(False), torch.no_grad():
                base = torch.frombuffer(buffer, dtype=torch.uint8)
                for name, value in self._plans[layer].values(self._model, base).items():
                    places = self._places[layer][name]
                    own = _as_held(value, places[0].absent)
                    own.moetrace_origin = self._origin(name)  # type: ignore[attr-defined]
                    for place in places:
                        put.append((place, place.absent))
                        put[-1] = (place, place.put(own))
        except BaseException:
            _put_back(put)
            self._reader.release(layer)
            raise
        self._held[layer] = (base, put)

    def _take(self, layer: int) -> None:
        base, put = self._held[layer]
        _put_back(put)
        with torch.inference_mode(False), torch.no_grad():
            # Writes nothing, but autograd then knows that what it has kept of these weights isn't there any more.
            base[:0].zero_()
        del self._held[layer]
        del self._entered[layer]
        self._reader.release(layer)

    def _before(self, number: int, _module: nn.Module, _args: Any) -> None:
        if not self._sweeping:  # Ctrl-C in a forward runs no hooks: what is still there of another layer goes
            stale = [layer for layer in self._in_forward if layer != number]
            self._in_forward = [number] * (len(self._in_forward) - len(stale))
            for layer in stale:
                self.leave(layer)
        self.enter(number)
        self._in_forward.append(number)

    def _behind(self, number: int, _module: nn.Module, _args: Any, _output: Any) -> None:
        if number in self._in_forward:
            self._in_forward.remove(number)
            self.leave(number)

    def _origin(self, name: str) -> tuple[Any, str]:
        return self._checkpoint.identity, name

    def _mark(self) -> None:
        """Let what stands for a weight say which one."""
        for places in self._places:
            for name, own in places.items():
                for place in own:
                    place.absent.moetrace_origin = self._origin(name)  # type: ignore[attr-defined]

    def _refuse_move(
        self, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> nn.Module:
        """In the place of ``_apply``, by which modules are moved and cast: what changes nothing is allowed."""
        for dtype in {tensor.dtype for tensor in (*module.parameters(), *module.buffers())}:
            probe = torch.empty(1, dtype=dtype)
            changed = change(probe)
            if changed.dtype != dtype or changed.device != probe.device:
                self._refuse(
                    f"moved or cast (to {changed.dtype} on {changed.device})",
                    "give the dtype that you want to load_model(..., stream=True, dtype=...)",
                )
        return module

    def _refuse(self, what: str, remedy: str, *_args: Any, **_options: Any) -> NoReturn:
        raise ModelError(
            f"{type(self._model).__name__} is streamed from {self._checkpoint.folder}: its layers are on disk "
            f"and can't be {what}; {remedy}, or load it into memory without stream"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedLayers:
        if self._entered:
            self._refuse("copied while one is in use", "copy it outside of a forward or trace")
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        vars(copy).update({name: value for name, value in vars(self).items() if name not in ("_reader",)})
        for name in ("_model", "_layers", "_places", "_entered", "_held", "_in_forward"):
            setattr(copy, name, deepcopy(getattr(self, name), memo))
        copy._reader = copy._new_reader()
        return copy

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled", f"the checkpoint is in {self._checkpoint.folder} already")


def _put_back(put: list[tuple[_Place, Any]]) -> None:
    for place, before in reversed(put):
        place.put(before)


def _by_layer(
    model: nn.Module, layers: Sequence[nn.Module], checkpoint: Checkpoint, parts: Sequence[Part]
) -> tuple[list[dict[str, list[_Place]]], list[_Plan], list[Part]]:
    """For each layer where its weights go and how they are read, and what belongs to no layer alone."""
    owner = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    places: dict[int, list[_Place]] = {}
    for name, tensor in named:
        module, _, own = name.rpartition(".")
        places.setdefault(id(tensor), []).append(_Place(model.get_submodule(module), own, tensor))
    at = {name: places[id(tensor)] for name, tensor in named}
    shapes = {name: tuple(tensor.shape) for name, tensor in named}

    of_layer: list[dict[str, list[_Place]]] = [{} for _ in layers]
    plans = [_Plan() for _ in layers]
    rest: list[Part] = []
    for part in parts:
        targets = [part.target] if isinstance(part, Placed) else list(part.targets)
        owners = {owner.get(place.module) for name in targets for place in at[name]}
        layer = owners.pop() if len(owners) == 1 else None
        if layer is None:
            rest.append(part)
            continue
        plans[layer].add(part, checkpoint, shapes)
        of_layer[layer] |= {name: at[name] for name in targets}
    return of_layer, plans, rest


def _load(model: nn.Module, checkpoint: Checkpoint, parts: Sequence[Part]) -> int:
    """Read what isn't of a layer, for good; how many bytes that were."""
    named = dict(
        [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    places = {}
    for name, tensor in named.items():
        module, _, own = name.rpartition(".")
        places.setdefault(id(tensor), []).append(_Place(model.get_submodule(module), own, tensor))
    # What is held as it was read keeps its buffer; what is cast or computed doesn't need it any more.
    kept, passing = _Plan(), _Plan()
    for part in parts:
        as_read = isinstance(part, Placed) and part.stored == named[part.target].dtype
        (kept if as_read else passing).add(part, checkpoint, shapes)
    read = 0
    for plan in (kept, passing):
        reader = _core.LayerReader([str(shard.path) for shard in checkpoint.shards], [plan.segments])
        try:
            base = torch.frombuffer(reader.acquire(0), dtype=torch.uint8)
        except _core.ReadError as failure:
            raise CheckpointError(f"{failure}; look at the disk, or fetch the checkpoint again") from failure
        with torch.no_grad():
            for name, value in plan.values(model, base).items():
                own = _as_held(value, named[name])
                for place in places[id(named[name])]:
                    place.put(own)
        read += int(reader.bytes_read)
    return read


def load_streamed(
    folder: Path,
    find_layers: Callable[[Any], Sequence[nn.Module]],
    *,
    dtype: Any = "auto",
    trust_remote_code: bool = False,
    **options: Any,
) -> Any:
    """A model whose decoder layers stay in the checkpoint.

    ``find_layers``: gives the decoder layers of a model; ``options``: go to from_pretrained. ModelError where
    the model or its checkpoint isn't one that can be streamed.
    """
    checkpoint = read_checkpoint(folder)
    skeleton = build_skeleton(checkpoint, dtype, trust_remote_code, options)
    model = skeleton.model
    attach(model, StreamedLayers(model, find_layers(model), checkpoint, skeleton.parts))
    return model
