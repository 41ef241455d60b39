"""How a set of cases shows itself in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetrace.cases.case_set import CaseSet

SHOWN = 5


def case_set_html(cases: CaseSet) -> str:
    """Funnel, drop reasons and the first cases as HTML; all text escaped."""
    parts = [f"<b>CaseSet</b>: {len(cases):,} cases"]
    if cases.funnel:
        parts.append(_counts("left after", cases.funnel))
    if cases.dropped:
        parts.append(_counts("dropped for", dict(cases.dropped.most_common())))
    if len(cases):
        columns = ["case_id", "relation_id", "prompt", "n_tokens", "true_id", "foil_id"]
        parts.append(cases[:SHOWN].frame()[columns].to_html(index=False))
    return "<div>" + "<br>".join(parts) + "</div>"


def _counts(title: str, counts: dict[str, int]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in counts)
    cells = "".join(f"<td>{count:,}</td>" for count in counts.values())
    return f"<table><tr><th>{title}</th>{heads}</tr><tr><td></td>{cells}</tr></table>"
