"""The selected expert against its controls: case by case, with equal gate weight, and at equal norm."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from moetrace.errors import MoetraceError
from moetrace.report.embed import floats
from moetrace.report.parts import Section, Table, counted, interval, number, p_text, relation_text
from moetrace.report.source import Source, direct_of
from moetrace.results.comparisons import Specificity
from moetrace.results.controls import FewControlsWarning
from moetrace.results.experts import ExpertTrace

TITLE = "The selected expert against its controls"


def specificity_of(source: Source) -> tuple[str, ExpertTrace, Specificity] | str:
    """Half, trace and contrast of the selected expert, or why there is none."""
    star = source.star
    if star is None:
        return "The run selected no expert."
    for half, trace in source.experts().items():
        if star.layer in trace.layers:
            options = {
                "controls": source.setting("controls", "auto"),
                "seed": source.setting("controls_seed", source.setting("seed", 0)),
            }
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FewControlsWarning)  # the text names those cases
                    return half, trace, trace.specificity(star, **options)
            except MoetraceError as failure:
                return f"{star} can't be compared: {failure}."
    return f"The run holds no expert trace of layer {star.layer}, where {star} is."


def controls_section(source: Source) -> Section:
    """Paired rescues of every case, or why there are none."""
    found = specificity_of(source)
    if isinstance(found, str):
        return Section.without("controls", TITLE, found)
    half, trace, contrast = found
    rows, star = contrast.rows, contrast.star
    summary = contrast.summary(**source.statistics)
    own = summary.set_index("quantity").loc["specificity"]
    active = int(rows.clean_active.sum())
    relative = "less" if contrast.mean < 0 else "more"
    lead = [
        f"{star} is taken by the router of the clean run in {active} of "
        f"{counted(len(rows), f'{half} case')}. On average it restores {number(abs(contrast.mean))} logits "
        f"{relative} than other active experts of its layer (difference {number(contrast.mean, sign=True)}, "
        f"{interval(own.ci_low, own.ci_high)}; two-sided sign-flip test, {p_text(own.p_value)}, "
        f"{_fixed(half)}), and more than they in {100 * contrast.positive_fraction:.0f} % of the cases.",
    ]
    if len(contrast.short_cases):
        without = int((contrast.short_cases.used == 0).sum())
        lead.append(
            f"{counted(len(contrast.short_cases), 'case')} had fewer than {contrast.controls} other active "
            f"experts to compare with; {without} had none and are left out."
        )
    caption = (
        f"Every {half} case, sorted by the difference: the rescue of {star} (blue) and the mean rescue of up "
        f"to {contrast.controls} other clean-active experts of layer {star.layer}, drawn at random (grey, "
        f"seed {contrast.seed}). Where the router doesn't take {star}, its rescue is 0. Hover for the fact; "
        "select a mark to open the case below."
    )
    tables = [
        Table.of(summary, f"{star} and its controls in logits; {source.interval}s; sign-flip p, uncorrected")
    ]
    matched, matched_table = _matched(source)
    direct = _direct(trace, source)
    return Section(
        "controls", TITLE, lead, caption,
        f"Paired chart of the rescue of {star} and of its controls in {len(rows)} cases",
        [*tables, *matched_table, Table.of(_paired(rows), f"Case by case, in logits ({half})")],
        {"star": str(star), **_pairs(rows), "matched": matched},
        {"matched": matched_caption(source) if matched else "", "direct": direct},
    )  # fmt: skip


def _fixed(half: str) -> str:
    """What the test may claim."""
    if half == "validation":
        return "one hypothesis, fixed before these cases were looked at"
    return "on the very cases that selected it, which the test doesn't account for"


def _pairs(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "case": rows.case_id.tolist(),
        "relation": [relation_text(relation) for relation in rows.relation_id],
        "rescue": floats(rows.star_rescue),
        "control": floats(rows.control_rescue),
        "active": rows.clean_active.tolist(),
    }


def _paired(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[
        ["case_id", "relation_id", "clean_active", "star_rescue", "control_rescue", "specificity", "controls"]
    ].sort_values("specificity", ascending=False)


def _matched(source: Source) -> tuple[dict[str, Any] | None, list[Table]]:
    """The control of nearest gate weight, raw and at equal norm."""
    trace = source.trace("matched")
    if trace is None or not len(trace):
        return None, []
    table = trace.table(**source.statistics)
    data = {
        scaling: {
            "quantity": own.quantity.tolist(),
            "mean": floats(own["mean"]),
            "low": floats(own.ci_low),
            "high": floats(own.ci_high),
        }
        for scaling, own in table.groupby("scaling", sort=False)
    }
    caption = (
        f"{trace.star} and the active expert of nearest gate weight, in logits; sign-flip p, uncorrected"
    )
    return data, [Table.of(table, caption)]


def matched_caption(source: Source) -> str:
    """What the second chart of the section shows."""
    trace = source.trace("matched")
    return (
        f"{trace.star} and, in each of the {counted(len(trace), 'case')} where it is active, the other "
        "active expert whose clean gate weight is nearest; at equal norm both patch vectors are scaled to "
        f"the shorter one. Means with {source.interval}s; tests in the table, uncorrected."
    )


def _direct(trace: ExpertTrace, source: Source) -> str:
    """How much of the selected expert's rescue goes straight to the logits, where that was measured."""
    direct = direct_of(trace.arrays)
    star = source.star
    if direct is None or star is None:
        return ""
    column = int(np.flatnonzero((trace.sites == [star.layer, star.expert]).all(axis=1))[0])
    active = trace.arrays.clean_active[:, column]
    straight = float(np.where(active, direct[:, column], 0.0).mean())
    rescue = float(trace.effects[:, column].mean())
    return (
        f"Of the mean rescue of {star}, {number(rescue, sign=True)} logits over all cases, "
        f"{number(straight, sign=True)} goes straight to the logits (direct); later layers make the other "
        f"{number(rescue - straight, sign=True)} (indirect)."
    )
