"""Sequences of one case in a plain forward with hooks, which are checked to have come to act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.job import Job, embedding_device, hook_error
from moetrace.models.forward import CleanRow, read_metrics
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case


def with_first(output: Any, value: torch.Tensor) -> Any:
    """``output`` with its hidden states replaced."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


class PlainForwards:
    """Forwards of a job's cases, and errors where a hook saw something else than it must."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def _forward(
        self,
        case: Case,
        values: torch.Tensor | None,
        copies: int,
        hooks: Sequence[tuple[Any, Any]],
        again: Callable[[], None],
        kept: CleanRow,
        noised: Sequence[int] | None = None,
        before: Sequence[tuple[Any, Any]] = (),
    ) -> np.ndarray:
        """Metrics at the final token of ``copies`` sequences of one case: (metrics, copies).

        ``values``: one draw of the corruption, None for none; ``noised``: those sequences that get it, None
        for all. ``hooks`` hang behind modules, ``before`` before them. ``again`` forgets what the hooks saw,
        where the model must be run a second time.
        """
        anatomy = self.job.anatomy
        ids = torch.tensor([case.input_ids] * copies, device=embedding_device(anatomy))
        start, stop = case.subject

        def corrupt(_module: Any, _args: Any, _kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            value = self._check_rows("embedding", -1, output, ids.numel())
            found = value.reshape(*ids.shape, value.shape[-1]).clone()
            assert values is not None
            which = list(range(copies)) if noised is None else list(noised)
            part = values.to(output.device)
            if not self.job.corruptor.replaces:
                part = found[which, start:stop].float() + part
            found[which, start:stop] = part.to(output.dtype)
            return found.reshape(output.shape)

        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with _core.HookScope() as scope:
            if values is not None:
                scope.behind(anatomy.embedding, corrupt)
            for module, hook in before:
                scope.before(module, hook)
            for module, hook in hooks:
                scope.behind(module, hook)
            last = [len(case.input_ids) - 1]
            found = read_metrics(
                anatomy,
                self.job.readout,
                inputs,
                last,
                [case] * copies,
                self.job.metrics,
                again,
                clean=kept,
            )
        return found[:, :, 0].cpu().numpy()

    def _all_fired(self, layers: Sequence[int], fired: Any) -> None:
        silent = [layer for layer in layers if layer not in fired]
        if silent:
            what = f"the blocks of layers {silent} were never called in a forward pass"
            raise hook_error(self.job.anatomy, what, [("block", layer) for layer in silent])

    def _check_once(self, layer: int, fired: Any) -> None:
        if layer in fired:
            what = f"the block of layer {layer} was called repeatedly in a forward pass"
            raise hook_error(self.job.anatomy, what, [("block", layer)])

    def _check_rows(self, kind: str, layer: int, output: Any, rows: int) -> torch.Tensor:
        """The hidden states of an output: one for each token."""
        value = first_tensor(output)
        found = "a " + type(value).__name__
        if isinstance(value, torch.Tensor):
            if value.dim() >= 2 and value.numel() == rows * value.shape[-1]:
                return value
            found = f"a tensor of shape {tuple(value.shape)}"
        what = f"expected {rows} rows of hidden states, found {found}"
        raise hook_error(self.job.anatomy, what, [(kind, layer)])
