"""Forks that join the pass behind the layer in which they are patched, so that it costs nothing either.

It needs a layer whose output is its residual stream plus its block's output, bit for bit, which every pass
checks in the rows that count. The stream is what a module directly in the layer (a norm) was given before it
gave the block its input. Layers that scale or normalise the block's output are left to the other ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.growth import CannotGrow
from moetrace.engines.rows import BatchRows
from moetrace.models.anatomy import LayerSite
from moetrace.models.state import first_tensor


class Birth:
    """The hooks of one layer; ``experts``: its armed expert site, where experts are patched there."""

    def __init__(self, batch: BatchRows, layer: int, experts: _core.ExpertSite | None) -> None:
        self.site, self._block_rows = batch.birth_site(layer)
        self._experts = experts
        self._passed: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._stream: torch.Tensor | None = None
        self._block: torch.Tensor | None = None
        self._routed: torch.Tensor | None = None

    def arm(self, layer: nn.Module, place: LayerSite, handles: list[Any]) -> None:
        """Register the hooks; those on experts must be there already. ``handles`` gets all as it goes."""
        for child in layer.children():
            if child is not place.block:
                handles.append(child.register_forward_hook(self._pass))
        handles.append(place.block.register_forward_pre_hook(self._enter, with_kwargs=True))
        if self._experts is not None and place.experts is not None:
            handles.append(place.experts.register_forward_hook(self._route))
        handles.append(place.block.register_forward_hook(self._leave))
        handles.append(layer.register_forward_hook(self._bear))

    def _pass(self, _module: Any, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            self._passed.append((args[0], output))

    def _enter(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        self._stream = next((given for given, output in self._passed if output is hidden), None)
        self._passed.clear()
        if self._stream is None:
            raise CannotGrow("a block whose input isn't what a norm of the stream gave")

    def _route(self, _module: Any, _args: Any, output: Any) -> None:
        self._routed = first_tensor(output)

    def _leave(self, _module: Any, _args: Any, output: Any) -> None:
        self._block = first_tensor(output)

    def _bear(self, module: Any, args: Any, output: Any) -> Any:
        assert self._stream is not None
        assert self._block is not None
        flat = self._block.reshape(-1, self._block.shape[-1])
        own = [flat.index_select(0, self._block_rows.to(flat.device))]
        if self._experts is not None:
            self._refuse_other_parts(self._experts, flat)
            own.append(self._experts.patched.to(flat.device))
        self.site.tell(self._stream, self._block, torch.cat(own))
        if not self.site.adds_up(first_tensor(output)):
            raise CannotGrow("a layer that does more with its block's output than add it")
        grown = self.site(module, args, output)
        self._stream = self._block = self._routed = None
        return grown

    def _refuse_other_parts(self, experts: _core.ExpertSite, block: torch.Tensor) -> None:
        """A patched row is known where the block gives its experts' output and nothing else."""
        assert self._routed is not None
        rows = experts.wanted.to(block.device)
        routed = self._routed.reshape(-1, self._routed.shape[-1])
        if routed.shape != block.shape or not torch.equal(routed[rows], block[rows]):
            raise CannotGrow("a block that gives more than its experts' output")
