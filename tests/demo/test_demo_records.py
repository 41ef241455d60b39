"""The released facts: their layout, and that each has one right answer."""

from __future__ import annotations

from collections import Counter, defaultdict

from benchmarks.demo_model.facts import phrasings, unambiguous
from benchmarks.demo_model.relations import RELATIONS
from moetrace.demo import demo_records

LAYOUT = ["case_id", "relation_id", "prompt", "subject", "target_true", "target_new"]


def test_every_record_has_the_flat_layout(records):
    assert all(list(record) == LAYOUT for record in records)
    assert [record["case_id"] for record in records] == list(range(len(records)))
    assert len(records) >= 750


def test_records_of_one_call_are_not_those_of_another():
    first = demo_records()
    first[0]["subject"] = "changed"
    assert demo_records()[0]["subject"] != "changed"


def test_a_prompt_names_its_subject_once_and_does_not_end_with_it(records):
    for record in records:
        prompt = record["prompt"].replace("{}", record["subject"])
        assert record["prompt"].count("{}") == 1
        assert prompt.count(record["subject"]) == 1
        assert not prompt.endswith(record["subject"])
        assert prompt == prompt.strip()
        assert record["target_true"] not in prompt


def test_no_prompt_comes_twice(records):
    prompts = Counter((record["subject"], record["prompt"]) for record in records)
    assert max(prompts.values()) == 1


def test_a_subject_and_relation_have_one_right_answer(records):
    questions = Counter((record["relation_id"], record["subject"].casefold()) for record in records)
    assert max(questions.values()) == 1


def test_a_foil_is_another_object_of_the_same_relation(records):
    objects = defaultdict(set)
    for record in records:
        objects[record["relation_id"]].add(record["target_true"])
    for record in records:
        assert record["target_new"] != record["target_true"]
        assert record["target_new"] in objects[record["relation_id"]]


def test_relations_are_diverse_and_all_their_phrasings_are_released(records):
    released = defaultdict(set)
    for record in records:
        released[record["relation_id"]].add(record["prompt"])
    assert released == {relation.relation_id: set(relation.templates) for relation in RELATIONS}


def test_every_fact_is_trained_in_three_phrasings_or_more(records):
    for record in records:
        prompts = phrasings(record)
        assert len(set(prompts)) >= 3
        assert record["prompt"].replace("{}", record["subject"]) in prompts


def test_a_subject_with_two_answers_is_dropped_with_both():
    pairs = [("León", "Spain"), ("Leon", "Mexico"), ("Lyon", "France"), ("Lyon", "France")]
    assert unambiguous(pairs) == [("Lyon", "France")]
