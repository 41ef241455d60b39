"""The committed facts are what the data packages give."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from benchmarks.demo_model import sources
from benchmarks.demo_model.facts import build_records
from benchmarks.demo_model.sources import CONTINENTS, DATA_PACKAGES, LANGUAGES

for name in DATA_PACKAGES:
    pytest.importorskip(name, reason="needed to rebuild the demo's facts, not to use them")

INSTALLED = {name: version(name) for name in DATA_PACKAGES}
pytestmark = pytest.mark.skipif(
    INSTALLED != DATA_PACKAGES, reason=f"other versions of the data packages hold other facts: {INSTALLED}"
)


def test_the_released_facts_are_those_that_the_packages_give(records):
    assert build_records() == records


def test_objects_are_looked_up_from_known_names(records):
    found = {
        relation: {record["target_true"] for record in records if record["relation_id"] == relation}
        for relation in ("P30", "P37")
    }
    assert found["P30"] <= set(CONTINENTS.values())
    assert found["P37"] <= set(LANGUAGES.values())


@pytest.mark.parametrize(
    ("source", "subject", "answer"),
    [
        (sources.country_capital, "France", "Paris"),
        (sources.capital_country, "Addis Ababa", "Ethiopia"),
        (sources.city_state, "Los Angeles", "California"),
        (sources.country_language, "Brazil", "Portuguese"),
        (sources.country_currency, "India", "Rupee"),
        (sources.country_continent, "Kenya", "Africa"),
        (sources.city_country, "Shanghai", "China"),
    ],
)
def test_candidates_hold_facts_that_everyone_knows(source, subject, answer):
    assert dict(source())[subject] == answer


def test_what_has_no_single_right_answer_is_left_out():
    assert "Bolivia" not in dict(sources.country_capital())  # two seats of government
    assert "Cyprus" not in dict(sources.country_continent())  # the packages disagree
    assert "Switzerland" not in dict(sources.country_language())  # four languages
    assert "Birmingham" not in dict(sources.city_country())  # in England and in Alabama
    assert "Springfield" not in dict(sources.city_state())
