"""The cases as text, for people: decoded once, so that a report needs no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moetrace.cases import Case, CaseSet


def texts_of(cases: CaseSet, tokenizer: Any) -> dict[int, dict[str, Any]]:
    """Case id -> prompt, tokens (a text each), true, foil and subject; ids as text without a tokenizer."""
    return {case.case_id: _text_of(case, tokenizer) for case in cases}


def _pieces(ids: Sequence[int], decoded: Callable[..., str]) -> list[str]:
    """The text that each token adds; a character of several tokens stands at the last of them."""
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        after = decoded(*ids[:end])
        if end < len(ids):
            after = after.rstrip("\ufffd")
        fits = after.startswith(before)
        pieces.append(after[len(before) :] if fits else decoded(ids[end - 1]))
        before = after
    return pieces


def _text_of(case: Case, tokenizer: Any) -> dict[str, Any]:
    def decoded(*ids: int) -> str:
        text = " ".join(f"<{i}>" for i in ids) if tokenizer is None else str(tokenizer.decode(list(ids)))
        return text.encode("utf-8", "replace").decode()

    return {
        "prompt": case.prompt or decoded(*case.input_ids),
        "tokens": _pieces(case.input_ids, decoded),
        "true": decoded(case.true_id),
        "foil": "" if case.foil_id is None else decoded(case.foil_id),
        "subject": decoded(*case.input_ids[slice(*case.subject)]),
    }
