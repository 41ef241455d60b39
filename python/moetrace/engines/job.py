"""What every engine is given and gives back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from moetrace._native import _core
from moetrace.corruptions import Corruption, Corruptor, Embedding, as_noise
from moetrace.engines.places import ALL, LAST, Place, Position, places_of
from moetrace.errors import HookError
from moetrace.metrics import LOGIT_DIFF, Metric
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import ReadoutKind, make_readout
from moetrace.weights.stored import aligning_hook, execution_device

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.knockout import Ablation
    from moetrace.models.ending import Ending
    from moetrace.models.mixers import Mixer
    from moetrace.models.readout import Readout

Patch = _core.Patch
Sweep = _core.Sweep
Origin = _core.Origin
Mode = Literal["denoise", "noise"]
MODES: tuple[Mode, ...] = ("denoise", "noise")
ORIGINS = {"denoise": Origin.DENOISE, "noise": Origin.NOISE}


@dataclass(frozen=True)
class Job:
    """One trace, but for its cases: what to patch, where, and under which corruption.

    ``patches``: a column of the outcome each. ``sweeps``: layers of which every routed expert is patched by
    itself. ``places``: where; patches and sweeps name them by number. ``ending``: with one, direct effects
    are measured too. ``mixers``: what a tree has to unfold of the model. ``metrics``: what is read off every
    run; the first is the logit difference (of another token where a case has no foil), by which engines are
    compared. ``mode``: whether clean values go into the noised run or noised ones into the clean run, as the
    patches' origins say, too. ``ablation``: with one, patches of experts leave from the clean run and switch
    them off; nothing is corrupted.
    """

    anatomy: Anatomy
    patches: tuple[Patch, ...]
    corruptor: Corruptor
    readout: Readout
    places: tuple[Place, ...] = (LAST,)
    sweeps: tuple[Sweep, ...] = ()
    ending: Ending | None = None
    mixers: tuple[Mixer, ...] = ()
    metrics: tuple[Metric, ...] = (LOGIT_DIFF,)
    mode: Mode = "denoise"
    ablation: Ablation | None = None

    @property
    def from_clean(self) -> bool:
        """Whether patched runs leave from the clean run."""
        return self.mode == "noise" or self.ablation is not None

    @property
    def direction(self) -> str:
        """ "denoise", "noise" or "knockout", as a record of the call has it."""
        return self.mode if self.ablation is None else "knockout"

    @cached_property
    def core(self) -> _core.Job:
        """The same for the compiled core."""
        kind = _core.Corruption.REPLACED if self.corruptor.replaces else _core.Corruption.ADDED
        most = [place.most for place in self.places]
        patches, sweeps = list(self.patches), list(self.sweeps)
        job = _core.Job(len(self.anatomy.layers), self.draws, patches, sweeps, most, kind)
        if self.ablation is None:
            return job
        return job.knocking_out(self.ablation.kind != "reroute", self.ablation.kind != "zero")

    @property
    def draws(self) -> int:
        """Corrupted runs of a case."""
        return self.corruptor.draws

    @cached_property
    def runs(self) -> _core.Runs:
        """Where each run is patched: the patches, then the slots of the sweeps."""
        return self.core.runs

    @property
    def position(self) -> str | int | list[str | int]:
        """What was asked for: the name of the place, or those of several; "all" for every token by itself."""
        if any(place.of_all for place in self.places):
            return ALL
        names = [place.name for place in self.places]
        return names[0] if len(names) == 1 else names

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Layers that are patched in any way."""
        return tuple(sorted({patch.layer for patch in self.patches} | {s.layer for s in self.sweeps}))

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Layers with expert patches: those whose routing is recorded."""
        patched = {p.layer for p in self.patches if p.kind is _core.PatchKind.EXPERTS}
        return tuple(sorted(patched | {sweep.layer for sweep in self.sweeps}))

    @property
    def measures_direct(self) -> bool:
        """Whether direct effects are asked for and can be measured in the model."""
        return self.ending is not None and self.ending.fault is None

    @property
    def expert_places(self) -> tuple[tuple[int, int], ...]:
        """Layers and places with expert patches: those whose routing is recorded."""
        patched = {(p.layer, p.place) for p in self.patches if p.kind is _core.PatchKind.EXPERTS}
        return tuple(sorted(patched | {(sweep.layer, sweep.place) for sweep in self.sweeps}))

    def tokens_of(self, case: Case) -> list[tuple[int, ...]]:
        """Positions of each place in a case. ArgumentError where the prompt has no such token."""
        return [place.find(case) for place in self.places]

    def shape_of(self, case: Case) -> _core.CaseShape:
        """What the tree has to know of a case."""
        return _core.CaseShape(len(case.input_ids), *self.apart(case), self.tokens_of(case))

    def apart(self, case: Case) -> tuple[int, int]:
        """Where the clean and the other runs part: the subject, or where nothing is corrupted the first
        patched token (the other run is then the clean one again)."""
        if self.ablation is None:
            return case.subject
        places = [own[0] for own in self.tokens_of(case) if own]
        return min(places, default=len(case.input_ids) - 1), len(case.input_ids)


def make_job(
    anatomy: Anatomy,
    patches: Sequence[Patch],
    corruption: Corruption | float | None = None,
    position: Position | tuple[Place, ...] = "last",
    sweeps: Sequence[Sweep] = (),
    readout: ReadoutKind = "exact",
    metrics: Sequence[Metric] = (),
    mode: Mode = "denoise",
    ablation: Ablation | None = None,
) -> Job:
    """A job with its corruption bound to the model. Call it with the model in eval mode.

    ``corruption``: None is the paper's noise, a number its scale. ``metrics``: read beside the logit
    difference.
    """
    own = as_noise(corruption) if corruption is None or isinstance(corruption, float | int) else corruption
    embedding = embedding_of(anatomy)
    bound = Corruptor(own.measured(embedding), embedding)
    read = make_readout(anatomy, readout)
    further = tuple(metric for metric in metrics if metric != LOGIT_DIFF)
    places = position if isinstance(position, tuple) else places_of(position, ())
    chosen = (LOGIT_DIFF, *further)
    return Job(
        anatomy,
        tuple(patches),
        bound,
        read,
        places,
        tuple(sweeps),
        metrics=chosen,
        mode=mode,
        ablation=ablation,
    )


def embedding_of(anatomy: Anatomy) -> Embedding:
    """The model's embedding, as corruptions see it."""
    name, device = str(getattr(anatomy.config, "_name_or_path", "") or ""), embedding_device(anatomy)
    return Embedding(anatomy.embedding, anatomy.vocab_size, anatomy.hidden_size, device, name)


def embedding_device(anatomy: Anatomy) -> torch.device:
    """Where input ids go."""
    weight = getattr(anatomy.embedding, "weight", None)
    if isinstance(weight, torch.Tensor) and not weight.is_meta:
        return weight.device
    if (device := execution_device(aligning_hook(anatomy.embedding))) is not None:
        return device
    return torch.device(getattr(anatomy.model, "device", "cpu"))


def hook_error(anatomy: Anatomy, what: str, modules: Sequence[tuple[str, int]]) -> HookError:
    """A HookError that names the modules, each given by its kind and layer, and says what to do."""

    def module_of(kind: str, layer: int) -> Any:
        if kind == "embedding":
            return anatomy.embedding
        return anatomy.layers[layer] if kind == "layer" else getattr(anatomy.site(layer), kind)

    found = [module_of(*module) for module in modules]
    names = [name for name, own in anatomy.model.named_modules() if any(own is other for other in found)]
    return HookError(
        f"{type(anatomy.model).__name__}: {what.rstrip(';')} (module {', '.join(names)}). A patch needs a "
        "module that is called once in a forward pass and gives one row of hidden states for each token: "
        "remove hooks and wrappers that change that, or trace other layers with layers=[...]"
    )


@dataclass(frozen=True)
class LayerRouting:
    """What the routers sent a place's token to in one layer, and what a sweep of its experts gave.

    ``routed``, ``valid``: (cases, draws, 2k), the routing union in the router's order: k clean-routed
    experts, then k noised-routed ones, valid only where the clean run doesn't route to them. All others
    (cases, draws, experts): who is clean-active, noised-active and patched by itself; weights as applied, 0
    where not routed; the norm of the patch vector delta (equation 6) at the block's output; the logit
    difference of the run that patches the expert, and what of its rescue goes straight to the logits, NaN
    where there is none; router logits as the router gives them, with no experts where its output isn't
    recognised.

    Of a place with several tokens in any case: who is active at any of them, sums of weights, the norm of the
    patch vectors over all of them, logits of the last; ``routed``: min(k x tokens, experts) clean-routed
    experts of any of them, then as many that only the noised run routes to. A case without the place has
    nobody active and logits of NaN.
    """

    routed: np.ndarray
    valid: np.ndarray
    clean_active: np.ndarray
    noised_active: np.ndarray
    patched_active: np.ndarray
    clean_weight: np.ndarray
    noised_weight: np.ndarray
    delta_norm: np.ndarray
    patched: np.ndarray
    direct: np.ndarray
    direct_linear: np.ndarray
    clean_logit: np.ndarray
    noised_logit: np.ndarray

    @property
    def top_k(self) -> int:
        """Experts that each run routes to."""
        return int(self.routed.shape[-1] // 2)

    def select(self, index: np.ndarray) -> LayerRouting:
        """Some of the cases."""
        return LayerRouting(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[LayerRouting], axis: int = 0) -> LayerRouting:
        """Batches one after another (axis 0), or draws of the same cases beside each other (1)."""
        names = [f.name for f in fields(LayerRouting)]
        return LayerRouting(*(_joined([getattr(p, n) for p in parts], axis) for n in names))


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Tables one after another. Those of a batch in which no case has the place have no slots: they get
    some."""
    width = max(part.shape[-1] for part in parts)
    dtype = next(part.dtype for part in parts if part.shape[-1] == width)
    whole = []
    for part in parts:
        fill = np.full((*part.shape[:-1], width - part.shape[-1]), _NOTHING[dtype.kind], dtype)
        whole.append(np.concatenate([part.astype(dtype, copy=False), fill], axis=-1))
    found: np.ndarray = np.concatenate(whole, axis=axis)
    return found


_NOTHING = {"b": False, "i": 0, "f": np.nan}


@dataclass(frozen=True)
class Values:
    """One metric of a batch, as of :class:`Outcome`.

    ``swept``: (cases, draws, experts) of each layer and place with expert patches.
    """

    clean: np.ndarray
    noised: np.ndarray
    patched: np.ndarray
    swept: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def select(self, index: np.ndarray) -> Values:
        """Some of the cases."""
        swept = {place: own[index] for place, own in self.swept.items()}
        return Values(self.clean[index], self.noised[index], self.patched[index], swept)

    @staticmethod
    def stack(parts: Sequence[Values]) -> Values:
        """Batches one after another."""
        swept = {place: _joined([p.swept[place] for p in parts], 0) for place in parts[0].swept}
        return Values(
            np.concatenate([part.clean for part in parts]),
            np.concatenate([part.noised for part in parts]),
            np.concatenate([part.patched for part in parts]),
            swept,
        )


@dataclass(frozen=True)
class Outcome:
    """What a batch gave, in the order of its cases. Logit differences (true minus foil, equation 1), float64.

    ``clean`` (cases,), ``noised`` (cases, draws), ``patched`` (cases, patches, draws); ``routing``: by layer
    and place with expert patches; ``direct``, ``direct_linear``: (cases, patches, draws), what of a patch's
    rescue goes straight to the logits (see :mod:`moetrace.models.ending`), NaN where it wasn't measured;
    ``present`` (cases, patches): whether the case has the place of the patch: where not, its figures are NaN;
    ``others``: of each further metric of the job.
    """

    clean: np.ndarray
    noised: np.ndarray
    patched: np.ndarray
    direct: np.ndarray
    direct_linear: np.ndarray
    present: np.ndarray
    routing: Mapping[tuple[int, int], LayerRouting] = field(default_factory=dict)
    others: tuple[Values, ...] = ()

    def base(self, job: Job) -> np.ndarray:
        """The run that patched runs leave from: logit differences (cases, draws)."""
        return np.broadcast_to(self.clean[:, None], self.noised.shape) if job.from_clean else self.noised

    @staticmethod
    def plain(values: Sequence[Values]) -> Outcome:
        """Of each metric, without routing and direct effects."""
        first, *others = values
        unknown, present = np.full(first.patched.shape, np.nan), np.ones(first.patched.shape[:2], dtype=bool)
        return Outcome(
            first.clean, first.noised, first.patched, unknown, unknown, present, others=tuple(others)
        )

    @property
    def metrics(self) -> tuple[Values, ...]:
        """Of each metric of the job."""
        swept = {place: own.patched for place, own in self.routing.items()}
        return (Values(self.clean, self.noised, self.patched, swept), *self.others)

    def of_metric(self, place: int) -> Outcome:
        """The same with another metric in the place of the logit difference, and no direct effects."""
        if not place:
            return replace(self, others=())
        own, unknown = self.others[place - 1], np.full(self.patched.shape, np.nan)
        routing = {}
        for where, found in self.routing.items():
            none = np.full(found.direct.shape, np.nan)
            routing[where] = replace(found, patched=own.swept[where], direct=none, direct_linear=none)
        return Outcome(own.clean, own.noised, own.patched, unknown, unknown, self.present, routing)

    def select(self, index: np.ndarray) -> Outcome:
        """Some of the cases."""
        routing = {place: found.select(index) for place, found in self.routing.items()}
        others = tuple(own.select(index) for own in self.others)
        return Outcome(
            **{name: getattr(self, name)[index] for name in OUTCOME}, routing=routing, others=others
        )

    def case(self, index: int) -> Outcome:
        """One case, as a batch of its own."""
        return self.select(np.array([index]))

    def finite(self) -> np.ndarray:
        """bool (cases,): whether every value of a case is finite."""
        good = np.ones(len(self.clean), dtype=bool)
        for values in self.metrics:
            good &= np.isfinite(values.clean) & np.isfinite(values.noised).all(axis=1)
            good &= (np.isfinite(values.patched) | ~self.present[..., None]).all(axis=(1, 2))
            for place, own in self.routing.items():
                good &= (np.isfinite(values.swept[place]) | ~own.patched_active).all(axis=(1, 2))
        return good

    @staticmethod
    def stack(parts: Sequence[Outcome]) -> Outcome:
        """Batches one after another."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTCOME}
        routing = {place: LayerRouting.join([p.routing[place] for p in parts]) for place in parts[0].routing}
        others = tuple(Values.stack(own) for own in zip(*(part.others for part in parts), strict=True))
        return Outcome(**arrays, routing=routing, others=others)


# The arrays that aren't by layer.
OUTCOME = ("clean", "noised", "patched", "direct", "direct_linear", "present")


class Cutter(Protocol):
    """Cuts cases into batches."""

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """Indices of the cases of each batch, within the budget."""


class Engine(Cutter, Protocol):
    """Cuts cases into batches and runs one of them."""

    name: str
    job: Job

    def rows_of(self, case: Case) -> int:
        """Token rows that a case takes in a layer, at most."""

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace one batch. The model must be prepared (eval mode, no gradients)."""


def shortest_of(batch: Sequence[Case]) -> int:
    """The place of the case that plain forwards are cheapest for."""
    return min(range(len(batch)), key=lambda index: len(batch[index].input_ids))


def left_of(engine: Cutter, cases: Sequence[Case], done: Collection[int]) -> list[list[Case]]:
    """The batches that are cut without the cases whose ids are done.

    Cut before what is done is left out: a batch has the same cases, and so the same last bits, whether or
    not a run was interrupted before it.
    """
    cut = [[cases[index] for index in batch] for batch in engine.batches(cases)]
    return [own for batch in cut if (own := [case for case in batch if case.case_id not in done])]
