"""Where foils come from when the records' own are not taken."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from moetrace.arguments import shown
from moetrace.cases.record import Record
from moetrace.errors import ArgumentError

FoilRule = Literal["relation"] | Callable[[Record], str | None] | None


def choose_foils(
    records: Sequence[Record], true_ids: Sequence[tuple[int, ...] | None], rule: FoilRule, seed: int
) -> list[str]:
    """The foil's text for each record, empty where there is none.

    Args:
        records: The facts.
        true_ids: Tokens of each true object; None where it can't be taken.
        rule: See :func:`moetrace.cases.make_cases`.
        seed: Of ``"relation"``. A record's draw depends on the seed, its case id and the objects of its
            relation, not on the order of the records.

    Raises:
        ArgumentError: ``rule`` is none of the rules.
    """
    if rule is None:
        return [record.target_new for record in records]
    if callable(rule):
        return [_foil_by(rule, record) for record in records]
    return _relation_foils(records, true_ids, seed)


def _foil_by(rule: Callable[[Record], str | None], record: Record) -> str:
    """What a user's function gives for a record."""
    try:
        text = rule(record)
    except Exception as failure:
        raise ArgumentError(
            f"foil, a function, failed for record {record.case_id}: {type(failure).__name__}: {failure}"
        ) from failure
    if text is not None and not isinstance(text, str):
        raise ArgumentError(
            f"foil gave {shown(text)} for record {record.case_id}; expected a text, or None to drop it"
        )
    return (text or "").strip()


def _relation_foils(
    records: Sequence[Record], true_ids: Sequence[tuple[int, ...] | None], seed: int
) -> list[str]:
    tokens: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record, true_id in zip(records, true_ids, strict=True):
        facts[record.relation_id, record.subject].add(record.target_true)
        if true_id is not None:
            tokens[record.relation_id][record.target_true] = true_id
    objects = {relation: sorted(found) for relation, found in tokens.items()}
    foils = []
    for record, true_id in zip(records, true_ids, strict=True):
        # Whatever is true of the same subject elsewhere in the records is no foil for it.
        known = facts[record.relation_id, record.subject]
        found = tokens[record.relation_id]
        others = [
            text
            for text in objects.get(record.relation_id, ())
            if text not in known and found[text] != true_id
        ]
        foils.append(random.Random(f"{seed}:{record.case_id}").choice(others) if others else "")
    return foils
