"""How a set of cases shows itself in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5
COLUMNS = ["case_id", "relation_id", "prompt", "n_tokens"]
IDS, TEXTS = ["true_id", "foil_id"], ["true", "foil"]


def case_set_html(first: pd.DataFrame, n: int, funnel: Mapping[str, int], dropped: Counter[str]) -> str:
    """Funnel, drop reasons and the first of ``n`` cases as HTML; all text escaped."""
    parts = [f"<b>CaseSet</b>: {n:,} cases"]
    if funnel:
        parts.append(_counts("left after", funnel))
    if dropped:
        parts.append(_counts("dropped for", dict(dropped.most_common())))
    if n:
        known = set(TEXTS) <= set(first) and first[TEXTS].ne("").all(axis=None)
        parts.append(first[COLUMNS + (TEXTS if known else IDS)].to_html(index=False))
    return "<div>" + "<br>".join(parts) + "</div>"


def _counts(title: str, counts: Mapping[str, int]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in counts)
    cells = "".join(f"<td>{count:,}</td>" for count in counts.values())
    return f"<table><tr><th>{title}</th>{heads}</tr><tr><td></td>{cells}</tr></table>"
