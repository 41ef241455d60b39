"""The seven relations of the demo facts and the phrasings that they are trained with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One relation: Wikidata property, phrasings, and how many facts of it to keep.

    No phrasing ends with its subject: the final prompt token is where clean values are patched in, and
    it must not itself be a noised token.
    """

    relation_id: str
    most: int
    templates: tuple[str, ...]


CITY_COUNTRY = Relation(
    "P17",
    330,
    (
        "{} is located in the country of",
        "{} is a place in",
        "The people of {} live in",
        "The country in which {} is found is",
    ),
)
CITY_STATE = Relation(
    "P131",
    140,
    (
        "{} is located in the US state of",
        "{} belongs to the state of",
        "The people of {} live in the state of",
        "The state in which {} is found is",
    ),
)
CAPITAL_COUNTRY = Relation(
    "P1376",
    80,
    (
        "{} is the capital of",
        "{} serves as the capital city of",
        "The city of {} is the capital of",
        "The country whose capital is {} is called",
    ),
)
COUNTRY_CAPITAL = Relation(
    "P36",
    80,
    (
        "The capital of {} is",
        "The capital city of {} is called",
        "The government of {} has its seat in",
        "{} has as its capital the city of",
    ),
)
COUNTRY_CONTINENT = Relation(
    "P30",
    70,
    (
        "{} is a country in",
        "{} is located on the continent of",
        "The country of {} is part of",
        "The continent to which {} belongs is",
    ),
)
COUNTRY_CURRENCY = Relation(
    "P38",
    90,
    (
        "The official currency of {} is the",
        "The currency of {} is called the",
        "People in {} pay with the",
        "{} has a currency called the",
    ),
)
COUNTRY_LANGUAGE = Relation(
    "P37",
    70,
    (
        "The official language of {} is",
        "{} has an official language, which is",
        "The laws of {} are written in",
        "The state of {} uses the language called",
    ),
)

RELATIONS = (
    CITY_COUNTRY,
    CITY_STATE,
    CAPITAL_COUNTRY,
    COUNTRY_CAPITAL,
    COUNTRY_CONTINENT,
    COUNTRY_CURRENCY,
    COUNTRY_LANGUAGE,
)
