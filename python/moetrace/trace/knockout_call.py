"""What a knock-out is asked for: which experts, how they are switched off, on which cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.arguments import as_list, is_integer, shown
from moetrace.cases import CaseSet
from moetrace.corruptions import SubjectNoise
from moetrace.engines.clean_contributions import ByLayer, What, capture, tokens_at
from moetrace.engines.job import Job, make_job
from moetrace.engines.knockout import Ablation, Kind
from moetrace.engines.places import ALL, Place, Positions, all_together, places_of
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.results.expert_name import Expert
from moetrace.trace.experts import expert_layers_of
from moetrace.trace.matched import check_expert

if TYPE_CHECKING:
    from moetrace.cases import Case

NO_NOISE = SubjectNoise(0.0)  # the clean run alone is asked for


@dataclass(frozen=True)
class Wanted:
    """Which experts: all of ``layers``, or those of ``named``."""

    layers: tuple[int, ...]
    named: tuple[Expert, ...] = ()

    def sites(self, anatomy: Anatomy) -> list[tuple[int, int]]:
        """Layer and expert of each column."""
        if self.named:
            return [(one.layer, one.expert) for one in self.named]
        return [(layer, e) for layer in self.layers for e in range(expert_count(anatomy, layer))]


@dataclass(frozen=True)
class Asked:
    """How they are switched off."""

    kind: Kind
    seed: int


@dataclass(frozen=True)
class Call:
    """One knock-out, but for its model. ``common``: checked options."""

    cases: CaseSet
    reference: CaseSet
    wanted: Wanted
    asked: Asked
    common: Mapping[str, Any]


def wanted_of(anatomy: Anatomy, experts: Any, layers: Any) -> Wanted:
    """The experts that a user names. Errors: see :func:`trace_knockout`."""
    if experts is None:
        return Wanted(expert_layers_of(anatomy, layers))
    expert_layers_of(anatomy, layers)  # a dense model, or a layer without experts, is refused
    single = isinstance(experts, (Expert, str)) or (
        isinstance(experts, tuple) and len(experts) == 2 and all(map(is_integer, experts))
    )
    listed: list[Any] = (
        [experts] if single else as_list(experts, "experts", "a list of experts, or None for all")
    )
    if not listed:
        raise ArgumentError("experts is empty; expected at least one expert, or None for all")
    if all(map(is_integer, listed)):
        if not is_integer(layers):
            raise ArgumentError(
                f"experts are numbers ({listed[:5]}) and layers isn't one layer; give layers=, or names such "
                "as 'L44E069'"
            )
        listed = [(int(layers), number) for number in listed]
    elif layers is not None:
        raise ArgumentError("both experts by name and layers are given; expected one of them")
    named = tuple(sorted(check_expert(anatomy, one) for one in listed))
    twice = sorted({str(one) for one in named if named.count(one) > 1})
    if twice:
        raise ArgumentError(f"experts repeats {', '.join(twice)}; expected each once")
    return Wanted(tuple(sorted({one.layer for one in named})), named)


def details_of(call: Call) -> dict[str, Any]:
    """What tells one knock-out from another, beside its experts and its position."""
    asked = call.asked
    needs = asked.kind in ("mean", "resample")
    return {
        "ablation": asked.kind,
        "reference": call.reference.fingerprint() if needs else None,
        "seed": asked.seed if asked.kind == "resample" else None,
    }


def ablation_of(job: Job, call: Call, layers: Sequence[int], plain: bool = False) -> Ablation:
    """The ablation with what it needs of the clean runs. The model must be prepared.

    ``plain``: for plain forwards, which have to know who is routed to, and whose routers choose themselves.
    """
    asked = call.asked
    own: Mapping[int, ByLayer] = {}
    others: Mapping[int, ByLayer] = {}
    if asked.kind in ("mean", "resample"):
        others = capture(job, call.reference, layers)
    if asked.kind != "zero" or plain:
        known = others if call.cases is call.reference else {}
        what: list[What] = ["rerouted"] if asked.kind == "reroute" and not plain else []
        own = known or capture(job, call.cases, layers, what)
    found = Ablation(asked.kind, tokens_of(job), asked.seed, own, others)
    found.refuse_undefined(call.cases, set(call.wanted.sites(job.anatomy)))
    return found


def tokens_of(job: Job) -> Callable[[Case], Sequence[int]]:
    """The tokens of a case at which experts are switched off."""
    return lambda case: tokens_at(job, case)


def masks_of(anatomy: Anatomy, sites: Sequence[tuple[int, int]]) -> dict[int, np.ndarray]:
    """By layer bool (experts,)."""
    found: dict[int, np.ndarray] = {}
    for layer, expert in sites:
        if layer not in found:
            found[layer] = np.zeros(expert_count(anatomy, layer), np.bool_)
        found[layer][expert] = True
    return found


def job_of(anatomy: Anatomy, call: Call) -> Job:
    """A job at the call's position, read off by its metrics, that does nothing yet."""
    common = call.common
    metrics = common["metric"].metrics
    return make_job(anatomy, (), NO_NOISE, (place_of(call),), (), common["readout"], metrics)


def place_of(call: Call) -> Place:
    """Where experts are switched off in each case."""
    return knockout_place(call.common["position"], [*call.cases, *call.reference])


def knockout_place(position: Positions, cases: Sequence[Case]) -> Place:
    """One or several tokens together. ArgumentError for a list of positions."""
    if isinstance(position, list):
        raise ArgumentError(
            f"position is {shown(position)}; a knock-out is at one position, whose tokens are switched off "
            "together: call it once for each of the list, or give 'all' for every token, 'subject' for the "
            "subject's, or a function of a case that gives several tokens"
        )
    if position == ALL:
        return all_together(cases)
    (found,) = places_of(position, cases)
    return found
