"""How long a micro-batch takes in one decoder layer of a model's shape, run as a trace runs it.

The layer stands twice in a model of two layers, of the same shape otherwise: its own weights where the model
is in memory, else random ones. Forks leave in the first layer, so that the first sees the rows that every
trace begins with and the second the rows that it ends with. What is timed is the trace itself, engine and
hooks included.
"""

from __future__ import annotations

import copy
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.cases import Case
from moetrace.counts import counting
from moetrace.engines.job import Patch, Sweep
from moetrace.engines.places import LAST
from moetrace.engines.tree import TreeEngine
from moetrace.metrics import as_metrics
from moetrace.models.anatomy import EXPERT_COUNTS, LAYER_COUNTS, look_over
from moetrace.models.experts import top_k_of
from moetrace.models.float32 import is_half
from moetrace.trace.session import trace

if TYPE_CHECKING:
    from moetrace.engines.engine_choice import EngineName
    from moetrace.models.anatomy import Anatomy
    from moetrace.planning.blueprint import Blueprint
    from moetrace.planning.stages import Stage
    from moetrace.planning.work import Batch

_VOCABULARY = 4096  # of a model with random weights: embedding and head cost little, and memory much
_NO_BUDGET = 2**40
_REPEATS, _ENOUGH = 3, 2.0  # of a timing, and seconds after which one does
_BLOCK = 1 << 20  # random numbers that fill a weight


Samples = list[tuple[int, float]]  # token rows and seconds of each call of a layer


@dataclass(frozen=True)
class Pace:
    """Seconds of a trace's parts, as timed.

    ``fixed``, ``per_row``: of a call of a layer, by its kind. ``beside``: of a token row in everything beside
    the layers. ``checks``, ``checks_per_layer``: what a first trace does before it trusts its engine.
    ``engine``, ``join``: which engine served, and where its forks joined.
    """

    fixed: dict[Any, float]
    per_row: dict[Any, float]
    beside: float
    checks: float
    checks_per_layer: float
    engine: str
    join: _core.Join


def kind_of(anatomy: Anatomy, index: int) -> Any:
    """What two layers that cost the same have in common: names and shapes of their weights."""
    return tuple((name, tuple(own.shape)) for name, own in anatomy.layers[index].named_parameters())


def timed(blueprint: Blueprint, stage: Stage, batch: Batch, engine: EngineName) -> Pace:
    """Time one batch of a stage in a layer of every kind. Raises whatever such a small model raises."""
    kinds = [kind_of(blueprint.anatomy, index) for index in range(len(blueprint.anatomy.layers))]
    common = max(kinds, key=kinds.count)
    fits, beside, checks, per_layer = {}, 0.0, 0.0, 0.0
    for kind in dict.fromkeys(kinds):
        model = small_model(blueprint, kinds.index(kind))
        run = partial(_trace, blueprint=blueprint, stage=stage, batch=batch, engine=engine)
        run(watched(model))  # threads, kernels and pages are there from now on
        firsts: list[_Timed] = []
        agains: list[_Timed] = []
        start = time.perf_counter()
        while not agains or (len(agains) < _REPEATS and time.perf_counter() - start < _ENOUGH):
            fresh = watched(small_model(blueprint, kinds.index(kind))) if kind == common else model
            firsts.append(run(fresh))
            agains.append(run(fresh))
        fits[kind] = _fit([sample for own in agains for sample in own.samples])
        if kind != common:
            continue
        again = agains[-1]
        inside, outside = (min(getattr(own, part) for own in agains) for part in ("inside", "beside"))
        beside = outside / again.rows
        per_layer = max(0.0, min(own.inside for own in firsts) - inside) / 2
        checks = max(0.0, min(own.beside for own in firsts) - outside)
        if is_half(model):  # widened layer by layer, outside of what the layers' clock sees
            per_layer, checks = per_layer + checks / 2, 0.0
    fixed, per_row = ({kind: fit[part] for kind, fit in fits.items()} for part in (0, 1))
    return Pace(fixed, per_row, beside, checks, per_layer, again.engine, again.join)


def _fit(samples: Samples) -> tuple[float, float]:
    """Seconds of a call and of each of its rows, through the fastest of the smallest and largest calls."""
    half = max(count for count, _ in samples) / 4  # the checks' own few rows say nothing of a batch
    sizes = sorted({count for count, _ in samples if count >= half})
    low, high = sizes[0], sizes[-1]
    first, last = (min(t for count, t in samples if count == size) for size in (low, high))
    slope = (last - first) / (high - low) if high > 1.2 * low else 0.0
    if slope <= 0 or first < slope * low:  # no room for a fixed part
        return 0.0, last / high
    return first - slope * low, slope


@dataclass(frozen=True)
class _Timed:
    """One trace: its layers' calls, seconds in all, and the rows of its forwards."""

    samples: Samples
    seconds: float
    rows: int
    engine: str
    join: _core.Join

    @property
    def inside(self) -> float:
        """Seconds in layers."""
        return sum(own for _, own in self.samples)

    @property
    def beside(self) -> float:
        """All others."""
        return self.seconds - self.inside


def _trace(model: nn.Module, blueprint: Blueprint, stage: Stage, batch: Batch, engine: EngineName) -> _Timed:
    """A batch of a stage on a small model, all patches in its first layer."""
    anatomy, job = look_over(model), stage.job
    cases = [_small(case, place, anatomy.vocab_size) for place, case in enumerate(batch.cases)]
    runs = len(job.runs)
    if engine != "reference":  # those of the largest part of a case that is cut
        runs = (max(own.runs for own in batch.forwards) - 1) // job.draws - 1
    sweeps: list[Sweep] = []
    if stage.swept and anatomy.sites[0] is not None and anatomy.sites[0].experts is not None:
        sweeps = [Sweep(layer, top_k_of(anatomy.config), job.sweeps[0].of_union) for layer in (0, 1)]
    slots = sum(sweep.top_k * (1 + sweep.of_union) for sweep in sweeps)
    patches = [Patch.null(0), *[Patch.block(0)] * max(0, runs - 1 - slots)]
    samples: Samples = vars(anatomy.layers[0])["forward"].samples
    places = job.places if len(job.places) == 1 else (LAST,)
    before = len(samples)
    with warnings.catch_warnings(), counting() as counted:
        warnings.simplefilter("ignore")  # random weights give what they give
        start = time.perf_counter()
        session = trace(
            model, cases, patches, anatomy=anatomy, corruption=job.corruptor.corruption,
            position=places, metric=as_metrics("logit_diff"), engine=engine, batch_tokens=_NO_BUDGET,
            progress=False, out=None,
            final_subject="keep", readout=job.readout.asked, sweeps=sweeps, direct=stage.direct,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    chosen = session.choice.engine
    join = chosen.join if isinstance(chosen, TreeEngine) else _core.Join.START
    return _Timed(samples[before:], seconds, max(1, counted.rows), chosen.name, join)


def _small(case: Case, place: int, vocabulary: int) -> Case:
    """The same prompt, as far as its length goes, in a small vocabulary."""
    ids = [token % vocabulary for token in case.input_ids]
    return Case(tuple(ids), case.subject, 0, 1, place)


class _Stopwatch:
    """Times every call of a layer, without the hooks before and behind it."""

    def __init__(self, forward: Any, samples: Samples) -> None:
        self._forward, self.samples = forward, samples

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        _wait(hidden.device)
        start = time.perf_counter()
        output = self._forward(*args, **kwargs)
        _wait(hidden.device)
        self.samples.append((hidden.numel() // hidden.shape[-1], time.perf_counter() - start))
        return output


def watched(model: nn.Module) -> nn.Module:
    """The model with a clock in each layer, for good: what changes a model makes its checks come again."""
    samples: Samples = []
    for layer in look_over(model).layers:
        vars(layer)["forward"] = _Stopwatch(layer.forward, samples)
    return model


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def small_model(blueprint: Blueprint, index: int) -> nn.Module:
    """A model of two layers of the shape of one: that layer's own weights where it is in memory."""
    source = blueprint.anatomy.model
    config: Any = copy.deepcopy(source.config)
    text = config.get_text_config(decoder=True)
    if not blueprint.loaded:
        text.vocab_size = min(text.vocab_size, _VOCABULARY)
        if isinstance(getattr(text, "pad_token_id", None), int):
            text.pad_token_id = 0
    with torch.device("meta"):
        model: nn.Module = type(source)._from_config(config, dtype=blueprint.dtype)  # type: ignore[attr-defined]
    model.eval().requires_grad_(False)
    anatomy = look_over(model)
    layer = blueprint.anatomy.layers[index] if blueprint.loaded else anatomy.layers[index]
    holder = next(
        own for own in model.modules() if isinstance(own, nn.ModuleList) and own[0] is anatomy.layers[0]
    )
    configs = {id(blueprint.anatomy.config): anatomy.config}
    pair = nn.ModuleList([twin(layer, configs), layer])
    if blueprint.loaded:
        pair[1] = twin(layer, configs)
        _share(source, model, anatomy)
    _set_child(model, holder, pair)
    if not blueprint.loaded:
        _fill(model)
        pair[0] = twin(layer, configs)
    for place, own in enumerate(pair):
        for module in own.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", place)  # noqa: B010 (typed as a module)
    _shorten(anatomy.config, len(anatomy.layers), index)
    site = anatomy.sites[index]
    if site is None or not site.sparse:  # a model of its dense layers alone
        for name in EXPERT_COUNTS:
            if isinstance(getattr(anatomy.config, name, None), int):
                setattr(anatomy.config, name, 1)
    return model


def twin(module: nn.Module, others: dict[int, Any] | None = None) -> nn.Module:
    """The same in other module objects, sharing the weights; ``others``: what takes the place of what."""
    shared = {id(own): own for own in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo={**shared, **(others or {})})


def _share(source: nn.Module, model: nn.Module, anatomy: Anatomy) -> None:
    """Let the modules beside the layers hold the tensors of a model in memory."""
    inside = {module for layer in anatomy.layers for module in layer.modules()}
    for name, module in model.named_modules():
        if module not in inside:
            own = source.get_submodule(name)
            module._parameters.update(own._parameters)
            module._buffers.update(own._buffers)


def _set_child(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if child is old:
                setattr(module, name, new)


def _shorten(config: Any, layers: int, index: int) -> None:
    """Make a config one of two layers, both as this one."""
    for name in LAYER_COUNTS:
        if getattr(config, name, None) == layers:
            setattr(config, name, 2)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(config, name, type(value)([value[index]] * 2))


def _fill(model: nn.Module) -> None:
    """Give every weight without values random ones of a usual size, and buffers what the model gives them."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(_BLOCK, generator=generator)
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None or not weight.is_meta:
                continue
            filled = torch.empty(weight.shape, dtype=weight.dtype)
            if weight.dim() < 2:
                filled.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                flat, scale = filled.flatten(), weight.shape[-1] ** -0.5
                for begin in range(0, flat.numel(), _BLOCK):
                    part = flat[begin : begin + _BLOCK]
                    part.copy_(block[: part.numel()] * scale)
            module._parameters[name] = nn.Parameter(filled, requires_grad=False)
        absent = [name for name, own in module._buffers.items() if own is not None and own.is_meta]
        for name in absent:
            old = module._buffers[name]
            assert old is not None
            module._buffers[name] = torch.zeros(old.shape, dtype=old.dtype)
        if absent and hasattr(model, "_init_weights"):
            with torch.no_grad(), suppress(AttributeError):  # of a config without a usual name
                model._init_weights(module)  # type: ignore[operator]
