"""A router's logits while it computes: most routers go on to choose experts in the same call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from moetrace._native import _core
from moetrace.errors import HookError
from moetrace.models.router import PRODUCTS

_CHOICES = (torch.topk, torch.Tensor.topk)
Act = Callable[[torch.Tensor], Any]  # gives what the router goes on with, or None


@dataclass(eq=False)
class Watcher:
    """Who wants a router's logits, and the scores by which it then chooses experts (bias included)."""

    logits: Act
    scores: Act | None = None


class _Watched(TorchFunctionMode):
    """Every product that has a column for each expert, and every choice among as many scores."""

    def __init__(self, experts: int, watchers: tuple[Watcher, ...]) -> None:
        super().__init__()
        self._experts, self._watchers = experts, watchers
        self.products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CHOICES and args and args[0].shape[-1:] == (self._experts,):
            acts = [own.scores for own in self._watchers if own.scores is not None]
            args = (_passed(args[0], acts), *args[1:])
        value = func(*args, **(kwargs or {}))
        if func not in PRODUCTS or value.shape[-1:] != (self._experts,):
            return value
        self.products += 1
        return _passed(value, [own.logits for own in self._watchers])


def _passed(value: torch.Tensor, acts: Sequence[Act]) -> torch.Tensor:
    for act in acts:
        found = act(value)
        value = value if found is None else found
    return value


class RouterForward:
    """A router's forward, in which the logits pass those who want them, in the order in which they came."""

    def __init__(self, router: nn.Module, experts: int, where: str) -> None:
        self._router, self._experts, self._where = router, experts, where
        self._own = vars(router).get("forward")
        self._forward = router.forward
        self._watchers: list[Watcher] = []

    @classmethod
    def add(cls, router: nn.Module, experts: int, where: str, watcher: Watcher) -> Callable[[], None]:
        """Let the logits pass one more; gives what takes it away."""
        found = vars(router).get("forward")
        if not isinstance(found, cls):
            found = cls(router, experts, where)
            router.forward = found
        found._watchers.append(watcher)
        return partial(found._remove, watcher)

    def _remove(self, watcher: Watcher) -> None:
        self._watchers.remove(watcher)
        if self._watchers or vars(self._router).get("forward") is not self:
            return
        if self._own is None:
            del self._router.forward
        else:
            self._router.forward = self._own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The router's own forward."""
        watchers = tuple(self._watchers)
        if not watchers or _core.is_quiet():
            return self._forward(*args, **kwargs)
        with _Watched(self._experts, watchers) as watched:
            output = self._forward(*args, **kwargs)
        if watched.products == 1:
            return output
        plain = isinstance(output, torch.Tensor) and output.shape[-1:] == (self._experts,)
        if watched.products or not plain:
            raise HookError(
                f"{self._where}: expected {type(self._router).__name__} to compute the logits of its "
                f"{self._experts} experts in one linear map; found {watched.products}. Routing and "
                "Expert sites need no logits"
            )
        # A linear map of another kind, of quantised weights perhaps.
        return _passed(output, [own.logits for own in watchers])
