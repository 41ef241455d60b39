"""``mt.plan``: from a model's shape and the cases to rows, operations, bytes, memory and time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from moetrace._native import _core
from moetrace.arguments import as_choice, as_count, as_flag, as_number, as_seed, known_names, refuse_type
from moetrace.cases import CaseSet, as_case_set, refuse_several_tokens, validate_cases
from moetrace.cases.forced import asked_of
from moetrace.corruptions import SwapSubject
from moetrace.metrics import check_foils, check_single
from moetrace.planning.blueprint import Blueprint, blueprint_of, computed_in
from moetrace.planning.memory import peak_memory
from moetrace.planning.result import Plan
from moetrace.planning.speed import Estimate, estimate
from moetrace.planning.stages import (
    WHATS,
    Stage,
    bare_job,
    experts_stage,
    forced,
    knockout_stage,
    layers_stage,
    protocol_stages,
    refuse_options,
    select_stage,
)
from moetrace.planning.work import Batch, batches_of, head_flops, layer_flops, layer_rows
from moetrace.protocol.corruption import corruption_of
from moetrace.protocol.lengths import within_positions
from moetrace.protocol.settings import Settings
from moetrace.trace.budget import resolve_budget
from moetrace.trace.options import TraceOptions, checked, shows_options
from moetrace.weights import source_of

if TYPE_CHECKING:
    from torch import nn

    from moetrace.cases import Case


@partial(shows_options, without=("progress", "out"))
def plan(
    model: nn.Module | str | os.PathLike[str],
    cases: Sequence[Case] | CaseSet,
    what: str = "layers",
    *,
    layers: int | Sequence[int] | None = None,
    settings: Settings | Mapping[str, Any] | str | None = None,
    n: int = 256,
    seed: int | None = 0,
    usable: float = 0.5,
    dtype: str = "auto",
    stream: bool = False,
    timed: bool = True,
    **options: Unpack[TraceOptions],
) -> Plan:
    """What a trace will cost, before it costs it: rows, operations, bytes, memory, time.

    >>> mt.plan("Qwen/Qwen3-30B-A3B-Base", cases, what="protocol")      # from the config alone
    >>> found = mt.plan(model, cases, what="experts", layers=[44])
    >>> found.seconds, found.peak_memory, found.rows_by_layer

    Args:
        model: A model in memory; or a folder or hub id, of which the config alone is read: the weights
            needn't be there.
        cases: As the trace takes them. For "select" and "protocol": what the selection scans.
        what: "layers" (:func:`moetrace.trace_layers`), "experts" (:func:`moetrace.trace_experts`), "knockout"
            (:func:`moetrace.trace_knockout` with ``ablation="zero"``), "select"
            (:func:`moetrace.select_cases`) or "protocol" (:func:`moetrace.run_protocol`).
        layers: Of "layers", "experts" and "knockout", as they take it.
        settings: Of "protocol": its Settings, a preset's name, or a mapping of settings.
        n, seed: Of "select", as it takes them.
        usable: Share of the scanned cases that is usable: what a selection finds isn't known before. For the
            relaxed scale-up, which admits more, half of the others are added.
        dtype: Of the weights of a model that isn't loaded: "auto" (its config's), "float32", "bfloat16" or
            "float16".
        stream: Whether weights stay on disk and each trace reads every layer once (``load_model(...,
            stream=True)``); of a model that is loaded so they do.
        timed: Time one micro-batch in a layer of this shape, with its own weights where it is in memory, else
            with random ones, for ``.seconds``.
        **options: The common arguments of :func:`moetrace.trace_layers` that change what is run: a
            ``metric`` of the whole vocabulary reads the whole head for every run, ``compute_dtype`` takes
            memory for float32 beside the weights.

    Returns:
        A :class:`Plan`. Rows and operations are those of the trace itself; the checks of its engine come
        once for a model and are in ``.seconds`` alone. Operations are two for each entry of the matrices that
        a token row meets (of ``top_k`` of the experts) and for each product of attention, and the head's.
        ``.seconds`` is of a machine that does nothing else, and doesn't count loading.

    Raises:
        ModelError: The folder or hub id has no config, or none of a causal language model.
        ArgumentError, CaseError: As the trace; ArgumentError for an argument that it doesn't have.
    """
    common = checked(dict(options), plan)
    what = as_choice(what, "what", WHATS)
    refuse_options(what, options)
    n, share = as_count(n, "n"), as_number(usable, "usable", 0.001, 1)
    seed = None if seed is None else as_seed(seed)
    stream, timed = as_flag(stream, "stream"), as_flag(timed, "timed")
    stream = stream or (isinstance(model, torch.nn.Module) and source_of(model) is not None)
    chosen = _settings(settings)
    blueprint = blueprint_of(model, dtype)
    case_set = as_case_set(cases)
    if what == "protocol":
        refuse_several_tokens(case_set, "run_protocol")
        case_set = within_positions(case_set, blueprint.anatomy.positions)
        given = settings.get("corruption") if isinstance(settings, Mapping) else None
        common |= {
            "corruption": corruption_of(chosen, given, case_set, blueprint.anatomy.model),
            "engine": chosen.engine, "readout": chosen.readout, "batch_tokens": chosen.batch_tokens,
            "compute_dtype": chosen.compute_dtype,
        }  # fmt: skip
    if what in ("select", "protocol") and isinstance(common["corruption"], SwapSubject):
        case_set = common["corruption"].usable(case_set)
    final_subject: Any = common["final_subject"] if what in ("layers", "experts") else "keep"
    validate_cases(case_set, blueprint.anatomy.vocab_size, final_subject, blueprint.anatomy.positions)
    check_foils(common["metric"].metrics, case_set)
    check_single(common["metric"].metrics, case_set)
    common["corruption"].check(case_set)
    working = computed_in(blueprint, common["compute_dtype"])
    job = bare_job(working.anatomy, common, case_set, what)
    if what == "layers":
        stages = [layers_stage(job, case_set, layers)]
    elif what == "experts":
        stages = [experts_stage(job, case_set, layers)]
    elif what == "knockout":
        stages = [knockout_stage(job, case_set, layers)]
    elif what == "select":
        stages = [select_stage(job, case_set, n, share, seed, stream)]
    else:
        stages = protocol_stages(job, case_set, chosen, share, stream)
    stages = [forced(stage) for stage in stages]
    budget = resolve_budget(common["batch_tokens"], working.anatomy)
    laid = _Laid(stages, common["engine"], budget, wide=working.dtype != blueprint.dtype)
    found = estimate(working, laid.stages, laid.batches, laid.engine, stream) if timed else None
    if found is not None and (found.engine, found.join) != (laid.engine, laid.join):
        laid = _Laid(stages, found.engine, budget, found.join, laid.wide)
        found = estimate(working, laid.stages, laid.batches, laid.engine, stream)
    memory = peak_memory(blueprint, working, laid.stages, laid.batches, stream)
    return _plan(blueprint, what, laid, found, stream, share, memory)


def _settings(given: Any) -> Settings:
    if given is None:
        return Settings()
    if isinstance(given, Settings):
        return given
    if isinstance(given, str):
        return Settings.of(given)
    if not isinstance(given, Mapping):
        refuse_type(given, "settings", "Settings, a preset's name, or a mapping of settings")
    own = dict(given)
    known_names([str(name) for name in own], ["preset", "noise", *Settings.names()], "settings")
    return Settings.of(own.pop("preset", "paper"), **own)


class _Laid:
    """Stages laid out in batches for an engine."""

    def __init__(
        self,
        stages: list[Stage],
        engine: str,
        budget: int,
        join: _core.Join = _core.Join.AFTER_LAYER,
        wide: bool = False,
    ) -> None:
        engine, self.wide = "tree" if engine == "auto" else engine, wide
        self.stages, self.engine, self.join, self.budget = stages, engine, join, budget
        self.batches: list[list[Batch]] = [batches_of(stage, engine, join, budget) for stage in stages]


def _plan(
    blueprint: Blueprint,
    what: str,
    laid: _Laid,
    found: Estimate | None,
    stream: bool,
    share: float,
    memory: int,
) -> Plan:
    size, count = blueprint.size, len(blueprint.anatomy.layers)
    sites = blueprint.anatomy.sites
    rows = [layer_rows(batches, count) for batches in laid.batches]
    flops = [layer_flops(batches, size) for batches in laid.batches]
    lines = []
    for index, (stage, batches) in enumerate(zip(laid.stages, laid.batches, strict=True)):
        head = head_flops(stage.job, batches, size)
        lines.append(
            {
                "stage": stage.name,
                "cases": len({asked_of(case).case_id for case in stage.cases}),
                "forwards": sum(len(batch.forwards) for batch in batches),
                "tokens": sum(_prompts(stage).values()),
                "rows": int(rows[index].sum()),
                "flops": float(flops[index].sum()) + head,
                "bytes_read": size.layer_bytes * len(stage.scans) if stream else 0,
                "seconds": float("nan") if found is None else found.seconds[index],
            }
        )
    stages = pd.DataFrame(lines)
    by_layer = np.sum(rows, axis=0)
    layers = pd.DataFrame(
        {
            "layer": range(count),
            "routed": [site is not None and site.sparse for site in sites],
            "parameters": [layer.parameters for layer in size.layers],
            "active": [layer.active for layer in size.layers],
            "bytes": [layer.bytes for layer in size.layers],
            "rows": by_layer,
            "flops": np.sum(flops, axis=0),
        }
    )
    # What a process loads before its first trace; of a model in memory nothing is left to load.
    loaded = 0 if blueprint.loaded else size.bytes - (size.layer_bytes if stream else 0)
    distinct = {case_id: size for stage in laid.stages for case_id, size in _prompts(stage).items()}
    return Plan(
        model=blueprint.name,
        what=what,
        tokens=sum(distinct.values()),
        rows=int(by_layer.sum()),
        rows_by_layer=by_layer,
        flops=float(stages.flops.sum()),
        bytes_read=loaded + int(stages.bytes_read.sum()),
        peak_memory=memory,
        seconds=float("nan") if found is None else float(stages.seconds.sum(skipna=False)),
        engine=laid.engine,
        batch_tokens=laid.budget,
        notes=tuple(_notes(blueprint, what, laid, found, stream, share)),
        stages=stages,
        layers=layers,
    )


def _prompts(stage: Stage) -> dict[int, int]:
    """Tokens of each prompt, by case id."""
    return {own.case_id: len(own.input_ids) for own in map(asked_of, stage.cases)}


def _notes(
    blueprint: Blueprint, what: str, laid: _Laid, found: Estimate | None, stream: bool, share: float
) -> list[str]:
    """What was assumed."""
    dtype = str(blueprint.dtype).removeprefix("torch.")
    where = "its weights in memory" if blueprint.loaded else "planned from its config"
    notes = [f"{dtype}, {where}; engine {laid.engine}, {laid.budget:,} token rows a batch."]
    if what in ("select", "protocol"):
        notes.append(f"{share:.0%} of the scanned cases are taken to be usable (usable={share:g}).")
    if what == "protocol" and blueprint.anatomy.sparse_layers:
        notes.append("The layer that will be selected is taken to be the middle one.")
    if laid.wide:
        notes.append("It computes in float32, from copies of a layer's weights at a time.")
    if stream:
        notes.append("Weights stay on disk; each pass reads every layer once, while the one before computes.")
    return notes + (["Nothing was timed (timed=False)."] if found is None else list(found.notes))
