"""One fact as token ids, and the checks that a set of them can be traced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from moetrace.errors import (
    ArgumentError,
    CaseError,
    DuplicateCaseError,
    NoCasesError,
    SameObjectError,
    SubjectSpanError,
    TokenIdError,
)


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, where its subject lies, and the two objects whose logits are compared.

    >>> Case([464, 3139, 286, 4881, 318], subject=(3, 4), true_id=6342, foil_id=10598, case_id=7)

    Building one needs no tokenizer and checks no span or id: :func:`validate_cases` does.

    Attributes:
        input_ids: Token ids of the prompt, as a tuple; a list, a numpy array or a 1-D tensor is taken too.
        subject: Half-open range of token positions, ``(start, stop)``, counted from the first token
            (a beginning-of-sequence token included).
        true_id: Token id of the true object, the token that should follow the prompt.
        foil_id: Token id of the false object. The metric is logit(true) - logit(foil) (equation 1).
        case_id: The case's own number. Its noise is drawn with seed ``noise seed + case_id`` (Table 2).
        relation_id: Relation of the fact, as ``"P103"``; groups of cases in tables and folds.
        prompt: The text, for people; tracing never reads it.

    Raises:
        CaseError: A field can't be read as integers.
    """

    input_ids: tuple[int, ...]
    subject: tuple[int, int]
    true_id: int
    foil_id: int
    case_id: int
    relation_id: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        case_id = _integer(self.case_id, "case_id", self.case_id)
        subject = _integers(self.subject, "subject", case_id)
        if len(subject) != 2:
            raise CaseError(
                f"case {case_id}: subject is {self.subject!r}; expected a pair (start, stop) of positions"
            )
        coerced: dict[str, Any] = {
            "case_id": case_id,
            "input_ids": _integers(self.input_ids, "input_ids", case_id),
            "subject": subject,
            "true_id": _integer(self.true_id, "true_id", case_id),
            "foil_id": _integer(self.foil_id, "foil_id", case_id),
            "relation_id": str(self.relation_id),
            "prompt": str(self.prompt),
        }
        for name, value in coerced.items():
            object.__setattr__(self, name, value)


def _integer(value: Any, name: str, case_id: Any) -> int:
    try:
        return index(value)
    except (TypeError, ValueError, RuntimeError):
        raise CaseError(f"case {case_id}: {name} is {value!r}; expected an integer") from None


def _integers(values: Any, name: str, case_id: int) -> tuple[int, ...]:
    # tolist() takes a tensor or an array over in one step and without importing either library.
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, str) or not isinstance(plain, Iterable):
        raise CaseError(f"case {case_id}: {name} is {values!r}; expected a flat row of integers")
    return tuple(_integer(value, f"{name}[{place}]", case_id) for place, value in enumerate(plain))


def validate_cases(
    cases: Sequence[Case], vocab_size: int, final_subject: Literal["refuse", "keep"] = "refuse"
) -> None:
    """Check that every case can be traced; silent where all is well.

    >>> validate_cases(cases, model.config.vocab_size)

    Args:
        cases: What is about to be traced.
        vocab_size: Rows of the model's embedding; ids run from 0 to ``vocab_size - 1``.
        final_subject: ``"keep"`` lets a subject cover the final token. The patched position is then
            itself a noised token, another contrast than the paper's: refused by default.

    Raises:
        NoCasesError: There are none.
        DuplicateCaseError: Two share a case id.
        SubjectSpanError: A subject span is empty, out of range, or covers the final token.
        SameObjectError: True and foil object are the same token.
        TokenIdError: A token id lies outside the vocabulary.
        CaseError: A prompt has no tokens.
        ArgumentError: ``final_subject`` is neither word.
    """
    if final_subject not in ("refuse", "keep"):
        raise ArgumentError(f'final_subject is {final_subject!r}; expected "refuse" or "keep"')
    if len(cases) == 0:
        raise NoCasesError(
            "there are no cases; expected at least one. The case set's .dropped says what became of them"
        )
    refuse_duplicates(cases)
    for case in cases:
        _check_span(case, final_subject)
        _check_objects(case)
        _check_ids(case, vocab_size)


def refuse_duplicates(cases: Iterable[Case]) -> None:
    """Raise DuplicateCaseError where two cases share an id: their noise and table rows would too."""
    seen: set[int] = set()
    for case in cases:
        if case.case_id in seen:
            raise DuplicateCaseError(
                f"case id {case.case_id} appears twice; expected ids that are unique within a case set,"
                " because noise is seeded and rows are named by them. Renumber the cases or drop one"
            )
        seen.add(case.case_id)


def fingerprint(cases: Iterable[Case]) -> str:
    """The digest of :meth:`CaseSet.fingerprint`."""
    digest = hashlib.sha256()
    for case in cases:
        row = [
            case.case_id,
            case.input_ids,
            case.subject,
            case.true_id,
            case.foil_id,
            case.relation_id,
            case.prompt,
        ]
        digest.update(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _check_span(case: Case, final_subject: str) -> None:
    start, stop = case.subject
    length = len(case.input_ids)
    if length == 0:
        raise CaseError(f"case {case.case_id}: the prompt has no tokens; expected at least two")
    if not 0 <= start <= stop <= length:
        raise SubjectSpanError(
            f"case {case.case_id}: subject span ({start}, {stop}) is out of range; expected"
            f" 0 <= start < stop within the prompt's {length} tokens"
        )
    if start == stop:
        raise SubjectSpanError(
            f"case {case.case_id}: subject span ({start}, {stop}) is empty; expected at least one token"
        )
    if stop == length and final_subject == "refuse":
        raise SubjectSpanError(
            f"case {case.case_id}: subject span ({start}, {stop}) covers the final token of {length}, where"
            ' patches go; drop the case, or pass final_subject="keep" if patching a noised token is meant'
        )


def _check_objects(case: Case) -> None:
    if case.true_id == case.foil_id:
        raise SameObjectError(
            f"case {case.case_id}: true and foil object are both token {case.true_id}; expected two tokens,"
            " since the logit difference of one is always 0"
        )


def _check_ids(case: Case, vocab_size: int) -> None:
    named = [(f"input_ids[{place}]", token) for place, token in enumerate(case.input_ids)]
    for name, token in [*named, ("true_id", case.true_id), ("foil_id", case.foil_id)]:
        if not 0 <= token < vocab_size:
            raise TokenIdError(
                f"case {case.case_id}: {name} is {token}; expected 0 to {vocab_size - 1}, the model's"
                " vocabulary. Was the case made with this model's tokenizer?"
            )
