"""Load a model whose decoder layers stay in its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import CheckpointError
from moetrace.weights import attach
from moetrace.weights.checkpoint import Checkpoint, read_checkpoint
from moetrace.weights.conversion import Part, Placed
from moetrace.weights.layer_plan import LayerPlan
from moetrace.weights.places import Places, like
from moetrace.weights.skeleton import build_skeleton
from moetrace.weights.streamed import StreamedLayers


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


def _by_layer(
    parts: Sequence[Part], layers: Sequence[nn.Module], places: Places
) -> tuple[list[list[Part]], list[Part]]:
    """What is of each layer alone, and the rest: what is outside of all layers, or in several."""
    owner = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
    of_layers: list[list[Part]] = [[] for _ in layers]
    rest: list[Part] = []
    for part in parts:
        owners = {owner.get(place.module) for name in part.targets for place in places.of[name]}
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
    held = {name: places.of[name][0].held() for part in parts for name in part.targets}
    # What is held as it is read keeps its buffer; what is cast or computed needs it no more.
    kept: list[Part] = []
    passing: list[Part] = []
    for part in parts:
        as_read = isinstance(part, Placed) and part.stored == held[part.target].dtype
        (kept if as_read else passing).append(part)
    read = 0
    for own in (kept, passing):
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
