"""The token that an object is, right after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from moetrace.cases.encoding import Encoder


def following_tokens(
    encoder: Encoder, prompts: Sequence[str], ids: Sequence[Sequence[int]], objects: Sequence[str]
) -> list[int | None]:
    """For each prompt the id of the one token that its object is; None where it isn't one.

    The rule is the same for every tokenizer: prompt, space and object are tokenised together, and the
    result must be the prompt's own tokens and one more, which isn't the unknown token. For byte-level BPE
    that is `` object`` as one token; for sentencepiece, which puts a space before any text, ``object``
    alone. A tokenizer that splits the space off leaves two tokens, so no object of its passes, rather
    than true and foil both being the space.

    Args:
        encoder: The tokenizer.
        prompts: Texts that don't end in a space.
        ids: Their tokens, without special ones.
        objects: One for each prompt; an empty one has no token.
    """
    asked = [place for place, answer in enumerate(objects) if answer]
    rows = encoder.encode([f"{prompts[place]} {objects[place]}" for place in asked])
    tokens: list[int | None] = [None] * len(objects)
    for place, row in zip(asked, rows, strict=True):
        if row[:-1] == list(ids[place]) and row[-1] != encoder.unknown:
            tokens[place] = row[-1]
    return tokens
