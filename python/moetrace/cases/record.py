"""One fact as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One fact, before any tokenizer has seen it.

    >>> Record(0, "P103", "The mother tongue of {} is", "Danielle Darrieux", "French", "English")

    Attributes:
        case_id: The record's own number, or its index where the source has none.
        relation_id: Relation of the fact, as ``"P103"``; empty where the source has none.
        prompt: A template in which ``{}`` stands for the subject, or the whole prompt.
        subject: The subject, without surrounding spaces.
        target_true: The true object, without surrounding spaces.
        target_new: The foil, without surrounding spaces; empty where the source has none.
    """

    case_id: int
    relation_id: str
    prompt: str
    subject: str
    target_true: str
    target_new: str = ""
