"""How results look in a notebook. Whatever comes from data is escaped."""

from __future__ import annotations

from html import escape

import pandas as pd


def result_html(title: str, summary: pd.DataFrame, failed: pd.DataFrame) -> str:
    """A heading, the summary table, and what fell out."""
    parts = [f"<p><b>{escape(title)}</b></p>", summary.to_html(index=False, float_format="%.4g", escape=True)]
    if len(failed):
        ids = ", ".join(map(str, failed.case_id.tolist()[:20]))
        parts.append(f"<p>{len(failed)} cases left out (non-finite logits): {escape(ids)}</p>")
    return "\n".join(parts)
