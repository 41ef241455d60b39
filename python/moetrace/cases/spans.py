"""Where the subject lies: in the prompt's text, then among its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moetrace.cases.encoding import Encoder, Offsets
from moetrace.cases.record import Record
from moetrace.errors import TokenizerError


@dataclass(frozen=True, slots=True)
class PlacedPrompt:
    """A whole prompt and the characters ``text[start:stop]`` that are its subject."""

    text: str
    start: int
    stop: int


def place_subject(record: Record) -> PlacedPrompt | str:
    """The record's whole prompt and its subject's place, or the reason why there is none.

    >>> place_subject(Record(0, "P103", "The mother tongue of {} is", "Danielle Darrieux", "French"))
    PlacedPrompt(text='The mother tongue of Danielle Darrieux is', start=21, stop=38)

    Spaces around the prompt are taken off: the token that comes next carries the space. Reasons are
    ``subject_empty``, ``subject_not_in_prompt`` and ``subject_repeated`` (its text occurs again, and the
    second occurrence would stay clean while the first is noised).
    """
    subject = record.subject.strip()
    if not subject:
        return "subject_empty"
    head, found, tail = record.prompt.partition("{}")
    text = head + subject + tail.replace("{}", subject) if found else record.prompt
    start = len(head) if found else text.find(subject)
    if start < 0:
        return "subject_not_in_prompt"
    if text.count(subject) > 1:
        return "subject_repeated"
    start -= len(text) - len(text.lstrip())
    return PlacedPrompt(text.strip(), start, start + len(subject))


def token_spans(
    encoder: Encoder, prompts: Sequence[PlacedPrompt], ids: Sequence[Sequence[int]]
) -> list[tuple[int, int] | str]:
    """For each prompt the half-open range of its subject's tokens, or the reason why there is none.

    Raises:
        TokenizerError: The tokenizer gives no offsets, and neither decoding nor encoding a part of the
            prompt tells where the subject lies.
    """
    offsets = encoder.offsets([prompt.text for prompt in prompts], ids)
    return [
        span_by_prefixes(encoder, prompt, row) if ranges is None else span_by_offsets(prompt, ranges)
        for prompt, row, ranges in zip(prompts, ids, offsets, strict=True)
    ]


def span_by_offsets(prompt: PlacedPrompt, offsets: Offsets) -> tuple[int, int] | str:
    """The tokens that cover any of the subject's characters, or ``"subject_merged"``.

    A space that a token takes along is none of its neighbours. A token of punctuation alone that joins the
    subject's last mark with the prompt's next (``.,`` in ``Sora Ltd., whose``) is the subject's: Table 8
    lists such a case for both models. Any other token that covers both the subject and a neighbour merges
    them. ``"subject_empty"`` if no token covers the subject.
    """
    covering = [
        place
        for place, (begin, end) in enumerate(offsets)
        if begin < min(end, prompt.stop) and end > prompt.start
    ]
    if not covering:
        return "subject_empty"
    for place in covering:
        begin, end = offsets[place]
        outside = prompt.text[begin : prompt.start] + prompt.text[prompt.stop : end]
        if outside.strip() and any(character.isalnum() for character in prompt.text[begin:end]):
            return "subject_merged"
    return covering[0], covering[-1] + 1


def span_by_prefixes(encoder: Encoder, prompt: PlacedPrompt, ids: Sequence[int]) -> tuple[int, int]:
    """The span between the tokens of the text before the subject and those up to its end.

    Raises:
        TokenizerError: One of these isn't a beginning of the prompt's tokens.
    """
    before, upto = prompt.text[: prompt.start], prompt.text[: prompt.stop]
    counts = []
    # The space before the subject is a token of its own for some, and goes with the subject for others.
    for part, other in ((before, before.rstrip()), (upto, upto)):
        rows = encoder.encode([text for text in (part, other) if text]) or [[]]
        row = next((row for row in rows if list(ids[: len(row)]) == list(row)), None)
        if row is None:
            raise TokenizerError(
                f"{type(encoder.tokenizer).__name__} gives no character offsets, its decoding doesn't"
                f" give {prompt.text!r} back, and {other!r} alone is tokenised in another way, so the"
                " subject's tokens can't be told; use the model's fast tokenizer, or build the cases yourself"
            )
        counts.append(len(row))
    return counts[0], counts[1]
