"""A checkpoint's decoder layers, read while they are needed; all other weights are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import CheckpointError, EngineError, ModelError
from moetrace.weights.checkpoint import Checkpoint
from moetrace.weights.conversion import Part
from moetrace.weights.layer_plan import LayerPlan
from moetrace.weights.places import Place, Places, like


@dataclass
class _Held:
    """A layer that is there: who read it, its bytes, what its modules held before, and how many use it."""

    reader: Any
    buffer: torch.Tensor
    before: list[tuple[Place, Any]] = field(default_factory=list)
    uses: int = 0


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
        self._places = [{name: places.of[name] for part in own for name in part.targets} for own in parts]
        self._reader = self._new_reader()
        self._read_before, self._waited_before = read_before, 0.0
        self._held: dict[int, _Held] = {}
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
        return self._waited_before + float(self._reader.seconds_waited)

    def begin(self) -> None:
        """Check the files and start reading the first layer. CheckpointError."""
        self.end()
        self._checkpoint.verify()
        self._mark()
        self._sweeping = True
        self._reader.prefetch(0)

    def enter(self, layer: int) -> None:
        """Put a layer's weights into its modules, and start reading the next one. CheckpointError."""
        if layer not in self._held:
            self._bring(layer)
        self._held[layer].uses += 1
        if layer + 1 < len(self._plans):
            self._reader.prefetch(layer + 1)

    def leave(self, layer: int) -> None:
        """Take a layer's weights away when it was left as often as it was entered."""
        if layer in self._held:
            self._held[layer].uses -= 1
            if self._held[layer].uses <= 0:
                self._take(layer)

    def end(self) -> None:
        """Take the weights of all layers away; no thread reads any more, and the buffers are free."""
        self._sweeping = False
        self._in_forward.clear()
        for layer in list(self._held):
            self._take(layer)
        self._renew_reader()

    def _bring(self, layer: int) -> None:
        buffer = self._read(layer)
        with torch.inference_mode(False):
            held = _Held(self._reader, torch.frombuffer(buffer, dtype=torch.uint8))
        try:
            self._checkpoint.verify()  # what was read is of the files that were there
            with torch.inference_mode(False), torch.no_grad():
                for name, value in self._plans[layer].values(self._model, held.buffer).items():
                    places = self._places[layer][name]
                    own = self._marked(like(value, places[0].held()), name)
                    for place in places:
                        held.before.append((place, place.held()))
                        place.put(own)
            self._held[layer] = held
        except BaseException:
            self._held[layer] = held
            self._take(layer)
            raise

    def _read(self, layer: int) -> Any:
        if len(self._held) == 2:
            others = " and ".join(map(str, self._held))
            raise EngineError(
                f"layer {layer} can't be entered: layers {others} are in use, and "
                "no more than two are held at a time; leave one of them first"
            )
        try:
            try:
                return self._reader.acquire(layer)
            except RuntimeError:  # Ctrl-C came just when a layer had: the reader takes it for one in use
                self._renew_reader()
                return self._reader.acquire(layer)
        except _core.ReadError as failure:
            self._checkpoint.verify()
            raise CheckpointError(
                f"layer {layer} can't be read: {failure}; look at the disk, or fetch the checkpoint again"
            ) from failure

    def _take(self, layer: int) -> None:
        held = self._held[layer]
        for place, value in reversed(held.before):
            place.put(value)
        with torch.inference_mode(False), torch.no_grad():
            # Writes nothing, but tells autograd that what it kept of these weights is there no more.
            held.buffer[:0].zero_()
        reader, held.reader = held.reader, None
        if reader is not None:
            reader.release(layer)
        del self._held[layer]

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

    def _renew_reader(self) -> None:
        """Another reader in the place of this one, which stops and keeps no buffer that isn't in use."""
        self._reader.stop()
        self._waited_before, self._read_before = self.seconds_waited, self.bytes_read
        self._reader = self._new_reader()

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
        for name in ("_model", "_places", "_held", "_in_forward"):
            setattr(copy, name, deepcopy(getattr(self, name), memo))
        copy._reader = copy._new_reader()
        return copy

    def __reduce__(self) -> NoReturn:
        self._refuse("pickled", self._saved_already)
