"""How results look in a notebook, and what labels of tables and pictures say. Text from data is escaped.

A label says what was computed: the interval's level and kind, the test, the correction and over how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from moetrace.arguments import shown
from moetrace.errors import ArgumentError

LEVEL = 0.05  # below which a test is marked
_ROWS = 20  # of a table in a notebook
_CORRECTIONS = {
    "max_t": "max-T",
    "max_t_single": "single-step max-T",
    "holm": "Holm",
    "bh": "Benjamini-Hochberg",
}
_LONGEST = 60


def result_html(
    title: str, table: pd.DataFrame, failed: pd.DataFrame | None = None, notes: Sequence[str] = ()
) -> str:
    """A heading, a table, what a reader should know beside it, and which cases fell out.

    Of a long table the rows with the highest ``mean`` are shown, in their order, or the first ones.
    """
    remarks = list(notes)
    if len(table) > _ROWS:
        which = "first ones"
        shortened = table.head(_ROWS)
        if "mean" in table:
            which = "ones with the highest mean"
            shortened = table.iloc[np.sort(np.argsort(-table["mean"].to_numpy(), kind="stable")[:_ROWS])]
        remarks.insert(0, f"{_ROWS} of {len(table)} rows, the {which}; .summary() or .rows has all.")
        table = shortened
    parts = [f"<p><b>{_html(title)}</b></p>"]
    parts.append(table.to_html(index=False, float_format="%.4g", escape=True, border=0))
    parts += [f"<p>{_html(remark)}</p>" for remark in remarks]
    if failed is not None and len(failed):
        ids = ", ".join(map(str, failed.case_id.tolist()[:20]))
        parts.append(f"<p>{len(failed)} cases left out (non-finite logits): {_html(ids)}</p>")
    # Half of a surrogate pair can't be sent to a browser.
    return "\n".join(parts).encode("utf-8", "replace").decode()


def _html(text: str) -> str:
    return escape(text).replace("\n", " ")


def interval_label(ci: str = "percentile", confidence: float = 0.95, **others: Any) -> str:
    """ "95 % percentile interval", of the arguments of a summary."""
    clusters = ", clustered by relation" if others.get("cluster") else ""
    return f"{100 * confidence:.6g} % {ci} interval{clusters}"


def correction_label(count: int, things: str, correction: str | None = None, **others: Any) -> str:
    """Which correction, over what: "max-T over 24 layers"."""
    if correction is None:
        return f"uncorrected for {count} {things}" if count > 1 else "uncorrected"
    of_means = " of means" if others.get("statistic") == "mean" and correction.startswith("max_t") else ""
    return f"{_CORRECTIONS[correction]}{of_means} over {count} {things}"


def tested_label(count: int, things: str, **options: Any) -> str:
    """What a marked point passed: "sign-flip p < 0.05, max-T over 24 layers"."""
    return f"sign-flip p < {LEVEL}, {correction_label(count, things, **options)}"


def table_note(count: int, things: str, **options: Any) -> str:
    """What intervals and p-values of a table are."""
    test = "sign-flip p_value"
    if options.get("correction") is not None:
        test = "sign-flip p_value uncorrected, p_adjusted"
    return f"{interval_label(**options)}s; {test} {correction_label(count, things, **options)}."


def sites_html(trace: Any, things: str) -> str:
    """A trace for notebooks by all of its sites, tested with a correction where there are cases enough."""
    if len(trace) < 2:
        return result_html(repr(trace), trace.summary(), trace.failed)
    note = table_note(len(trace.sites), things, correction="max_t")
    return result_html(repr(trace), trace.summary(correction="max_t"), trace.failed, [note])


def expert_notes(shown: int, found: int, **options: Any) -> list[str]:
    """What a table of the best experts doesn't tell by itself: that they were chosen by what it shows."""
    return [
        f"The {shown} with the highest mean over the cases where they are clean-active, of {found} experts "
        "ever clean-active. They were chosen on these very cases: p_adjusted accounts for that, p_value and "
        "the intervals don't. Test one on other cases: held.specificity(star). In the table a case counts as "
        "0 where the expert is inactive.",
        table_note(found, "experts", **options),
    ]


def refuse_groups(
    options: Mapping[str, Any],
    what: str = "a picture shows all cases together",
    instead: str = ".summary(by=...)",
) -> None:
    """ArgumentError for a summary by groups: it has several rows for what is one mark, or row, here."""
    if options.get("by") is not None:
        raise ArgumentError(f"by is {shown(options['by'])}; {what}: use {instead}")


def plain(text: Any) -> str:
    """Text for a picture: one line, not too long, and never read as mathematics."""
    shown = "".join(mark if mark.isprintable() else " " for mark in str(text))
    return (shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…").replace("$", r"\$")
