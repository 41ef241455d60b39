"""The compiled routine in place of a standard experts module, with hooks only.

On a processor the k-fold copies that the module makes of a large batch cost more time than its products. So
the pre-hook computes the experts' output itself and leaves the module a row or two, and the hook gives all
rows back; what the module has computed shows in every call whether the routine gives the same. Contributions
for expert patches come from the same reading of the weights, and the rows left are then rows that need them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.experts import TOLERANCE, Routed, is_standard, routed_call

FEWEST_ROWS = 256  # below, the module itself is as fast
_others: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class NotCompiled(Exception):
    """The compiled routine doesn't give what the module gives; the pass must be run again without it."""


class CompiledExperts:
    """Pre-hook and hook (both with kwargs) of one experts module; a call that doesn't qualify is left alone.

    Make it before any other hook of the trace is on the module: a module with hooks of its user's, or with a
    forward of its own (offloaded weights), is left alone too.

    ``wanted``: rows of the call whose contributions are asked for, once the call is there.
    """

    def __init__(self, module: nn.Module, where: str, wanted: Callable[[], torch.Tensor]) -> None:
        self._where, self._wanted = where, wanted
        self._plain = not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        self._left = torch.zeros(1, dtype=torch.int64)
        self._output: torch.Tensor | None = None
        self._routed: Routed | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the output of all rows and leave few to the module."""
        self._output = self._routed = None
        given = (*args, *kwargs.values())
        if not all(isinstance(value, torch.Tensor) and value.dim() == 2 for value in given):
            return None
        if not self._qualifies(module, given):
            return None
        hidden, index, weights = routed_call(module, args, kwargs, self._where)
        fused: Any = module
        if int(index.min()) < 0 or int(index.max()) >= fused.down_proj.shape[0]:
            return None
        wanted = self._wanted()
        self._output, contribution = _core.gated_output(
            fused.gate_up_proj, fused.down_proj, hidden, index, weights, wanted
        )
        self._routed = index[wanted], weights[wanted], contribution
        self._left = wanted[:2] if len(wanted) else torch.zeros(1, dtype=torch.int64)
        few = {name: value[self._left] for name, value in kwargs.items()}
        return tuple(value[self._left] for value in args), few

    def contributions(self) -> Routed | None:
        """Index, weights and contributions of the wanted rows; None where the call was left alone."""
        return self._routed

    def _qualifies(self, module: nn.Module, given: tuple[torch.Tensor, ...]) -> bool:
        rows = given[0].shape[0] if given else 0
        return (
            self._plain
            and rows >= FEWEST_ROWS
            and all(value.shape[0] == rows and value.device.type == "cpu" for value in given)
            and given[0].dtype in (torch.float32, torch.float64)
            and module not in _others
            and is_standard(module)
            and module.down_proj.dtype == given[0].dtype
        )

    def after(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Give all rows back. NotCompiled where the module's own rows are others."""
        whole, self._output = self._output, None
        if whole is None:
            return None
        same = whole[self._left]
        allowed = TOLERANCE[whole.dtype] * max(float(same.abs().max()), 1e-6)
        if output.shape != same.shape or float((output - same).abs().max()) > allowed:
            _others.add(module)
            raise NotCompiled(self._where)
        return whole
