"""The tokens that an object is, right after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.cases.encoding import Encoder


def following_tokens(
    encoder: Encoder,
    prompts: Sequence[str],
    ids: Sequence[Sequence[int]],
    objects: Sequence[str],
    several: bool = False,
) -> list[tuple[int, ...] | None]:
    """For each prompt the one token that its object is, or with ``several`` its tokens; None where there are
    none.

    The rule is the same for every tokenizer: prompt, space and object are tokenised together, and the
    result must be the prompt's own tokens and one more, which isn't the unknown token. For byte-level BPE
    that is `` object`` as one token; for sentencepiece, which puts a space before any text, ``object``
    alone. A tokenizer that splits the space off leaves two tokens, so no object of its passes, rather
    than true and foil both being the space; with ``several`` both are then part of the object.

    Args:
        encoder: The tokenizer.
        prompts: Texts that don't end in a space.
        ids: Their tokens, without special ones.
        objects: One for each prompt; an empty one has no token.
        several: Whether an object may have more tokens than one.
    """
    asked = [place for place, answer in enumerate(objects) if answer]
    rows = encoder.encode([f"{prompts[place]} {objects[place]}" for place in asked])
    tokens: list[tuple[int, ...] | None] = [None] * len(objects)
    for place, row in zip(asked, rows, strict=True):
        start = len(ids[place])
        found = tuple(row[start:])
        fits = len(found) >= 1 if several else len(found) == 1
        if fits and row[:start] == list(ids[place]) and encoder.unknown not in found:
            tokens[place] = found
    return tokens
