from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from moetrace.cases import Case, CaseSet, validate_cases
from moetrace.errors import (
    ArgumentError,
    CaseError,
    DuplicateCaseError,
    NoCasesError,
    SameObjectError,
    SubjectSpanError,
    TokenIdError,
)

GOOD = Case([5, 6, 7, 8], (1, 3), 9, 10, 42)


@pytest.mark.parametrize(
    "ids", [[5, 6, 7, 8], np.array([5, 6, 7, 8]), torch.tensor([5, 6, 7, 8]), range(5, 9)]
)
def test_token_ids_of_any_kind_become_a_tuple_of_ints(ids: object) -> None:
    case = Case(ids, [np.int64(1), 3], torch.tensor(9), np.int32(10), np.int64(42))
    assert case == GOOD
    assert all(type(token) is int for token in (*case.input_ids, *case.subject, case.true_id, case.case_id))
    assert hash(case) == hash(GOOD)


def test_positional_order_is_the_contract() -> None:
    names = [field.name for field in dataclasses.fields(Case)]
    assert names == [
        "input_ids", "subject", "true_id", "foil_id", "case_id", "relation_id", "prompt", "true", "foil",
        "true_more", "foil_more",
    ]  # fmt: skip


def test_a_case_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.true_id = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [1.5, 2]}, r"case 42: input_ids\[0\] is 1.5; expected an integer"),
        ({"input_ids": [[1, 2]]}, r"case 42: input_ids\[0\] is \[1, 2\]"),
        ({"input_ids": "abc"}, "flat row of integers"),
        ({"input_ids": 3}, "flat row of integers"),
        ({"input_ids": torch.tensor([[1, 2]])}, r"input_ids\[0\] is \[1, 2\]"),
        ({"subject": (1, 2, 3)}, "expected a pair"),
        ({"true_id": None}, "true_id is None"),
        ({"case_id": "x"}, "case_id is 'x'"),
    ],
)
def test_what_is_no_integer_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(CaseError, match=message):
        dataclasses.replace(GOOD, **change)


def test_construction_checks_no_span() -> None:
    assert dataclasses.replace(GOOD, subject=(7, 2)).subject == (7, 2)


def test_valid_cases_pass() -> None:
    validate_cases([GOOD], 11)
    validate_cases(CaseSet([GOOD]), 11)


def test_no_cases() -> None:
    with pytest.raises(NoCasesError, match="no cases"):
        validate_cases([], 11)


def test_a_repeated_case_id() -> None:
    with pytest.raises(DuplicateCaseError, match="case id 42 appears twice"):
        validate_cases([GOOD, GOOD], 11)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"subject": (1, 1)}, SubjectSpanError, "case 42: subject span (1, 1) is empty"),
        ({"subject": (2, 1)}, SubjectSpanError, "case 42: subject span (2, 1) is out of range"),
        ({"subject": (-1, 2)}, SubjectSpanError, "case 42: subject span (-1, 2) is out of range"),
        ({"subject": (1, 5)}, SubjectSpanError, "the prompt's 4 tokens"),
        ({"subject": (1, 4)}, SubjectSpanError, "case 42: subject span (1, 4) covers the final token"),
        ({"foil_id": 9}, SameObjectError, "case 42: true and foil object are both token 9"),
        ({"true_id": 11}, TokenIdError, "case 42: true_id is 11; expected 0 to 10"),
        ({"foil_id": -1}, TokenIdError, "case 42: foil_id is -1"),
        ({"input_ids": (5, 6, 99, 8)}, TokenIdError, "case 42: input_ids[2] is 99"),
        ({"input_ids": ()}, CaseError, "case 42: the prompt has no tokens"),
    ],
)
def test_each_bad_case_has_its_own_error(
    change: dict[str, object], error: type[CaseError], message: str
) -> None:
    bad = dataclasses.replace(GOOD, **change)
    other = dataclasses.replace(GOOD, case_id=1)
    with pytest.raises(error, match=re.escape(message)) as raised:
        validate_cases([other, bad], 11)
    assert raised.type is error


def test_a_final_subject_can_be_kept() -> None:
    validate_cases([dataclasses.replace(GOOD, subject=(1, 4))], 11, final_subject="keep")
    with pytest.raises(ArgumentError, match="final_subject is 'drop'"):
        validate_cases([GOOD], 11, final_subject="drop")
