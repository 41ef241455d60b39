"""Which traces there are: what each patches, and on which cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moetrace import coalition
from moetrace._native import _core
from moetrace.arguments import shown
from moetrace.cases import CaseSet
from moetrace.corruptions import Corruptor, NoiseScales
from moetrace.engines.job import ORIGINS, Job, Origin, Patch, Sweep, embedding_of
from moetrace.engines.knockout import Ablation
from moetrace.engines.places import LAST, Place, places_of
from moetrace.engines.teacher_forcing import forcing_of
from moetrace.errors import ArgumentError
from moetrace.metrics import LOGIT_DIFF
from moetrace.models.experts import top_k_of
from moetrace.models.readout import make_readout
from moetrace.protocol.settings import NOISE
from moetrace.results.expert_name import Expert
from moetrace.trace.coalitions import wanted_of
from moetrace.trace.experts import expert_layers_of, expert_sweeps
from moetrace.trace.knockout_call import NO_NOISE, knockout_place
from moetrace.trace.layers import layer_patches
from moetrace.trace.maps import null_place
from moetrace.trace.matched import matched_patches
from moetrace.trace.select_cases import first_size, next_size
from moetrace.trace.together import LARGEST_GAME, SAMPLED_ORDERS

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.models.anatomy import Anatomy
    from moetrace.protocol.settings import Settings

WHATS = ("layers", "experts", "knockout", "protocol", "select")


@dataclass(frozen=True)
class Stage:
    """One kind of trace on some cases.

    ``scans``: cases that go through the model one group after the other: one group for a trace, the growing
    batches of a selection. ``swept``: whether the experts of every traced layer are patched one by one.
    """

    name: str
    job: Job
    scans: list[list[Case]]
    direct: bool = True

    @property
    def cases(self) -> list[Case]:
        """Cases of all groups."""
        return [case for scan in self.scans for case in scan]

    @property
    def swept(self) -> bool:
        """Whether experts of several layers are patched one by one."""
        return len(self.job.sweeps) > 1


def bare_job(anatomy: Anatomy, common: dict[str, Any], cases: Sequence[Case], what: str) -> Job:
    """A job without patches, with checked options; the weights needn't be there."""
    readout = make_readout(anatomy, common["readout"])
    corruption = NO_NOISE if what == "knockout" else common["corruption"]
    if what == "knockout":
        places: tuple[Place, ...] = (knockout_place(common["position"], cases),)
    else:
        places = places_of(common["position"], cases, prefix=what != "layers")
    further = tuple(metric for metric in common["metric"].metrics if metric != LOGIT_DIFF)
    bound, metrics = Corruptor(corruption, embedding_of(anatomy)), (LOGIT_DIFF, *further)
    return Job(anatomy, (), bound, readout, places, metrics=metrics, mode=common["mode"])


def layers_stage(job: Job, cases: Sequence[Case], layers: Any = None) -> Stage:
    """:func:`moetrace.trace_layers`."""
    chosen = job.anatomy.resolve_layers(layers)
    patches = tuple(layer_patches(chosen, job.places, ORIGINS[job.mode]))
    return Stage("layers", replace(job, patches=patches), [list(cases)])


def experts_stage(job: Job, cases: Sequence[Case], layers: Any = None, union: bool = False) -> Stage:
    """:func:`moetrace.trace_experts`."""
    chosen = expert_layers_of(job.anatomy, layers)
    origin = ORIGINS[job.mode]
    sweeps = tuple(expert_sweeps(job.anatomy, chosen, job.places, union, origin))
    null = Patch.null(min(chosen), null_place(job.places), origin)
    own = replace(job, patches=(null,), sweeps=sweeps)
    return Stage("experts", own, [list(cases)])


def knockout_stage(job: Job, cases: Sequence[Case], layers: Any = None) -> Stage:
    """:func:`moetrace.trace_knockout` with contributions taken away ("zero")."""
    chosen = expert_layers_of(job.anatomy, layers)
    place, origin = job.places[0], Origin.NOISE
    sweeps = tuple(expert_sweeps(job.anatomy, chosen, job.places, False, origin))
    null = Patch.null(min(chosen), origin=origin)
    own = replace(job, patches=(null,), sweeps=sweeps, ablation=Ablation("zero", place.find))
    return Stage("knockout", own, [list(cases)], direct=False)


def select_stage(
    job: Job,
    cases: CaseSet,
    n: int,
    share: float,
    seed: int | None,
    stream: bool = False,
    known: int = 0,
) -> Stage:
    """:func:`moetrace.select_cases` where this share of the cases is usable.

    ``stream``: whether layers are read anew for every batch of a scan; ``known``: the first cases of the
    record order whose scores are known already.
    """
    order = cases.record_order(seed)
    scans, scanned, found, size = [], 0, 0, first_size(n, stream)
    while scanned < len(order) and found < n:
        batch = order[scanned : scanned + size]
        scans.append([cases[place] for place in batch[max(0, known - scanned) :]])
        scanned += len(batch)
        found = min(n, math.floor(share * scanned + 1e-9))
        size = next_size(size, scanned, found, n)
    own = replace(job, places=(LAST,))
    return Stage("select", own, [scan for scan in scans if scan], direct=False)


def usable_of(cases: CaseSet, n: int, share: float, seed: int | None) -> CaseSet:
    """The cases that stand for the usable ones: spread evenly over what a selection scans."""
    order, count = _scanned(cases, n, share, seed)
    return cases.take([order[place * len(order) // count] for place in range(count)])


def _scanned(cases: CaseSet, n: int, share: float, seed: int | None) -> tuple[list[int], int]:
    """Positions that a selection scans, and how many of them are usable."""
    order = cases.record_order(seed)
    order = order[: math.ceil(n / share)]
    return order, min(n, max(1, math.floor(share * len(order) + 1e-9)))


def _fresh(cases: CaseSet, usable: CaseSet, n: int, share: float, seed: int | None) -> CaseSet:
    """Cases that lower thresholds add: the strict ones are among the relaxed."""
    order, count = _scanned(cases, n, share, seed)
    strict = {case.case_id for case in usable}
    others = [place for place in order if cases[place].case_id not in strict]
    return cases.take(others[: max(0, count - (len(order) - len(others)))])


def protocol_stages(
    job: Job, cases: CaseSet, settings: Settings, share: float, stream: bool = False
) -> list[Stage]:
    """:func:`moetrace.run_protocol`: all traces that its settings ask for.

    The layer that it will select isn't known: the middle one of those traced stands for it.
    """
    s, anatomy = settings, job.anatomy
    usable = usable_of(cases, s.n, share, s.seed)
    order: Any = s.split
    discovery, validation = usable.split(s.seed, s.fraction, order)
    scan = select_stage(job, cases, s.n, share, s.seed, stream)
    found = [scan, layers_stage(job, usable)]
    middle = None
    if anatomy.sparse_layers:
        traced = expert_layers_of(anatomy, None)
        middle = traced[len(traced) // 2]
        found.append(replace(experts_stage(job, discovery, middle), name="experts_discovery"))
        found.append(around_stage(job, validation, middle, s.shapley, s.controls_seed))
        if s.corruption == NOISE:
            found.append(scales_stage(job, validation, middle, s.scales, s.noise_seed))
        if s.expert_map:
            found.append(replace(experts_stage(job, validation), name="map"))
    if s.relaxed:
        # Lower thresholds admit more: half of the cases that the strict ones leave.
        admitted = (1 + share) / 2
        again = select_stage(job, cases, s.relaxed_n, admitted, s.seed, stream, known=len(scan.cases))
        found.append(replace(again, name="relaxed"))
        others = _fresh(cases, usable, s.relaxed_n, admitted, s.seed)
        found.append(replace(layers_stage(job, others), name="relaxed_layers"))
        if middle is not None:
            found.append(replace(experts_stage(job, others, middle), name="relaxed_experts"))
    return [stage for stage in found if stage.cases]


def around_stage(job: Job, cases: Sequence[Case], layer: int, shapley: bool, seed: int) -> Stage:
    """:func:`moetrace.trace.together.trace_around`."""
    top_k = top_k_of(job.anatomy.config)
    game = "all" if top_k <= LARGEST_GAME else "sampled"
    asked: list[Any] = [("clean", "union"), *([game] if shapley else [])]
    limits = (SAMPLED_ORDERS, "clean", coalition.LIMIT)
    patches: list[Patch] = matched_patches(Expert(layer, 0))
    for sets in asked:
        patches += wanted_of(job.anatomy, layer, sets, *limits, seed).patches
    patches.append(Patch.null(layer))
    own = replace(job, patches=tuple(patches), sweeps=(Sweep(layer, top_k, False),))
    return Stage("around", own, [list(cases)])


def scales_stage(job: Job, cases: Sequence[Case], layer: int, scales: tuple[float, ...], seed: int) -> Stage:
    """:func:`moetrace.trace_noise_scales`."""
    expert = Patch.of_experts(layer, _core.Chosen.EXPERTS, experts=[0])
    patches = (Patch.block(layer), expert, Patch.null(layer))
    own = replace(
        job, patches=patches, corruptor=replace(job.corruptor, corruption=NoiseScales(scales, seed))
    )
    return Stage("scales", own, [list(cases)], direct=False)


def forced(stage: Stage) -> Stage:
    """The stage as it runs: cases whose objects have several tokens as sequences that go on with them."""
    scans = [(scan, forcing_of(stage.job, scan)) for scan in stage.scans]
    known = [forcing for _, forcing in scans if forcing is not None]
    if not known:
        return stage
    own = [list(scan) if forcing is None else list(forcing.sequences) for scan, forcing in scans]
    return replace(stage, job=known[0].job, scans=own, direct=False)


def refuse_options(what: str, given: Mapping[str, Any]) -> None:
    """ArgumentError for a common argument that this kind of trace doesn't have."""
    fixed: dict[str, Any]
    if what in ("select", "protocol"):
        fixed = {"position": "last", "metric": "logit_diff", "mode": "denoise"}
        why = "the protocol and the selection patch the last token alone and are of the logit difference"
    elif what == "knockout":
        fixed = {"noise": None, "corruption": None, "mode": "denoise"}
        why = "knock-outs leave from the clean run"
    else:
        return
    for name, only in fixed.items():
        if name in given and not (given[name] is only or given[name] == only):
            raise ArgumentError(f"{name} is {shown(given[name])}; {why}: leave it out for what={what!r}")
