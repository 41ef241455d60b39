"""True and foil logits of hidden rows, from two rows of the unembedding instead of all of it.

What a model does between its head and its logits is an elementwise function: none, a scale (Granite,
Cohere) or a soft cap (Gemma). It is read from the config and compared, once per model, with the model's
own logits; where nothing fits, the model's own head is used for every row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from moetrace.errors import ArgumentError
from moetrace.models.anatomy import Anatomy
from moetrace.weights.tensors import is_plain

ReadoutKind = Literal["exact", "model"]
READOUTS = ("exact", "model")
_TOKENS = 8192  # rows of the head's weights that are widened at once
Elementwise = Callable[[torch.Tensor], torch.Tensor]
_forward_mode = threading.Lock()  # torch counts the levels of forward differentiation for the whole process


def _candidates(config: Any) -> dict[str, Elementwise]:
    found: dict[str, Elementwise] = {"plain": lambda x: x}
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        found["logits_scaling"] = lambda x: x / divisor
    factor = getattr(config, "logit_scale", None)
    if factor:
        found["logit_scale"] = lambda x: x * factor
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        found["final_logit_softcapping"] = lambda x: torch.tanh(x / cap) * cap
    return found


def plain_weight(head: nn.Module) -> torch.Tensor | None:
    """The head's (vocabulary, width) matrix, where it is a plain one that is in memory."""
    weight = getattr(head, "weight", None)
    if not is_plain(weight) or weight.is_meta:
        return None
    whole = not hasattr(weight, "device_mesh")  # a DTensor lies in parts on several ranks
    return weight if weight.dim() == 2 and whole else None


class Readout:
    """Logits of chosen tokens from the rows that enter the head."""

    def __init__(self, anatomy: Anatomy, own_head: bool = False) -> None:
        self._head = anatomy.head
        self._candidates = _candidates(anatomy.config)
        self._chosen: Elementwise | None = None
        self.asked: ReadoutKind = "model" if own_head else "exact"
        self.kind = "own head" if own_head else "unchecked"

    @property
    def checked(self) -> bool:
        """Whether the two-row readout has been compared with the model's own logits."""
        return self.kind != "unchecked"

    @property
    def own_head(self) -> bool:
        """Whether the model's own head must be used for every row."""
        return self.kind == "own head"

    def check(self, hidden: torch.Tensor, tokens: torch.Tensor, logits: torch.Tensor) -> None:
        """Choose how to read out: ``hidden`` (n, width), ``tokens`` (n, m), the model's ``logits`` (n, m)."""
        finite = torch.isfinite(logits).all(dim=1)  # a case with NaN is reported, and says nothing here
        hidden, tokens, logits = (
            hidden[finite.to(hidden.device)],
            tokens[finite.to(tokens.device)],
            logits[finite],
        )
        size = float(logits.abs().max()) if logits.numel() else 0.0
        tolerance = 64 * torch.finfo(logits.dtype).eps * max(1.0, size)
        for name, function in self._candidates.items():
            if plain_weight(self._head) is None or not len(logits):
                break
            mine = function(self._linear(hidden, tokens))
            if bool(((mine - logits.to(mine.device, mine.dtype)).abs() <= tolerance).all()):
                self.kind, self._chosen = name, function
                return
        self.kind = "own head"

    def __call__(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """float64 logits (n, m) of ``tokens`` (n, m) at the rows ``hidden`` (n, width).

        With several rows of each line of tokens, (n, rows, width): (n, rows, m).
        """
        assert self._chosen is not None
        return self._chosen(self._linear(hidden, tokens))

    def whole(self, hidden: torch.Tensor, vocab: int) -> torch.Tensor:
        """Logits (n, vocab) of the vocabulary at the rows ``hidden`` (n, width), in float32 or float64.

        The head's weights are widened some tokens at a time.
        """
        weight, bias = plain_weight(self._head), getattr(self._head, "bias", None)
        assert weight is not None
        assert self._chosen is not None
        wide = torch.promote_types(torch.promote_types(weight.dtype, hidden.dtype), torch.float32)
        rows = hidden.to(weight.device, wide)
        found = rows.new_empty(len(rows), vocab)
        for begin in range(0, vocab, _TOKENS):
            end = min(begin + _TOKENS, vocab)
            own = None if bias is None else bias[begin:end].to(rows)
            found[:, begin:end] = nn.functional.linear(rows, weight[begin:end].to(wide), own)
        return self._chosen(found)

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows of the unembedding, float64 (n, m, width)."""
        weight = plain_weight(self._head)
        assert weight is not None
        return weight[tokens.to(weight.device)].to(torch.float64)

    def slopes(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """By how much the same logits change with what the head gives: the slope of a scale or soft cap."""
        assert self._chosen is not None
        raw = self._linear(hidden, tokens)
        with _forward_mode:
            found: torch.Tensor = torch.func.jvp(self._chosen, (raw,), (torch.ones_like(raw),))[1]
        return found

    def _linear(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        rows = self.rows(tokens)
        hidden = hidden.to(rows.device, torch.float64)
        together = hidden.dim() == 3  # several rows of each case
        logits = torch.einsum("nmw,nrw->nrm" if together else "nmw,nw->nm", rows, hidden)
        bias = getattr(self._head, "bias", None)
        if bias is None:
            return logits
        own = bias[tokens.to(bias.device)].to(logits)
        biased: torch.Tensor = logits + (own.unsqueeze(1) if together else own)
        return biased


def make_readout(anatomy: Anatomy, kind: ReadoutKind = "exact") -> Readout:
    """How logits are read: "exact" in float64 from the rows that enter the head, "model" as the model's own
    head and dtype give them, rounded as the model rounds.
    """
    if kind not in READOUTS:
        raise ArgumentError(f"readout is {kind!r}; expected one of {', '.join(map(repr, READOUTS))}")
    return Readout(anatomy, own_head=kind == "model")


class HeadTap:
    """What entered the head in the last forward pass.

    The head itself is called for the first of ``rows`` rows only, unless the model's own head is needed:
    that row's logits serve the check, and all others come from the readout.
    """

    def __init__(self, readout: Readout, rows: int, index: torch.Tensor | None = None) -> None:
        self.narrow, self._rows, self._index = not readout.own_head, rows, index
        self.hidden: torch.Tensor | None = None

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As a forward pre-hook of the head."""
        hidden = args[0]
        if hidden.shape[1] != self._rows and self._index is not None:
            hidden = hidden.index_select(1, self._index.to(hidden.device))  # no logits_to_keep in this model
        self.hidden = hidden
        # Contiguous: torch would multiply each sequence of a strided batch by a copy of the matrix.
        return (hidden[:, :1].contiguous() if self.narrow else hidden, *args[1:]), kwargs
