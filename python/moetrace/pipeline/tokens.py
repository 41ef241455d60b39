"""Which tokens of a user's forwards are meant, and how a forward's rows lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moetrace._native import _core
from moetrace.arguments import as_choice, as_integer, as_list, is_integer, shown
from moetrace.errors import ArgumentError, ArgumentTypeError

Tokens = Any  # None, "last", a number, numbers, or a tensor by sequence: see mt.capture
_EXPECTED = (
    "None for every token, 'last', a token's number, a list of numbers, or a (batch, n) tensor of numbers or "
    "(batch, tokens) of True and False"
)


def forward_of(tokens: Tokens) -> _core.Forward:
    """A forward that chooses these tokens. ArgumentError, ArgumentTypeError."""
    kinds = _core.TokensKind
    if tokens is None:
        return _core.Forward(kinds.ALL)
    if isinstance(tokens, str):
        as_choice(tokens, "tokens", ("last",))
        return _core.Forward(kinds.LAST)
    if is_integer(tokens):
        return _core.Forward(kinds.COLUMNS, [_number(tokens)])
    if isinstance(tokens, slice):
        raise ArgumentTypeError(
            f"tokens is {shown(tokens)}; expected {_EXPECTED}: list(range(3, 7)) for 3 to 6"
        )
    listed = as_list(tokens, "tokens", _EXPECTED)
    if not listed:
        raise ArgumentError(f"tokens is empty; expected {_EXPECTED}")
    if isinstance(listed[0], list):
        rows = [_by_sequence(row) for row in listed]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ArgumentError(
                f"tokens names {shown([len(row) for row in rows])} tokens of the sequences; expected as many "
                "of each, and one at least"
            )
        numbers = [number for row in rows for number in row]
        return _core.Forward(kinds.ROWS, numbers, len(rows))
    numbers = [_number(number) for number in listed]
    if len(set(numbers)) != len(numbers):
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        raise ArgumentError(f"tokens repeats {shown(twice)}; expected each token once")
    return _core.Forward(kinds.COLUMNS, numbers)


def _number(given: Any) -> int:
    """A token's number. ArgumentError for one that no prompt is long enough for."""
    number = as_integer(given, "tokens", _EXPECTED)
    if abs(number) >= 2**62:
        raise ArgumentError(f"tokens names {shown(number)}; expected numbers of tokens in a prompt")
    return number


def _by_sequence(row: Any) -> list[int]:
    given = as_list(row, "tokens", _EXPECTED)
    if given and all(isinstance(value, bool) for value in given):
        return [column for column, value in enumerate(given) if value]
    return [_number(number) for number in given]


@dataclass(frozen=True)
class Call:
    """A forward as the decoder is called: (batch, tokens) behind ``past`` tokens in a cache.

    ``attended``: bool (batch, tokens), False for padding; None where no mask of that kind was given.
    """

    batch: int
    tokens: int
    past: int
    attended: torch.Tensor | None

    def last(self) -> list[int]:
        """Of each sequence the last token of the forward that isn't padding, -1 where it has none."""
        if self.attended is None:
            return []
        columns = torch.arange(1, self.tokens + 1, device=self.attended.device)
        found: list[int] = ((self.attended * columns).amax(1) - 1).tolist()
        return found


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """How a decoder is called; None where it is given no tokens."""
    given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]]
    tokens = next((value for value in given if isinstance(value, torch.Tensor) and value.dim() >= 2), None)
    if tokens is None:
        return None
    batch, count = tokens.shape[:2]
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != batch:
        mask = None
    past = _cached((*kwargs.values(), *args), 0 if mask is None else mask.shape[1] - count)
    attended = None if mask is None else mask[:, past : past + count].bool()
    if attended is not None and attended.shape[1] != count:
        attended = None
    return Call(batch, count, past, attended)


def _cached(values: tuple[Any, ...], before: int) -> int:
    """Tokens in the cache of a forward; ``before``: those that its mask has beside its own.

    A hybrid's cache may not say how long its sequence is: then the mask does.
    """
    cache = next((value for value in values if hasattr(value, "get_seq_length")), None)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length()) or max(0, before)
    except (AttributeError, IndexError, TypeError, ValueError):
        return max(0, before)
