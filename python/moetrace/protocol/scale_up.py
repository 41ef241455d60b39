"""The relaxed scale-up (appendix F): what Tables 14 and 15 are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moetrace.cases import CaseSet
from moetrace.protocol.evidence import Evidence, relaxed_experts, relaxed_layers, selected
from moetrace.protocol.settings import Settings
from moetrace.results.expert_name import Expert, NeverActiveError
from moetrace.results.experts import ExpertTrace
from moetrace.results.joined import concat
from moetrace.results.layers import LayerTrace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScaleUp:
    """Selected on relaxed discovery cases, evaluated on relaxed validation cases.

    Attributes:
        layer, star: what was selected; no star where no expert is recurrent enough.
        discovery, validation: the halves.
        layer_rescue, expert_rescue, spec: one value for each validation case, logits; spec is NaN where a
            case has no control, and both are empty without a star.
        new: bool, validation cases that aren't in the strict set.
        refusal: why there is no star.
        discovery_active: in how many discovery cases the star is clean-active, and of how many.
    """

    layer: int
    star: Expert | None
    discovery: CaseSet
    validation: CaseSet
    layer_rescue: Floats
    expert_rescue: Floats
    spec: Floats
    new: npt.NDArray[np.bool_]
    discovery_active: tuple[float, float]
    refusal: str

    @property
    def overlap(self) -> int:
        """Validation cases that are in the strict set (the paper has 15 of 256)."""
        return int((~self.new).sum())


def scale_up(found: Evidence) -> ScaleUp | None:
    """The relaxed stage's, or that of a run whose preset is the relaxed one; else None."""
    s = found.settings
    if found.relaxed is not None:
        layers = relaxed_layers(found)
        layer = layers.subset(found.relaxed_discovery).best
        strict = {case.case_id for case in found.usable}
        halves = found.relaxed_discovery, found.relaxed_validation
        return _found(layers, relaxed_experts(found, layer), halves, strict, s)
    if s.preset == "relaxed":
        paper = Settings()
        scores = found.layers.cases
        kept = (scores.clean >= paper.margin) & (scores.clean - scores.noised >= paper.drop)
        strict = set(scores.case_id[kept].tolist()[: paper.n])
        parts = [found.experts("experts_discovery"), found.experts("experts_validation")]
        known = [part for part in parts if part is not None]
        experts = None
        if len(known) == 2:
            experts = concat(known)
        return _found(found.layers, experts, (found.discovery, found.validation), strict, s)
    return None


def _found(
    layers: LayerTrace,
    experts: ExpertTrace | None,
    halves: tuple[CaseSet, CaseSet],
    strict: set[int],
    settings: Settings,
) -> ScaleUp:
    whole = set(layers.cases.case_id.tolist())
    if experts is not None:
        whole &= set(experts.cases.case_id.tolist())
    first, second = ([case.case_id for case in half if case.case_id in whole] for half in halves)
    layer = layers.subset(halves[0]).best
    rescue = layers.subset(second).effects[:, layers.layers.index(layer)]
    star, refusal = selected(None if experts is None else experts.subset(first), settings)
    own = spec = np.array([])
    active = (float("nan"), float("nan"))
    if star is not None and experts is not None:
        held = experts.subset(second)
        own = held.effects[:, held.sites.expert.to_numpy() == star.expert][:, 0]
        counted = experts.subset(first).activity(star)
        active = (counted.active, counted.n)
        try:
            rows = held.specificity(star, settings.controls, settings.controls_seed).rows  # type: ignore[arg-type]
            spec = rows.set_index("case_id").specificity.reindex(second).to_numpy(float)
        except NeverActiveError:
            spec = np.full(len(second), np.nan)
    new = np.array([case_id not in strict for case_id in second], bool)
    return ScaleUp(layer, star, *halves, rescue, own, spec, new, active, refusal)
