"""Attention masks of a token tree, whatever mask a layer of the model asks for.

For the duration of a pass the "sdpa" and "eager" mask factories of transformers evaluate the mask function
they are given (causal, sliding window, chunks, …) on the tree's positions, and keep of it what is an
ancestor. So every layer type of every family gets its own right mask without any knowledge of the family.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import masking_utils

from moetrace.changes import undisturbed
from moetrace.errors import EngineError

_REPLACED = ("sdpa", "eager")


class TreeMask:
    """Positions and ancestors of the rows of one batch.

    ``positions``: int64 (batch, rows); ``visible``: bool (batch, rows, rows). ``lengths``: the row counts
    with which the model may ask for a mask; it always gets the mask of all rows.
    """

    def __init__(self, positions: torch.Tensor, visible: torch.Tensor, lengths: tuple[int, ...]) -> None:
        self.positions, self.visible, self.lengths = positions, visible, lengths
        self.asked = 0

    def __call__(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **_: Any,
    ) -> torch.Tensor:
        """Additive float mask (batch, 1, rows, rows). A bool mask is silently wrong in eager attention."""
        if (batch_size, q_length) != (len(self.positions), kv_length) or q_length not in self.lengths:
            raise EngineError(
                f"the model asked for an attention mask of {batch_size} x {q_length} x {kv_length}; the tree "
                f"has {len(self.positions)} cases of {' or '.join(map(str, self.lengths))} rows"
            )
        self.asked += 1
        positions = self.positions.to(device)
        batch = torch.arange(batch_size, device=device).view(-1, 1, 1, 1)
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        allowed = mask_function(batch, head, positions[:, None, :, None], positions[:, None, None, :])
        own = torch.eye(positions.shape[1], dtype=torch.bool, device=device)
        allowed = (torch.as_tensor(allowed, device=device) | own) & self.visible[:, None].to(device)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


_current: ContextVar[TreeMask | None] = ContextVar("moetrace_tree_mask", default=None)
_lock = threading.Lock()
_users: set[object] = set()
_before: dict[str, Any] = {}


def _factory(original: Callable[..., Any]) -> Callable[..., Any]:
    def build(*args: Any, **kwargs: Any) -> Any:
        tree = _current.get()  # another thread's model keeps its own masks
        return original(*args, **kwargs) if tree is None else tree(*args, **kwargs)

    return build


def _enter(user: object, tree: TreeMask) -> None:
    with undisturbed(), _lock:
        if not _users:
            interface = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
            _before.update(interface._local_mapping)
            for name in _REPLACED:
                interface[name] = _factory(interface[name])
        _users.add(user)
        _current.set(tree)


def _leave(user: object, before: TreeMask | None) -> None:
    """Put back what :func:`_enter` changed, if it did; a second time does nothing."""
    with undisturbed(), _lock:
        if user not in _users:
            return
        _current.set(before)
        _users.discard(user)
        if not _users:
            interface = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
            interface._local_mapping.clear()
            interface._local_mapping.update(_before)
            _before.clear()


@contextmanager
def tree_masks(tree: TreeMask) -> Iterator[None]:
    """Give this thread's forward passes the masks of ``tree``; other threads keep theirs."""
    user, before = object(), _current.get()
    try:
        try:
            _enter(user, tree)
            yield
        finally:
            _leave(user, before)
    finally:
        _leave(user, before)  # where Ctrl-C came before the first could hold it back
