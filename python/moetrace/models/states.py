"""A mixer's state behind a prefix: caches of transformers, fresh and split between the runs that go on."""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.models.anatomy import Anatomy

_ARGUMENTS = ("cache", "past_key_values", "past_key_value", "cache_params")
_NO_WINDOW = 1 << 30


class _Caught(Exception):
    """The model has come to its first layer."""


def empty_cache(anatomy: Anatomy, device: torch.device) -> Any:
    """The cache that the model's forward makes for itself, with nothing in it; None where it makes none.

    It forgets nothing behind a sliding window: which keys a token sees is for the mask to say.
    """
    caught: list[Any] = []

    def catch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = [value for value in (*args, *kwargs.values()) if is_cache(value)]
        caught.extend(copy.deepcopy(found[:1]))
        raise _Caught

    ids = torch.zeros((1, 1), dtype=torch.long, device=device)
    with _core.HookScope() as scope:
        scope.before(anatomy.layers[0], catch)
        with suppress(_Caught):
            anatomy.model(input_ids=ids, use_cache=True)
    for layer in caught[0].layers if caught else ():
        if isinstance(getattr(layer, "sliding_window", None), int):
            layer.sliding_window = _NO_WINDOW
    return caught[0] if caught else None


def is_cache(value: Any) -> bool:
    """Whether a value is one of transformers' caches, or made like them."""
    return "Cache" in type(value).__name__ and isinstance(getattr(value, "layers", None), list)


def cache_argument(module: nn.Module) -> tuple[str, int] | None:
    """Under which name, and at which place, a module takes a cache."""
    names = list(inspect.signature(module.forward).parameters)
    return next(((name, names.index(name)) for name in _ARGUMENTS if name in names), None)


def with_cache(
    args: tuple[Any, ...], kwargs: dict[str, Any], argument: tuple[str, int], cache: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with another cache."""
    name, place = argument
    if place < len(args):
        return (*args[:place], cache, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: cache}


def fresh(cache: Any) -> Any:
    """A copy of an empty cache, or of a filled one whose tensors are written to in place."""
    return _mapped(cache, lambda tensor: tensor.clone())


def split(cache: Any, index: torch.Tensor, sequences: int) -> Any:
    """The states of chosen sequences, again for each time that one is chosen. ``sequences``: there now."""

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 0 or len(tensor) != sequences:
            return tensor.clone()
        return tensor.index_select(0, index.to(tensor.device))

    return _mapped(cache, chosen)


def state_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache."""
    sizes: list[int] = []

    def add(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    _mapped(cache, add)
    return sum(sizes)


def _mapped(value: Any, change: Any) -> Any:
    """A cache, its layers, and what they hold, as new objects; configs and numbers stay what they are."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    if type(value) is dict:
        return {key: _mapped(item, change) for key, item in value.items()}
    if any(word in type(value).__name__ for word in ("Cache", "Layer")):
        found = copy.copy(value)
        for name, item in vars(value).items():
            setattr(found, name, _mapped(item, change))
        return found
    return value
