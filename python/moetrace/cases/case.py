"""One fact as token ids, and the checks that a set of them can be traced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal

from moetrace.arguments import as_choice, as_list, is_integer, shown
from moetrace.cases.layouts import is_null
from moetrace.errors import (
    ArgumentError,
    CaseError,
    DuplicateCaseError,
    NoCasesError,
    PromptLengthError,
    SameObjectError,
    SubjectSpanError,
    TokenIdError,
)

KEYS = ("case_id", "relation_id")
TEXTS = ("true", "foil")
MORE = ("true_more", "foil_more")


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, where its subject lies, and the two objects whose logits are compared.

    >>> Case([464, 3139, 286, 4881, 318], subject=(3, 4), true_id=6342, foil_id=10598, case_id=7)

    Building one needs no tokenizer and checks no span or id: :func:`validate_cases` does.

    Attributes:
        input_ids: Token ids of the prompt, as a tuple; a list, a numpy array or a 1-D tensor is taken too.
        subject: Half-open range of token positions, ``(start, stop)``, counted from the first token
            (a beginning-of-sequence token included).
        true_id: Token id of the true object, the token that should follow the prompt. A row of ids is an
            object of several tokens: this is then the first, and the others are ``true_more``.
        foil_id: Token id of the false object. The paper's metric is logit(true) - logit(foil) (equation 1);
            None where there is none, for metrics of the true object alone. A row of ids as in ``true_id``.
        case_id: The case's own number. Its noise is drawn with seed ``noise seed + case_id`` (Table 2).
        relation_id: Relation of the fact, as ``"P103"``; groups of cases in tables and folds. None and a
            missing value of a table are no relation, "".
        prompt: The text, for people; tracing never reads it.
        true: The true object as text, for people; "" where it isn't known. Two cases are equal, and have one
            fingerprint, whatever these two say: the ids decide.
        foil: The false object as text.
        true_more: The true object's tokens behind its first; none in the paper. With some, in either object,
            metrics are of sums of log-probabilities under teacher forcing (:mod:`moetrace.metrics`).
        foil_more: The same of the false object.

    Raises:
        CaseError: A field can't be read as integers, or as text.
    """

    input_ids: tuple[int, ...]
    subject: tuple[int, int]
    true_id: int
    foil_id: int | None = None
    case_id: int = None  # type: ignore[assignment]  # it must be given
    relation_id: str = ""
    prompt: str = ""
    true: str = field(default="", compare=False)
    foil: str = field(default="", compare=False)
    true_more: tuple[int, ...] = ()
    foil_more: tuple[int, ...] = ()

    @property
    def several_tokens(self) -> bool:
        """Whether an object has more tokens than one."""
        return bool(self.true_more or self.foil_more)

    @property
    def true_ids(self) -> tuple[int, ...]:
        """All tokens of the true object."""
        return (self.true_id, *self.true_more)

    @property
    def foil_ids(self) -> tuple[int, ...] | None:
        """All tokens of the false object; None where there is none."""
        return None if self.foil_id is None else (self.foil_id, *self.foil_more)

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
            **_object(self.true_id, self.true_more, "true", case_id),
            **_object(self.foil_id, self.foil_more, "foil", case_id),
            "relation_id": _text(self.relation_id, "relation_id", case_id),
            **{name: _text(getattr(self, name), name, case_id) for name in ("prompt", "true", "foil")},
        }
        for name, value in coerced.items():
            object.__setattr__(self, name, value)


def _is_missing(value: Any) -> bool:
    """What a table has in the place of nothing; arrays are something."""
    return not hasattr(value, "__len__") and is_null(value)


def _integer(value: Any, name: str, case_id: Any) -> int:
    number = index(value) if is_integer(value) else None
    # Ids are kept as int64 in files and tables, and noise is seeded by them.
    if number is None or not -(2**63) <= number < 2**63:
        raise CaseError(f"case {shown(case_id)}: {name} is {shown(value)}; expected an integer of 64 bits")
    return number


def _integers(values: Any, name: str, case_id: int) -> tuple[int, ...]:
    expected = "a flat row of integers"
    try:
        plain = as_list(values, name, expected)
    except ArgumentError as failure:
        raise CaseError(f"case {case_id}: {failure}") from None
    return tuple(_integer(value, f"{name}[{place}]", case_id) for place, value in enumerate(plain))


def _object(first: Any, more: Any, name: str, case_id: int) -> dict[str, Any]:
    """An object's fields: its first token and the others."""
    others = _integers(more, f"{name}_more", case_id)
    if name == "foil" and _is_missing(first):
        if others:
            raise CaseError(f"case {case_id}: foil_more is {shown(more)}, and there is no foil_id")
        return {"foil_id": None, "foil_more": ()}
    if isinstance(first, str) or not hasattr(first, "__len__") or getattr(first, "shape", None) == ():
        return {f"{name}_id": _integer(first, f"{name}_id", case_id), f"{name}_more": others}
    tokens = _integers(first, f"{name}_id", case_id)
    if not tokens or others:
        what = "an empty row" if not tokens else f"a row, and {name}_more is {shown(more)} beside it"
        raise CaseError(f"case {case_id}: {name}_id is {what}; expected a token id, or all of the object's")
    return {f"{name}_id": tokens[0], f"{name}_more": tokens[1:]}


def _text(value: Any, name: str, case_id: int) -> str:
    if _is_missing(value):
        return ""
    if not isinstance(value, str) and not is_integer(value):
        raise CaseError(f"case {case_id}: {name} is {shown(value)}; expected a text")
    text = str(value)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise CaseError(f"case {case_id}: {name} holds half a character (a lone surrogate); expected text")
    return text


def case_columns(cases: Iterable[Case]) -> dict[str, list[Any]]:
    """What tables of results say of each case: case_id, relation_id and, where any is known, true and foil.

    >>> pd.DataFrame(case_columns(cases))
    """
    held = list(cases)
    known = any(case.true or case.foil for case in held)
    return {name: [getattr(case, name) for case in held] for name in (*KEYS, *(TEXTS if known else ()))}


def case_keys(columns: Iterable[str]) -> list[str]:
    """Of a table's columns those that say which case a row is of: the ones of :func:`case_columns`.

    >>> rows = cases[case_keys(cases)]
    """
    there = set(columns)
    return [name for name in (*KEYS, *TEXTS) if name in there]


def validate_cases(
    cases: Sequence[Case],
    vocab_size: int,
    final_subject: Literal["refuse", "keep"] = "refuse",
    positions: int | None = None,
) -> None:
    """Check that every case can be traced; silent where all is well.

    >>> validate_cases(cases, model.config.vocab_size)

    Args:
        cases: What is about to be traced.
        vocab_size: Rows of the model's embedding; ids run from 0 to ``vocab_size - 1``.
        final_subject: ``"keep"`` lets a subject cover the final token. The patched position is then
            itself a noised token, another contrast than the paper's: refused by default.
        positions: Tokens of the longest prompt that the model takes; None for any.

    Raises:
        NoCasesError: There are none.
        DuplicateCaseError: Two share a case id.
        SubjectSpanError: A subject span is empty, out of range, or covers the final token.
        SameObjectError: True and foil object are the same.
        TokenIdError: A token id lies outside the vocabulary.
        PromptLengthError: A prompt has more tokens than the model has positions.
        CaseError: A prompt has no tokens.
        ArgumentError: ``final_subject`` is neither word.
    """
    as_choice(final_subject, "final_subject", ("refuse", "keep"))
    if len(cases) == 0:
        raise NoCasesError(
            "there are no cases; expected at least one. The case set's .dropped says what became of them"
        )
    refuse_duplicates(cases)
    for case in cases:
        _check_span(case, final_subject)
        forced = max(len(case.true_more), len(case.foil_more))
        if positions is not None and len(case.input_ids) + forced > positions:
            objects = f" and its longest object {1 + forced}" if forced else ""
            raise PromptLengthError(
                f"case {case.case_id}: the prompt has {len(case.input_ids)} tokens{objects}; expected at "
                f"most {positions}, the positions that the model has. Drop the case: run_protocol does so"
            )
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


def refuse_several_tokens(cases: Iterable[Case], what: str) -> None:
    """Raise CaseError where an object has several tokens, for what reads single ones alone.

    >>> refuse_several_tokens(cases, "screen_experts")
    """
    held = list(cases)
    longer = [case.case_id for case in held if case.several_tokens]
    if longer:
        raise CaseError(
            f"{what} reads objects of one token, and {len(longer)} of {len(held)} cases have objects of "
            f"several: case ids {longer[:20]}; expected single tokens, as make_cases keeps by default. "
            "Traces of layers, experts, coalitions, routes and knock-outs take several"
        )


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
            *([case.true_more, case.foil_more] if case.several_tokens else []),
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
    if case.true_ids == case.foil_ids:
        token = f"token {case.true_id}" if not case.true_more else f"tokens {list(case.true_ids)}"
        raise SameObjectError(
            f"case {case.case_id}: true and foil object are both {token}; expected two objects,"
            " since the logit difference of one is always 0"
        )


def _check_ids(case: Case, vocab_size: int) -> None:
    named = [(f"input_ids[{place}]", token) for place, token in enumerate(case.input_ids)]
    foil = [] if case.foil_id is None else [("foil_id", case.foil_id)]
    more = [
        (f"{name}[{at}]", token)
        for name in ("true_more", "foil_more")
        for at, token in enumerate(getattr(case, name))
    ]
    for name, token in [*named, ("true_id", case.true_id), *foil, *more]:
        if not 0 <= token < vocab_size:
            raise TokenIdError(
                f"case {case.case_id}: {name} is {token}; expected 0 to {vocab_size - 1}, the model's"
                " vocabulary. Was the case made with this model's tokenizer?"
            )
