from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_tokenizers import Decoding, gluing_tokenizer, lower_casing_tokenizer, word_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moetrace.cases import Case, Record, Records, load_records, make_cases, validate_cases
from moetrace.errors import ArgumentError, DuplicateCaseError, NoCasesError, RecordError, TokenizerError

CAPITAL = Record(7, "P36", "The capital of {} is", "France", "Paris", "Rome")


def fact(**change: Any) -> Record:
    values = {name: getattr(CAPITAL, name) for name in Record.__dataclass_fields__}
    return Record(**(values | change))


def test_a_case_by_hand() -> None:
    cases = make_cases([CAPITAL], word_tokenizer())
    assert list(cases) == [
        Case((3, 4, 5, 6, 7), (3, 4), 8, 9, 7, relation_id="P36", prompt="The capital of France is")
    ]
    assert cases.funnel == {
        "records": 1,
        "subject_in_prompt": 1,
        "single_token": 1,
        "different_objects": 1,
        "subject_tokens": 1,
    }
    assert not cases.dropped
    assert [(case.true, case.foil) for case in cases] == [("Paris", "Rome")]


REASONS = {
    "subject_empty": {"subject": " "},
    "subject_not_in_prompt": {"prompt": "The capital is"},
    "subject_repeated": {"prompt": "France and the capital of {} is"},
    "true_not_single_token": {"target_true": "Paris Rome"},
    "no_foil": {"target_new": ""},
    "foil_not_single_token": {"target_new": "Timbuktu"},
    "same_object": {"target_new": "Paris"},
    "subject_merged": {"prompt": "The capital of {}, is"},
    "subject_is_final": {"prompt": "Rome and {}"},
}


@pytest.mark.parametrize(("reason", "change"), REASONS.items())
def test_every_drop_reason(reason: str, change: dict[str, str]) -> None:
    cases = make_cases([fact(**change)], gluing_tokenizer("France,"))
    assert (len(cases), dict(cases.dropped)) == (0, {reason: 1})


@pytest.mark.parametrize("reason", ["no_foil", "foil_not_single_token", "same_object"])
def test_an_optional_foil_drops_no_record(reason: str) -> None:
    records = [fact(case_id=0), fact(case_id=1, **REASONS[reason])]
    assert dict(make_cases(records, word_tokenizer()).dropped) == {reason: 1}
    cases = make_cases(records, word_tokenizer(), foils="optional")
    assert [(case.case_id, case.true_id, case.foil_id, case.foil) for case in cases] == [
        (0, 8, 9, "Rome"), (1, 8, None, ""),
    ]  # fmt: skip
    assert not cases.dropped
    assert set(cases.funnel.values()) == {2}
    with pytest.raises(ArgumentError, match="foils is 'some'; expected 'required' or 'optional'"):
        make_cases(records, word_tokenizer(), foils="some")


@pytest.mark.parametrize(
    ("reason", "change"),
    [item for item in REASONS.items() if item[0] not in ("no_foil", "foil_not_single_token", "same_object")],
)
def test_an_optional_foil_changes_no_other_filter(reason: str, change: dict[str, str]) -> None:
    cases = make_cases([fact(**change)], gluing_tokenizer("France,"), foils="optional")
    assert (len(cases), dict(cases.dropped)) == (0, {reason: 1})


def test_objects_of_several_tokens_are_kept_where_asked_for() -> None:
    records = [
        fact(case_id=0),
        fact(case_id=1, target_true="Paris Rome"),
        fact(case_id=2, target_true="Paris Rome", target_new="Paris France"),
        fact(case_id=3, target_true="Paris Rome", target_new="Paris Rome"),
        fact(case_id=4, target_true="Timbuktu"),
        fact(case_id=5, target_new="Rome Timbuktu"),
        fact(case_id=6, target_new=""),
    ]
    cases = make_cases(records, word_tokenizer(), objects="several_tokens")
    assert [(case.case_id, case.true_ids, case.foil_ids) for case in cases] == [
        (0, (8,), (9,)), (1, (8, 9), (9,)), (2, (8, 9), (8, 6)),
    ]  # fmt: skip
    assert dict(cases.dropped) == {
        "same_object": 1, "true_not_tokens": 1, "foil_not_tokens": 1, "no_foil": 1,
    }  # fmt: skip
    assert list(cases.funnel)[2] == "object_tokens"
    assert cases[:1] == make_cases(records[:1], word_tokenizer())
    with pytest.raises(ArgumentError, match="objects is 'any'; expected 'single_token' or 'several_tokens'"):
        make_cases(records, word_tokenizer(), objects="any")


def test_funnel_and_reasons_add_up_and_order_is_kept() -> None:
    records = [
        fact(case_id=i, **change) for i, change in enumerate([{}, *REASONS.values(), {"subject": "Lyon"}])
    ]
    cases = make_cases(records, gluing_tokenizer("France,"))
    assert [case.case_id for case in cases] == [0, 10]
    assert cases.record_indices == (0, 10)
    assert cases.n_records == 11
    assert list(cases.funnel.values()) == [11, 8, 5, 4, 2]
    assert cases.dropped == dict.fromkeys(REASONS, 1)


def test_a_final_subject_can_be_kept() -> None:
    (case,) = make_cases([fact(prompt="Rome and {}")], word_tokenizer(), final_subject="keep")
    assert case.subject == (2, 3)
    assert len(case.input_ids) == 3


@pytest.mark.parametrize(
    ("template", "start"),
    [("$A", ()), ("<s> $A", (1,)), ("<s> $A </s>", (1,)), ("<s> <s> $A </s>", (1, 1)), ("$A </s>", ())],
)
def test_what_starts_text_is_kept_and_what_ends_it_is_not(template: str, start: tuple[int, ...]) -> None:
    tokenizer = word_tokenizer(template=template)
    (case,) = make_cases([CAPITAL], tokenizer)
    assert case.input_ids == (*start, 3, 4, 5, 6, 7)
    assert case.subject == (3 + len(start), 4 + len(start))
    (bare,) = make_cases([CAPITAL], tokenizer, add_special_tokens=False)
    assert (bare.input_ids, bare.subject) == ((3, 4, 5, 6, 7), (3, 4))


def test_spaces_at_the_end_of_a_prompt_do_not_reach_the_object() -> None:
    spaced = fact(
        prompt=" The capital of {} is ", subject=" France", target_true=" Paris", target_new=" Rome"
    )
    assert make_cases([spaced], word_tokenizer()) == make_cases([CAPITAL], word_tokenizer())


def test_a_tokenizer_that_changes_the_text() -> None:
    (case,) = make_cases([CAPITAL], lower_casing_tokenizer())
    assert case.subject == (3, 4)


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_without_offsets_the_cases_are_the_same(
    name: str, tokenizers: dict[str, PreTrainedTokenizerFast], counterfact: Records
) -> None:
    records = counterfact[::60]
    fast, slow = (
        make_cases(records, tokenizer) for tokenizer in (tokenizers[name], Decoding(tokenizers[name]))
    )
    assert len(fast) > 100
    assert slow == fast
    assert (slow.funnel, slow.dropped) == (fast.funnel, fast.dropped)


def test_what_load_records_takes_is_taken() -> None:
    rows = load_records([CAPITAL]).frame()
    assert make_cases(rows, word_tokenizer()) == make_cases([CAPITAL], word_tokenizer())
    assert make_cases(rows.to_dict("records"), word_tokenizer()) == make_cases([CAPITAL], word_tokenizer())


def test_a_foil_of_the_same_relation() -> None:
    objects = ["Paris", "Rome", "Lyon", "Asia"]
    facts = [
        Record(i, "P36", "The capital of {} is", subject, true, "")
        for i, (subject, true) in enumerate(zip(["France", "Vinson", "Zola", "Thai"], objects, strict=True))
    ]
    facts += [
        Record(
            20, "P36", "The capital of {} is", "France", "Lyon"
        ),  # a second capital: no foil for the first
        Record(21, "P36", "The capital of {} is", "Massif", "Ouagadougou"),  # not a token: no foil for any
        Record(22, "P37", "{} speaks", "Zola", "French"),  # alone in its relation
    ]
    tokenizer = word_tokenizer()
    cases = make_cases(facts, tokenizer, foil="relation")
    foils = {case.case_id: tokenizer.convert_ids_to_tokens(case.foil_id) for case in cases}
    assert set(foils) == {0, 1, 2, 3, 20}
    assert foils[0] in ("Rome", "Asia")
    assert foils[20] in ("Rome", "Asia")
    assert all(foil in objects for foil in foils.values())
    assert cases.dropped == {"true_not_single_token": 1, "no_foil": 1}
    assert make_cases(facts, tokenizer, foil="relation", seed=0) == cases
    assert {make_cases(facts, tokenizer, foil="relation", seed=seed)[1].foil_id for seed in range(30)} == {
        8,
        10,
        19,
    }
    backwards = make_cases(facts[::-1], tokenizer, foil="relation")
    assert sorted(backwards, key=lambda case: case.case_id) == list(cases)


def test_a_foil_of_the_users_own() -> None:
    foils = {7: " Lyon ", 8: None}
    records = [CAPITAL, fact(case_id=8)]
    cases = make_cases(records, word_tokenizer(), foil=lambda record: foils[record.case_id])
    assert [(case.case_id, case.foil_id) for case in cases] == [(7, 10)]
    assert cases.dropped == {"no_foil": 1}


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match="final_subject is 'refuse'"):
        make_cases([CAPITAL], word_tokenizer(), final_subject="refuse")
    with pytest.raises(ArgumentError, match="foil is 'random'"):
        make_cases([CAPITAL], word_tokenizer(), foil="random")


def test_bad_records() -> None:
    with pytest.raises(NoCasesError):
        make_cases([], word_tokenizer())
    with pytest.raises(RecordError, match="record 0 lacks the field subject"):
        make_cases([{"prompt": "x", "target_true": "y"}], word_tokenizer())
    with pytest.raises(DuplicateCaseError, match="case id 7 appears twice"):
        make_cases([CAPITAL, fact(subject="Lyon")], word_tokenizer())


@pytest.mark.parametrize("tokenizer", [None, "gpt2", lambda texts: [], len])
def test_what_is_no_tokenizer(tokenizer: object) -> None:
    with pytest.raises(TokenizerError, match="can't be called as a tokenizer"):
        make_cases([CAPITAL], tokenizer)


def test_a_tokenizer_whose_special_tokens_lie_within_the_text() -> None:
    class Changing(Decoding):
        def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
            rows = super().__call__(texts, False)["input_ids"]
            return {
                "input_ids": [[token + 1 for token in row] for row in rows] if add_special_tokens else rows
            }

    with pytest.raises(TokenizerError, match="differently with special tokens than without"):
        make_cases([CAPITAL], Changing(word_tokenizer()))


def test_the_small_real_model_gets_every_fact_it_knows(shared: Path, counterfact: Records) -> None:
    import json

    folder = shared / "models" / "factmoe"
    known = set(json.loads((folder / "known_case_ids.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    records = [record for record in counterfact if record.case_id in known]
    cases = make_cases(records, tokenizer)
    assert [case.case_id for case in cases] == sorted(known)
    validate_cases(cases, json.loads((folder / "config.json").read_text())["vocab_size"])
    for case, record in zip(cases, records, strict=True):
        assert tokenizer.decode(case.input_ids) == case.prompt
        assert tokenizer.decode(case.true_id) == f" {record.target_true}"
        assert tokenizer.decode(case.foil_id) == f" {record.target_new}"
        assert tokenizer.decode(case.input_ids[slice(*case.subject)]).strip().startswith(record.subject)
