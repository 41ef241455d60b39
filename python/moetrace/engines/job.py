"""What every engine is given, and what it can do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from moetrace._native import _core
from moetrace.cases.forced import asked_of
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
    from moetrace.engines.outcome import Outcome
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
        return [place.find(asked_of(case)) for place in self.places]

    def shape_of(self, case: Case) -> _core.CaseShape:
        """What the tree has to know of a case."""
        return _core.CaseShape(len(case.input_ids), *self.apart(case), self.tokens_of(case))

    def apart(self, case: Case) -> tuple[int, int]:
        """Where the clean and the other runs part: the subject, or where nothing is corrupted the final token
        (the other run is then the clean one again)."""
        if self.ablation is None:
            return case.subject
        return len(case.input_ids) - 1, len(case.input_ids)


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
