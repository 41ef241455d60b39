"""Whether it holds elsewhere: other noise scales, other splits, other relations."""

from __future__ import annotations

from typing import Any

import pandas as pd

from moetrace.report.embed import floats
from moetrace.report.parts import Section, Table, counted, number
from moetrace.report.source import Source

COLUMNS = ("seed", "min_active", "star", "recurrence", "rescue", "specificity", "active", "n")


def checks_section(source: Source) -> Section:
    """Noise scales, stability and held-out relations: those that were done, and which weren't."""
    title = "Does it hold elsewhere"
    scales, stable, held = source.trace("scales"), source.get("stability"), source.get("held_out")
    lead, tables, missing = [], [], []
    data: dict[str, Any] = {}
    caption = label = ""
    if stable is not None:
        modal = stable.modal
        lead.append(
            f"Selected anew in {counted(len(stable), 'setting')} of split and recurrence, "
            + (f"{modal} is chosen in {stable.modal_count}" if modal is not None else "no expert is chosen")
            + f"; mean rescue on the other half {number(stable.mean_rescue, sign=True)} logits."
        )
        rows = stable.rows
        tables.append(Table.of(rows[[name for name in COLUMNS if name in rows]], "Selection on other splits"))
    else:
        missing.append("selection on other splits")
    if held is not None:
        tables.append(
            Table.of(
                _frame(held, source.statistics), "Experts selected on other relations than they are tested on"
            )
        )
    else:
        missing.append("held-out relations")
    if scales is not None and len(scales):
        expert = scales.table("expert", **source.statistics)
        data = {"star": scales.star if hasattr(scales, "star") else str(scales.provenance["star"])}
        data |= {patch: _line(scales.table(patch, **source.statistics)) for patch in ("expert", "block")}
        data["floor"] = scales.noise_floor
        tables.append(Table.of(expert, f"{data['star']} by noise scale, in logits; sign-flip p, uncorrected"))
        label = "Line chart of mean rescue in logits by noise scale"
        caption = (
            f"Mean rescue of {data['star']} and of its whole block when the subject is noised more or less, "
            f"{counted(len(scales), 'case')}; nothing is selected anew. Bands: {source.interval}s. The "
            "scale is in standard deviations of the embedding; tests in the table, uncorrected."
        )
    else:
        missing.append("noise scales")
    if not tables:
        return Section.without("checks", title, f"Not in this run: {', '.join(missing)}.")
    if missing:
        lead.append(f"Not in this run: {', '.join(missing)}.")
    return Section("checks", title, lead, caption, label, tables, data)


def _line(table: pd.DataFrame) -> dict[str, Any]:
    own = table.sort_values("scale", ignore_index=True)
    names = {"scale": "scale", "mean": "mean", "low": "ci_low", "high": "ci_high", "drop": "drop"}
    return {short: floats(own[name]) for short, name in names.items()}


def _frame(result: Any, statistics: dict[str, Any]) -> pd.DataFrame:
    """The table of a result: its summary, or its rows."""
    found = result.summary(**statistics) if hasattr(result, "summary") else getattr(result, "rows", result)
    return found if isinstance(found, pd.DataFrame) else pd.DataFrame(found)
