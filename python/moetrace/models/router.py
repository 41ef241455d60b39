"""A router that isn't allowed to choose some experts: their logits are minus infinity in its own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch.overrides import TorchFunctionMode

from moetrace._native import _core
from moetrace.errors import LayoutError
from moetrace.models.anatomy import Anatomy, LayerSite, expert_count

# What a router may compute its logits by.
PRODUCTS = frozenset(
    (
        functional.linear, torch.matmul, torch.mm, torch.addmm,
        torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__,
    )
)  # fmt: skip
_REMEDY = "ablation='zero', 'mean' and 'resample' serve the model"


class MaskedRouters(TorchFunctionMode):
    """While entered, the routers of some layers give minus infinity as the logits of chosen experts.

    >>> routers = MaskedRouters(anatomy, {3: mask})
    >>> with _core.HookScope() as scope, routers:
    ...     routers.arm(scope)
    ...     model(**inputs)
    >>> routers.check()

    ``masks``: by layer bool (rows, experts), True where a row's router mustn't choose; rows as the block's
    input has them. What the router does with its logits (softmax, top-k, groups, renormalising) is its own.
    LayoutError where the router isn't in the block, or its logits aren't told from what else it computes.
    """

    def __init__(self, anatomy: Anatomy, masks: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self._masks = dict(masks)
        self._sites = {layer: router_site(anatomy, layer) for layer in self._masks}
        self._inside: int | None = None
        self._found = dict.fromkeys(self._masks, 0)

    def arm(self, scope: _core.HookScope) -> None:
        """Hang hooks on the routers that say when one of them runs."""

        def enter(layer: int) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self._inside = layer

            return hook

        def leave(*_: Any) -> None:
            self._inside = None

        for layer, site in self._sites.items():
            scope.before(site.router, enter(layer))
            scope.behind(site.router, leave)

    def reset(self) -> None:
        """Forget what was masked: the model is run again."""
        self._found = dict.fromkeys(self._masks, 0)

    def check(self) -> None:
        """LayoutError where a router's logits weren't masked exactly once."""
        for layer, times in self._found.items():
            if times != 1:
                router = type(self._sites[layer].router).__name__
                raise LayoutError(
                    f"layer {layer}: the logits of its router ({router}) weren't told from what else it "
                    f"computes: {times} products with one number for each of its experts were found, "
                    f"expected one; {_REMEDY}"
                )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every torch function while entered; the product inside a router is masked."""
        found = func(*args, **(kwargs or {}))
        if self._inside is None or func not in PRODUCTS:
            return found
        mask = self._masks[self._inside]
        if found.shape[-1] != mask.shape[-1] or found.numel() != mask.numel():
            return found
        self._found[self._inside] += 1
        return found.masked_fill(mask.to(found.device).reshape(found.shape), -torch.inf)


def router_site(anatomy: Anatomy, layer: int) -> LayerSite:
    """The layer's block, with its router inside. LayoutError where it isn't found there."""
    site = anatomy.site(layer)
    expert_count(anatomy, layer)
    if site.router is None or not any(site.router is inner for inner in site.block.modules()):
        where = "no router was found" if site.router is None else "its router stands beside the block"
        raise LayoutError(
            f"layer {layer} of {type(anatomy.model).__name__}: {where} ({site.path}), so what the router "
            f"would choose without an expert isn't known; {_REMEDY}"
        )
    return site
