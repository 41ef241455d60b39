"""Which facts: the funnel from records to usable cases, and their relations."""

from __future__ import annotations

from collections import Counter
from typing import Any

from moetrace.report.parts import Section, counted, relation_text
from moetrace.report.source import Source

FILTERS = {
    "records": "records given",
    "subject_in_prompt": "subject found once in the prompt",
    "single_token": "both objects are single tokens",
    "different_objects": "true and foil object differ",
    "subject_tokens": "subject has tokens of its own",
    "scanned": "scanned by the model until enough were found",
    "finite": "finite logits",
    "clean_margin": "the model knows it (clean margin)",
    "noise_drop": "the noise takes it away (drop)",
}


def cases_section(source: Source) -> Section:
    """Funnel, halves and relations."""
    title = "The cases"
    usable = source.usable
    if not usable:
        return Section.without("cases", title, "The run holds no cases.")
    whole = source.case_set("usable")
    funnel = whole.funnel if whole is not None else {}
    dropped = dict(whole.dropped.most_common()) if whole is not None else {}
    sizes = {
        name: len(own) for name in ("discovery", "validation") if (own := source.case_set(name)) is not None
    }
    lead = [f"{counted(len(usable), 'case')} passed every filter."]
    if sizes:
        lead.append(
            "Layers and experts were selected on "
            + " and tested on ".join(f"{size} {name} cases" for name, size in sizes.items())
            + "."
        )
    relations = Counter(relation_text(case.relation_id) for case in usable)
    return Section(
        "cases", title, lead,
        extra={
            "funnel": _bars({FILTERS.get(name, name.replace("_", " ")): n for name, n in funnel.items()}),
            "relations": _bars(dict(relations.most_common())),
            "dropped": {FILTERS.get(name, name.replace("_", " ")): n for name, n in dropped.items()},
        },
    )  # fmt: skip


def _bars(counts: dict[str, int]) -> list[dict[str, Any]]:
    """Names and counts with the length of a bar in per cent."""
    most = max(counts.values(), default=0) or 1
    return [{"name": name, "count": n, "width": round(100 * n / most, 2)} for name, n in counts.items()]
