"""Forks that join the pass at the layer where they are patched.

Below its layer a fork then costs nothing. It needs a layer that takes hidden states and per-row extras that
this module knows, and gives hidden states back; where a layer has more, :class:`CannotGrow` sends the engine
to static rows. Where a layer adds its block to a stream and does nothing more, forks can join behind it
(:mod:`moetrace.engines.birth`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from moetrace._native import _core

if TYPE_CHECKING:
    from moetrace.engines.rows import BatchRows

PASSED_ON = frozenset(
    {"past_key_values", "past_key_value", "use_cache", "cache_position", "output_attentions",
     "output_router_logits", "output_hidden_states"}
)  # fmt: skip
PER_ROW = frozenset({"position_ids", "position_embeddings"})


class Growth(Enum):
    """Where forks join the pass; the first is the fastest, the last serves every model."""

    BEHIND = "late growing"  # behind the layer in which they are patched
    BEFORE = "growing"  # before it
    STATIC = "static"  # before the first layer

    def lower(self) -> tuple[Growth, ...]:
        """What is left to try where this one doesn't serve."""
        modes = tuple(Growth)
        return modes[modes.index(self) + 1 :]


class CannotGrow(Exception):
    """A layer doesn't allow that forks join it in the way that was tried."""


def grower(batch: BatchRows, layer: int, born: int) -> tuple[_core.GrowRows | None, Callable[..., Any]]:
    """The pre-hook of one layer, with kwargs; ``born``: rows alive before it."""
    rows = batch.rows_at(layer)
    site = None
    if rows > born:
        site = _core.GrowRows(f"forks born at layer {layer}", batch.sources(born, rows))
    sources = batch.sources(0, rows)

    def extend(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (tuple, list)):
            return type(value)(extend(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2:
            raise CannotGrow("a per-row input that isn't a tensor of rows")
        cases = len(batch.cases)
        if value.shape[0] in (1, cases) and value.shape[1] == batch.start_rows:
            return _core.gather_rows(value.expand(cases, *value.shape[1:]), sources)
        if value.dim() > 2 and value.shape[1] in (1, cases) and value.shape[2] == batch.start_rows:
            return torch.stack([extend(section) for section in value])  # rotary angles of time, height, width
        raise CannotGrow("a per-row input of unknown shape")

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if len(args) > 1 or not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
            raise CannotGrow("positional inputs beside the hidden states")
        given = dict(kwargs)
        given.pop("hidden_states", None)
        for name, value in given.items():
            if name == "attention_mask":
                if isinstance(value, torch.Tensor) and value.dim() == 4:
                    given[name] = value[:, :, :rows, :rows].contiguous()
                elif rows != batch.start_rows:
                    raise CannotGrow("an attention mask that isn't 4-D")
            elif name in PER_ROW:
                given[name] = extend(value) if rows != batch.start_rows else value
            elif value is not None and name not in PASSED_ON:
                raise CannotGrow(name)
        return ((hidden if site is None else site.fire(hidden),), given)

    return site, hook


def refuse_extras(_module: Any, _args: Any, output: Any) -> None:
    """Forward hook of a layer: a tuple with more than hidden states can't be grown."""
    if isinstance(output, tuple) and any(item is not None for item in output[1:]):
        raise CannotGrow("a layer that returns more than hidden states")


class SlimExperts:
    """Spare newborn forks the experts of their first layer.

    There a fork is still a copy of a noised row, so its experts give what that row's experts give: newborn
    rows are taken out of the call of the experts and put back as copies behind it. Pre-hook and hook (both
    with kwargs) of an experts module that is called with rows first; another call is left alone.
    """

    def __init__(self, batch: BatchRows, layer: int, born: int) -> None:
        rows, cases = batch.rows_at(layer), len(batch.cases)
        self._rows = cases * rows
        first = torch.arange(cases).unsqueeze(1)
        self._kept = (first * rows + torch.arange(born)).reshape(-1)
        # Row of the slim call that each row of the whole call gets its output from.
        source = batch.sources(0, rows)
        source[:, :born] = torch.arange(born)
        self.place = (first * born + source).reshape(-1)
        self._slim = False

    def _per_row(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[0] == self._rows

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keep the rows that were there before this layer."""
        self._slim = all(self._per_row(value) for value in (*args, *kwargs.values()))
        if not self._slim:
            return None
        return tuple(map(self._keep, args)), {name: self._keep(value) for name, value in kwargs.items()}

    def _keep(self, value: torch.Tensor) -> torch.Tensor:
        return value.index_select(0, self._kept.to(value.device))

    def after(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Put the newborn rows back."""
        return output.index_select(0, self.place.to(output.device)) if self._slim else output

    def rows_in_call(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows of the call that was made, for rows of the whole."""
        return self.place[wanted] if self._slim else wanted
