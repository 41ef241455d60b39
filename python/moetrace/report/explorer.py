"""One fact at a time: its tokens, what is compared, what each layer restores and which experts do it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moetrace.cases import Case
from moetrace.report.controls import specificity_of
from moetrace.report.embed import floats
from moetrace.report.parts import Section, counted, relation_text
from moetrace.report.source import Source, direct_of
from moetrace.results.expert_name import Expert
from moetrace.results.experts import ExpertTrace

EXPERTS = 8  # of a case, the largest rescues
MOST = 512  # cases in the page


def explorer_section(source: Source) -> Section:
    """The cases with everything that is known of each."""
    title = "Case by case"
    usable = source.usable
    if not usable:
        return Section.without("explorer", title, "The run holds no cases.")
    lead = ["Choose a fact to see where its recall was restored, and by which experts."]
    if len(usable) > MOST:
        lead.append(f"The first {MOST} of {counted(len(usable), 'case')} are here.")
    half = {
        case.case_id: name
        for name in ("discovery", "validation")
        for case in source.case_set(name) or ()
    }  # fmt: skip
    sweeps, experts = _sweeps(source), _experts(source)
    found = specificity_of(source)
    rows = None if isinstance(found, str) else found[2].rows
    specificity = {} if rows is None else dict(zip(rows.case_id, rows.specificity, strict=True))
    told = source.get("texts") or {}
    cases = []
    for case in usable[:MOST]:
        own = {
            "id": case.case_id,
            "relation": relation_text(case.relation_id),
            "half": half.get(case.case_id, "usable"),
            **_texts(case, told.get(case.case_id, told.get(str(case.case_id), {}))),
            **sweeps.get(case.case_id, {}),
        }
        if case.case_id in experts:
            own["experts"] = experts[case.case_id]
        if case.case_id in specificity:
            own["specificity"] = floats([specificity[case.case_id]])[0]
        cases.append(own)
    caption = (
        "Rescue of this case when the clean output of one layer is restored (blue), and the mean over the "
        "cases of the same half (grey). One case has no interval: its floor is the numerical one alone."
    )
    star = source.star
    return Section(
        "explorer", title, lead, caption, "Line chart of one case's rescue in logits by layer",
        data={"cases": cases, "layer": source.layer, "star": None if star is None else str(star),
              "means": _means(source), "scope": _scope(source)},
    )  # fmt: skip


def _texts(case: Case, told: Any) -> dict[str, Any]:
    """Prompt, tokens, subject span and objects; ids stand for tokens that nobody decoded."""
    tokens = told.get("tokens")
    if tokens is None or len(tokens) != len(case.input_ids):
        tokens = [f"#{token}" for token in case.input_ids]
    return {
        "prompt": str(told.get("prompt") or case.prompt),
        "tokens": [str(token) for token in tokens],
        "span": list(case.subject),
        "true": str(told.get("true", f"#{case.true_id}")),
        "foil": str(told.get("foil", "" if case.foil_id is None else f"#{case.foil_id}")),
    }


def _sweeps(source: Source) -> dict[int, dict[str, Any]]:
    """Case id -> clean and noised logit difference, and rescue by layer."""
    found: dict[int, dict[str, Any]] = {}
    for trace in source.sweeps().values():
        order = np.argsort(trace.layers)
        table = trace.cases
        for place, case_id in enumerate(table.case_id.tolist()):
            found[case_id] = {
                "clean": floats([table.clean.iloc[place]])[0],
                "noised": floats([table.noised.iloc[place]])[0],
                "rescue": floats(trace.effects[place, order], digits=5),
            }
    return found


def _means(source: Source) -> dict[str, Any]:
    """Of each half the layers and their mean rescue."""
    means = {}
    for half, trace in source.sweeps().items():
        order = np.argsort(trace.layers)
        means[half] = {
            "layer": [trace.layers[place] for place in order],
            "mean": floats(trace.effects.mean(axis=0)[order]),
            "floor": trace.noise_floor,
        }
    return means


def _scope(source: Source) -> dict[str, str]:
    """Of each half, among which experts the largest rescues are."""
    found = {}
    for half, trace in source.widest_experts().items():
        layers = trace.layers
        found[half] = f"of layer {layers[0]}" if len(layers) == 1 else f"of {len(layers)} layers"
    return found


def _experts(source: Source) -> dict[int, list[list[Any]]]:
    """Case id -> the experts with the largest rescues: name, rescue, clean weight, norm, direct part."""
    found: dict[int, list[list[Any]]] = {}
    for trace in source.widest_experts().values():
        for place, case_id in enumerate(trace.cases.case_id.tolist()):
            found[case_id] = _largest(trace, place)
    return found


def _largest(trace: ExpertTrace, place: int) -> list[list[Any]]:
    arrays, layers, experts = trace.arrays, trace.sites.layer.to_numpy(), trace.sites.expert.to_numpy()
    active = np.flatnonzero(arrays.clean_active[place])
    order = active[np.argsort(-trace.effects[place, active], kind="stable")][:EXPERTS]
    direct = direct_of(arrays)
    rows = []
    for site in order:
        values = [
            trace.effects[place, site],
            arrays.clean_weight[place, site],
            arrays.delta_norm[place, site],
        ]
        if direct is not None:
            values.append(direct[place, site])
        rows.append([str(Expert(int(layers[site]), int(experts[site]))), *floats(values, digits=5)])
    return rows
