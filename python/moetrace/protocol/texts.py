"""The cases as text, for people: decoded once, so that a report needs no tokenizer."""

from __future__ import annotations

from typing import Any

from moetrace.cases import Case, CaseSet


def texts_of(cases: CaseSet, tokenizer: Any) -> dict[int, dict[str, Any]]:
    """Case id -> prompt, tokens (a text each), true, foil and subject; ids as text without a tokenizer."""
    return {case.case_id: _text_of(case, tokenizer) for case in cases}


def _text_of(case: Case, tokenizer: Any) -> dict[str, Any]:
    def decoded(*ids: int) -> str:
        text = " ".join(f"<{i}>" for i in ids) if tokenizer is None else str(tokenizer.decode(list(ids)))
        return text.encode("utf-8", "replace").decode()

    return {
        "prompt": case.prompt or decoded(*case.input_ids),
        "tokens": [decoded(i) for i in case.input_ids],
        "true": decoded(case.true_id),
        "foil": decoded(case.foil_id),
        "subject": decoded(*case.input_ids[slice(*case.subject)]),
    }
