"""A checkpoint's decoder layers, read while they are needed; all other weights are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import CheckpointError, ModelError
from moetrace.weights import attach
from moetrace.weights.checkpoint import Checkpoint, read_checkpoint
from moetrace.weights.conversion import Part, Placed
from moetrace.weights.layer_plan import LayerPlan
from moetrace.weights.places import Place, Places, like
from moetrace.weights.skeleton import build_skeleton


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
    skeleton = build_skeleton(checkpoint, dtype, options, trust_remote_code=trust_remote_code)
    model = skeleton.model
    layers = tuple(find_layers(model))
    places = Places(model)
    of_layers, rest = _by_layer(skeleton.parts, layers, places)
    read = _load(model, checkpoint, rest, places)
    _tie(model, places)
    attach(model, StreamedLayers(model, layers, checkpoint, of_layers, places, read))
    return model


class StreamedLayers:
    """The layers of a checkpoint, one at a time.

    Every layer enters before its forward and leaves behind it, so the model works as any other does. One
    forward outside of a sweep reads every layer.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        checkpoint: Checkpoint,
        parts: Sequence[Sequence[Part]],
        places: Places,
        read_before: int,
    ) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self._plans = [LayerPlan(checkpoint, own, places.shapes) for own in parts]
        self._places = [{name: places.of[name] for part in own for name in _targets(part)} for own in parts]
        self._reader = self._new_reader()
        self._read_before = read_before
        self._uses: dict[int, int] = {}
        self._held: dict[int, tuple[torch.Tensor, list[tuple[Place, Any]]]] = {}
        self._in_forward: list[int] = []
        self._sweeping = False
        self._mark()
        self._hook(layers)

    @property
    def bytes_read(self) -> int:
        """Bytes read from disk so far, those of loading included."""
        return self._read_before + int(self._reader.bytes_read)

    @property
    def seconds_waited(self) -> float:
        """How long layers have been waited for so far."""
        return float(self._reader.seconds_waited)

    def begin(self) -> None:
        """Check the files and start reading the first layer. CheckpointError."""
        self.end()
        self._checkpoint.verify()
        self._mark()
        self._sweeping = True
        self._reader.prefetch(0)

    def enter(self, layer: int) -> None:
        """Put a layer's weights into its modules, and start reading the next one. CheckpointError."""
        if not self._uses.get(layer):
            self._bring(layer)
        self._uses[layer] = self._uses.get(layer, 0) + 1
        if layer + 1 < len(self._plans):
            self._reader.prefetch(layer + 1)

    def leave(self, layer: int) -> None:
        """Take a layer's weights away when it was left as often as it was entered."""
        uses = self._uses.get(layer, 0)
        if uses == 1:
            self._take(layer)
        elif uses:
            self._uses[layer] = uses - 1

    def end(self) -> None:
        """Take the weights of all layers away; no thread reads any more, and the buffers are free."""
        self._sweeping = False
        self._in_forward.clear()
        for layer in list(self._held):
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
        before: list[tuple[Place, Any]] = []
        try:
            self._checkpoint.verify()  # what was read is of the files that were there
            with torch.inference_mode(False), torch.no_grad():
                bytes_read = torch.frombuffer(buffer, dtype=torch.uint8)
                for name, value in self._plans[layer].values(self._model, bytes_read).items():
                    places = self._places[layer][name]
                    own = self._marked(like(value, places[0].held()), name)
                    for place in places:
                        before.append((place, place.held()))
                        place.put(own)
        except BaseException:
            _put_back(before)
            self._reader.release(layer)
            raise
        self._held[layer] = bytes_read, before

    def _take(self, layer: int) -> None:
        bytes_read, before = self._held.pop(layer)
        self._uses.pop(layer, None)
        _put_back(before)
        with torch.inference_mode(False), torch.no_grad():
            # Writes nothing, but tells autograd that what it kept of these weights isn't there any more.
            bytes_read[:0].zero_()
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

    def _hook(self, layers: Sequence[nn.Module]) -> None:
        for number, layer in enumerate(layers):
            # A block may be called without its layer. Experts get no hooks: compiled routines look for them.
            for module in (layer, *(own for name, own in layer.named_children() if name != "experts")):
                module.register_forward_pre_hook(partial(self._before, number))
                module.register_forward_hook(partial(self._behind, number), always_call=True)
        inside = set(layers)
        model: Any = self._model
        for module in model.modules():
            if not inside.isdisjoint(module.modules()):
                module._apply = partial(self._unmoved, module)
        model.save_pretrained = partial(self._refuse, "saved", self._saved_already)

    def _new_reader(self) -> Any:
        files = [str(shard.path) for shard in self._checkpoint.shards]
        return _core.LayerReader(files, [plan.segments for plan in self._plans])

    def _marked(self, weight: Any, name: str) -> Any:
        weight.moetrace_origin = self._checkpoint.digest, name
        return weight

    def _mark(self) -> None:
        """Let what stands for a weight say which one it stands for."""
        for own in self._places:
            for name, places in own.items():
                self._marked(places[0].held(), name)

    @property
    def _saved_already(self) -> str:
        return f"the checkpoint is in {self._checkpoint.folder} already"

    def _unmoved(
        self, module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], *_: Any
    ) -> nn.Module:
        """In the place of ``_apply``, by which modules are moved and cast: what changes nothing is let be."""
        for dtype in {tensor.dtype for tensor in (*module.parameters(), *module.buffers())}:
            changed = change(torch.empty(1, dtype=dtype))
            if changed.dtype != dtype or changed.device.type != "cpu":
                self._refuse(
                    f"moved or cast (to {changed.dtype} on {changed.device})",
                    "give the dtype that you want to load_model(..., stream=True, dtype=...)",
                )
        return module

    def _refuse(self, what: str, remedy: str, *_args: Any, **_options: Any) -> NoReturn:
        raise ModelError(
            f"{type(self._model).__name__} is streamed from {self._checkpoint.folder}: its layers are on "
            f"disk and can't be {what}; {remedy}, or load it into memory without stream"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedLayers:
        if self._held:
            self._refuse("copied while one is in use", "copy it outside of a forward and of a trace")
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        vars(copy).update({name: own for name, own in vars(self).items() if name != "_reader"})
        for name in ("_model", "_places", "_uses", "_held", "_in_forward"):
            setattr(copy, name, deepcopy(getattr(self, name), memo))
        copy._reader = copy._new_reader()
        return copy

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled", self._saved_already)


def _targets(part: Part) -> tuple[str, ...]:
    return (part.target,) if isinstance(part, Placed) else part.targets


def _put_back(before: list[tuple[Place, Any]]) -> None:
    for place, value in reversed(before):
        place.put(value)


def _by_layer(
    parts: Sequence[Part], layers: Sequence[nn.Module], places: Places
) -> tuple[list[list[Part]], list[Part]]:
    """What is of each layer alone, and the rest: what is outside of all layers, or in several."""
    owner = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
    of_layers: list[list[Part]] = [[] for _ in layers]
    rest: list[Part] = []
    for part in parts:
        owners = {owner.get(place.module) for name in _targets(part) for place in places.of[name]}
        number = owners.pop() if len(owners) == 1 else None
        (rest if number is None else of_layers[number]).append(part)
    return of_layers, rest


def _tie(model: Any, places: Places) -> None:
    """One tensor where config and checkpoint have two that are equal, as from_pretrained does."""
    ties = model.all_tied_weights_keys
    for target, source in list(ties.items()):
        own, other = places.of[target][0].held(), places.of[source][0].held()
        if own is other or own.is_meta or other.is_meta:
            continue
        if own.shape == other.shape and torch.equal(own, other):
            for place in places.of[target]:
                place.put(other)
        else:
            del ties[target]


def _load(model: Any, checkpoint: Checkpoint, parts: Sequence[Part], places: Places) -> int:
    """Read parameters for good; the number of bytes read."""
    held = {name: places.of[name][0].held() for part in parts for name in _targets(part)}
    # What is held as it is read keeps its buffer; what is cast or computed needs it no more.
    as_read = [p for p in parts if isinstance(p, Placed) and p.stored == held[p.target].dtype]
    passing = [part for part in parts if part not in as_read]
    read = 0
    for own in (as_read, passing):
        plan = LayerPlan(checkpoint, own, places.shapes)
        reader = _core.LayerReader([str(shard.path) for shard in checkpoint.shards], [plan.segments])
        try:
            buffer = torch.frombuffer(reader.acquire(0), dtype=torch.uint8)
        except _core.ReadError as failure:
            raise CheckpointError(f"{failure}; look at the disk, or fetch the checkpoint again") from failure
        with torch.no_grad():
            for name, value in plan.values(model, buffer).items():
                weight = like(value, held[name])
                for place in places.of[name]:
                    place.put(weight)
        read += int(reader.bytes_read)
    return read
