"""Batched calls of a tokenizer, with character offsets where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from moetrace.errors import TokenizerError

Offsets = list[tuple[int, int]]

_PROBES = ("The", "One two")


class Encoder:
    """What making cases needs of a tokenizer: token ids of many texts, their offsets, its special tokens.

    >>> encoder = Encoder(tokenizer)
    >>> encoder.encode(["The capital of France is"])
    [[785, 6722, 315, 9625, 374]]

    Raises:
        TokenizerError: It can't be called as a transformers tokenizer can.
    """

    def __init__(self, tokenizer: Any, add_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self.has_offsets = bool(getattr(tokenizer, "is_fast", False))
        self.unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        # The tokens that start a sequence (BOS as the tokenizer has it). Those that would end it are
        # left out: the prompt's last token must be the last word's, since the object comes next.
        self.start: tuple[int, ...] = self._leading_specials() if add_special_tokens else ()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        return self._call(texts, add_special_tokens=False)

    def offsets(self, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> list[Offsets | None]:
        """Half-open character range of every token; None for a text where the tokenizer can't tell.

        A fast tokenizer records the ranges. For another they are found by decoding ever more tokens, if
        that gives the text back.
        """
        if not texts:
            return []
        if self.has_offsets:
            rows: list[Offsets | None] = self.tokenizer(
                list(texts), add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
            return rows
        return [self._offsets_by_decoding(text, row) for text, row in zip(texts, ids, strict=True)]

    def _call(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        try:
            rows: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
        except (TypeError, KeyError, AttributeError) as error:
            raise TokenizerError(
                f"a {type(self.tokenizer).__name__} can't be called as a tokenizer ({error}); expected one of"
                " transformers, as AutoTokenizer.from_pretrained gives it"
            ) from error
        return rows

    def _leading_specials(self) -> tuple[int, ...]:
        plain = self._call(_PROBES, add_special_tokens=False)
        whole = self._call(_PROBES, add_special_tokens=True)
        found = {_before(inner, outer) for inner, outer in zip(plain, whole, strict=True)}
        start = found.pop()
        if found or start is None:
            raise TokenizerError(
                f"{type(self.tokenizer).__name__} tokenises text differently with special tokens than without"
                f" ({whole[0]} and {plain[0]}); pass add_special_tokens=False, or build the cases yourself"
            )
        return start

    def _offsets_by_decoding(self, text: str, ids: Sequence[int]) -> Offsets | None:
        decode = getattr(self.tokenizer, "decode", None)
        if decode is None:
            return None
        read = [
            decode(list(ids[:count]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for count in range(1, len(ids) + 1)
        ]
        if not read or read[-1].lstrip() != text:
            return None
        shift = len(read[-1]) - len(text)  # a dummy space before the text
        offsets: Offsets = []
        end = 0
        for piece in read:
            shown = piece[shift:]
            begin, end = end, max(end, _shared_start(shown, text))
            # A token that ends within a character shows a replacement sign or nothing: it covers the next.
            offsets.append((begin, end + 1 if len(shown) > end or end == begin else end))
        return offsets


def _shared_start(one: str, other: str) -> int:
    """How many characters two texts have in common from their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _before(inner: Sequence[int], outer: Sequence[int]) -> tuple[int, ...] | None:
    """What stands before ``inner`` in ``outer``; None if it isn't in it."""
    for place in range(len(outer) - len(inner) + 1):
        if list(outer[place : place + len(inner)]) == list(inner):
            return tuple(outer[:place])
    return None
