"""Offloaded weights in their modules for a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from moetrace.changes import Changes, undisturbed
from moetrace.weights.stored import FileRange, Offloaded, offloaded_modules


@contextmanager
def placed(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """What is offloaded beside the decoder layers (embedding, final norm, head) in memory.

    A layer's weights come and go with its forwards. Those that one left behind, since it failed, go too.
    """
    inside = {module for layer in layers for module in layer.modules()}
    absent = [own for own in offloaded_modules(model) if own.absent]
    places = [own.holder(name) for own in absent for name in own.names]
    before = [(holder, leaf, holder[leaf]) for holder, leaf in places if holder[leaf].is_meta]
    try:
        with held([own for own in absent if own.module not in inside]):
            yield
    finally:
        with undisturbed():
            for holder, leaf, weight in before:
                if not holder[leaf].is_meta:
                    holder[leaf] = weight


@contextmanager
def held(offloaded: Sequence[Offloaded]) -> Iterator[None]:
    """Their weights in memory, read once: accelerate's hooks neither load nor drop them for the time."""
    changes, known = Changes(), {}
    try:
        for own in offloaded:
            values = {}
            for name in own.names:
                key = own.identity(name)  # tied weights are read once
                if key not in known:
                    known[key] = value_of(own, name).to(own.device)
                values[name] = known[key]
            put_in(own, values, changes)
        yield
    finally:
        changes.undo()


def value_of(own: Offloaded, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor's values, in the dtype that the module has it in; ``into``: a byte buffer for what is read."""
    place = own.place(name)
    holder, leaf = own.holder(name)
    value = place.read(into) if isinstance(place, FileRange) else place
    return value.to(holder[leaf].dtype)


def put_in(own: Offloaded, values: dict[str, torch.Tensor], changes: Changes) -> None:
    """Values into a module, and its hook told to leave them there."""
    for name, value in values.items():
        holder, leaf = own.holder(name)
        before = holder[leaf]
        is_weight = isinstance(before, nn.Parameter)
        given = nn.Parameter(value.detach(), before.requires_grad) if is_weight else value
        changes.entry(holder, leaf, given)
    changes.attribute(own.hook, "offload", False)
