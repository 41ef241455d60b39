"""The paper's tables of a run, as DataFrames of plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.cases import CaseSet
from moetrace.effects import control_count, ratio_of_means, required_cases
from moetrace.protocol.corruption import described
from moetrace.protocol.layouts import LAYOUTS
from moetrace.protocol.settings import NOISE
from moetrace.stats import summary_table

if TYPE_CHECKING:
    from moetrace.protocol.report import Report
    from moetrace.protocol.scale_up import ScaleUp

Floats = npt.NDArray[np.float64]
FREQUENT = 12  # relations of Table 4
BY_RELATION = 10  # rows of Table 5
_NAN = float("nan")


def all_tables(report: Report) -> dict[str, pd.DataFrame]:
    """Tables "1" to "16". One that the model or the settings don't have is empty and says why."""
    return {number: _table(report, number) for number in LAYOUTS}


def _table(report: Report, number: str) -> pd.DataFrame:
    layout = LAYOUTS[number]
    reason = _absence(report, number)
    rows = [] if reason else _ROWS[number](report)
    table = pd.DataFrame(rows, columns=list(dict.fromkeys(layout.names)))
    table.attrs = {"caption": layout.caption, "note": reason or report.why(number)}
    return table


def _absence(report: Report, number: str) -> str:
    """Why a table isn't there; empty where it is."""
    if number in ("1", "2", "4", "6", "8"):
        return ""
    if number in ("14", "15"):
        return "" if report.scale_up else "The relaxed scale-up is off: set relaxed=True."
    if report.star is None:
        return report.why("expert")
    if number in ("9", "11") and "matched" not in report.traces:
        return f"{report.star} is clean-active beside another expert in no validation case."
    if number == "9" and report.top_k == 2:
        return "With top-2 routing the matched control is the one other active expert: see Table 11."
    if number == "11" and report.top_k != 2:
        return f"For top-2 routing; this model's router takes {report.top_k}: see Table 9."
    if (number == "10" and report.ranks is None) or (number in ("5", "7") and report.specificity is None):
        return f"{report.star} is clean-active beside another expert in no validation case."
    if number == "13" and "scales" not in report.traces:
        return f"The run's corruption is {report.settings.corruption!r}, and scales are of Gaussian noise."
    if number == "12" and report.held_out is None:
        return report.why("held_out")
    return ""


def estimated(report: Report, name: str, values: Floats) -> dict[str, float]:
    """Mean and interval of one value a case: ``name``, ``name_low``, ``name_high``."""
    if not len(values):
        return {name: _NAN, f"{name}_low": _NAN, f"{name}_high": _NAN}
    own = summary_table(np.asarray(values, float)[:, None], **report.settings.statistics).iloc[0]
    return {name: float(own["mean"]), f"{name}_low": float(own.ci_low), f"{name}_high": float(own.ci_high)}


def from_summary(row: Any, name: str) -> dict[str, float]:
    """The same of a row of a summary."""
    return {name: float(row["mean"]), f"{name}_low": float(row.ci_low), f"{name}_high": float(row.ci_high)}


def _main(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "model": report.label,
            "layer": f"L{report.layer}",
            **estimated(report, "layer_rescue", report.layer_rescue),
            "expert": None if report.star is None else str(report.star),
            **estimated(report, "expert_rescue", report.expert_rescue),
            **estimated(report, "spec", report.spec),
        }
    ]


def _protocol(report: Report) -> list[dict[str, Any]]:
    s, found = report.settings, report.found
    required = required_cases(s.min_active, max(1, len(found.discovery)))
    shuffled = f"seed {s.seed}" if s.split == "shuffle" else "in scan order"
    controls = "–" if not report.top_k else control_count(s.controls, report.top_k)
    corrupted, how = described(s, found.config)
    drop = "subject-noise drop" if s.corruption == NOISE else "drop by the corruption"
    lines = {
        "Record order": f"Records shuffled with seed {s.seed}.",
        "Cases": f"{len(found.usable)} usable; {len(found.discovery)} discovery and {len(found.validation)} "
        f"validation, split {shuffled}.",
        "Filtering": f"Single-token true/foil objects; clean margin ≥ {s.margin:g}; {drop} ≥ {s.drop:g}.",
        corrupted: how,
        "Layer selection": "Layers swept on discovery cases; selected layer fixed on validation cases.",
        "Expert selection": f"Candidate clean-active in at least {required} discovery cases; highest mean "
        f"rescue over {'the cases where it is active' if s.mean == 'active' else 'all cases'} selected.",
        "Active-random": f"{controls} controls per case: same-source, same-layer, clean-active experts "
        "excluding the selected expert.",
        "Statistics": f"{s.n_resamples:,} bootstrap resamples ({s.ci}, {100 * s.confidence:g} %); "
        f"{s.n_flips:,} two-sided sign-flip samples.",
    }  # fmt: skip
    return [{"item": item, "setting": setting} for item, setting in lines.items()]


def _activity(report: Report) -> list[dict[str, Any]]:
    discovery, validation = (
        report.experts(name).activity(report.chosen) for name in ("experts", "experts_validation")
    )
    return [
        {
            "model": report.label,
            "expert": str(report.star),
            "discovery_active": discovery.active,
            "discovery_active_of": discovery.n,
            "validation_active": validation.active,
            "validation_active_of": validation.n,
            "zero_rows": validation.zero_rows,
        }
    ]


def relation_counts(cases: CaseSet) -> list[tuple[str, int]]:
    """Relations, the most frequent first; of equally frequent ones the one that comes first."""
    return Counter(case.relation_id for case in cases).most_common()


def _relations(report: Report) -> list[dict[str, Any]]:
    order = report.cases["discovery"] + report.cases["validation"]
    told = ", ".join(f"{relation or '(none)'}:{n}" for relation, n in relation_counts(order)[:FREQUENT])
    return [{"model": report.label, "relations": told}]


def _by_relation(report: Report) -> list[dict[str, Any]]:
    assert report.specificity is not None
    rows = report.specificity.rows
    counts = Counter(rows.relation_id.tolist()).most_common(BY_RELATION)
    found = []
    for relation, n in counts:
        own = rows[rows.relation_id == relation]
        found.append(
            {
                "model": report.label,
                "relation": relation or "(none)",
                "n": n,
                "expert_rescue": own.star_rescue.mean(),
                "specificity": own.specificity.mean(),
                "positive_fraction": (own.star_rescue > 0).mean(),
            }
        )
    return found


def _sharpness(report: Report) -> list[dict[str, Any]]:
    own = report.layers("layers_validation").sharpness()
    return [
        {
            "model": report.label,
            "top_layer": f"L{own.top_layer}",
            "top_rescue": own.top_rescue,
            "next_layer": None if own.next_layer is None else f"L{own.next_layer}",
            "next_rescue": own.next_rescue,
            "gap": own.gap,
        }
    ]


def _shares(report: Report) -> list[dict[str, Any]]:
    s = report.settings
    options = {
        "ci": s.ci, "n_resamples": s.n_resamples, "confidence": s.confidence, "seed": s.statistics_seed,
    }  # fmt: skip
    layer = float(np.mean(report.layer_rescue))
    found = [{"quantity": "Layer rescue", "value": layer, "value_low": _NAN, "value_high": _NAN}]
    for quantity, values in (("Expert/layer", report.expert_rescue), ("Spec/layer", report.spec_by_case)):
        keep = ~np.isnan(values)
        own = ratio_of_means(values[keep], report.layer_rescue[keep], **options)
        found.append(
            {
                "quantity": quantity,
                "value": float(own.estimate),
                "value_low": float(own.ci_low),
                "value_high": float(own.ci_high),
            }
        )
    return [{"model": report.label, **row} for row in found]


def _case_ids(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "model": report.label,
            "split": split.capitalize(),
            "case_ids": ", ".join(str(case.case_id) for case in report.cases[split]),
        }
        for split in ("discovery", "validation")
    ]


def _matched(report: Report) -> list[dict[str, Any]]:
    table = report.matched_table.set_index(["quantity", "scaling"])
    names = {"selected": "Selected rescue", "matched": "Matched control", "specificity": "Specificity"}
    return [
        {
            "quantity": name,
            **from_summary(table.loc[(quantity, "raw")], "raw"),
            **from_summary(table.loc[(quantity, "equal_norm")], "equal_norm"),
        }
        for quantity, name in names.items()
    ]


def _value(metric: str, form: str, value: float, of: float = _NAN) -> dict[str, Any]:
    return {
        "metric": metric, "form": form, "value": value, "value_of": of, "value_low": _NAN, "value_high": _NAN,
    }  # fmt: skip


def _ranks(report: Report) -> list[dict[str, Any]]:
    ranks = report.ranks
    assert ranks is not None
    contrast = estimated(report, "value", ranks.contrast.rows.specificity.to_numpy())
    return [
        _value("Ranked validation cases", "count", ranks.n_ranked),
        _value("Top-1 among active experts", "of", ranks.top_1, ranks.n_ranked),
        _value("Top-2 among active experts", "of", ranks.top_2, ranks.n_ranked),
        _value("Mean rank", "number", ranks.mean_rank),
        _value("Mean percentile", "number", ranks.mean_percentile),
        _value("Selected minus all-other active", "estimate", _NAN) | contrast,
    ]


def _pair(report: Report) -> list[dict[str, Any]]:
    table = report.matched_table.set_index(["quantity", "scaling"])
    names = {
        ("specificity", "raw"): "Raw active-pair specificity",
        ("selected", "equal_norm"): "Selected equal-norm rescue",
        ("matched", "equal_norm"): "Other active expert equal-norm rescue",
        ("specificity", "equal_norm"): "Equal-norm active-pair specificity",
    }
    return [
        {"metric": name, "n": int(table.loc[key].n), **from_summary(table.loc[key], "mean")}
        for key, name in names.items()
    ]


def _held_out(report: Report) -> list[dict[str, Any]]:
    held = report.held_out
    assert held is not None
    rows = held.rows
    return [
        _value("Folds", "count", len(held.folds)),
        _value("Selected", "of", int((held.folds.star == str(report.star)).sum()), len(held.folds)),
        _value("Held-out cases", "count", len(held)),
        _value("Active cases", "of", held.active, len(held)),
        _value("Rescue", "estimate", _NAN) | estimated(report, "value", rows.star_rescue.to_numpy()),
        _value("Specificity", "estimate", _NAN)
        | estimated(report, "value", rows.specificity.dropna().to_numpy()),
    ]


def _scales(report: Report) -> list[dict[str, Any]]:
    table = report.scale_table
    return [
        {
            "sigma": row.scale,
            "active": row.active,
            "active_of": row.n,
            "drop": row["drop"],
            **from_summary(row, "rescue"),
            "positive_fraction": row.positive_fraction,
        }
        for _, row in table.iterrows()
    ]


def _relaxed(report: Report) -> list[dict[str, Any]]:
    own: ScaleUp = report.scale_up
    active, of = own.discovery_active
    return [
        {
            "model": report.label,
            "layer": f"L{own.layer}",
            **estimated(report, "layer_rescue", own.layer_rescue),
            "expert": None if own.star is None else str(own.star),
            "discovery_active": active,
            "discovery_active_of": of,
            **estimated(report, "expert_rescue", own.expert_rescue),
            **estimated(report, "spec", own.spec[~np.isnan(own.spec)]),
        }
    ]


def _overlap(report: Report) -> list[dict[str, Any]]:
    own: ScaleUp = report.scale_up
    found = []
    for subset, keep in (
        ("All relaxed val.", np.ones(len(own.new), bool)),
        ("Relaxed-new val.", own.new),
    ):
        spec = own.spec[keep] if own.star is not None else np.array([])
        rescue = own.expert_rescue[keep] if own.star is not None else np.array([])
        found.append(
            {
                "model": report.label,
                "subset": subset,
                "n_layer": int(keep.sum()),
                **estimated(report, "layer_rescue", own.layer_rescue[keep]),
                "n_expert": len(rescue),
                **estimated(report, "expert_rescue", rescue),
                **estimated(report, "spec", spec[~np.isnan(spec)]),
            }
        )
    return found


def _coalitions(report: Report) -> list[dict[str, Any]]:
    named = {"clean": f"Clean top-{report.top_k} coalition", "union": "Routing-union coalition"}
    return [
        {
            "patch": named[row.coalition],
            **from_summary(row, "rescue"),
            "positive_fraction": row.positive_fraction,
        }
        for _, row in report.coalition_table.iterrows()
    ]


_ROWS: dict[str, Callable[[Report], list[dict[str, Any]]]] = {
    "1": _main,
    "2": _protocol,
    "3": _activity,
    "4": _relations,
    "5": _by_relation,
    "6": _sharpness,
    "7": _shares,
    "8": _case_ids,
    "9": _matched,
    "10": _ranks,
    "11": _pair,
    "12": _held_out,
    "13": _scales,
    "14": _relaxed,
    "15": _overlap,
    "16": _coalitions,
}
