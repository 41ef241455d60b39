"""Which engine serves a model, found out once per model and checked on a case before it is trusted."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.job import Engine, Job, Patch, embedding_device
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine, lower
from moetrace.errors import ArgumentError, EngineError, TokenMixingError
from moetrace.models.forward import read_differences
from moetrace.models.state import fingerprint

if TYPE_CHECKING:
    from moetrace.cases import Case

ENGINES = ("auto", "tree", "reference")
_JOINS = {
    _core.Join.AFTER_LAYER: "forks join after their layer",
    _core.Join.BEFORE_LAYER: "forks join before their layer",
    _core.Join.START: "forks join before the first layer",
}
_OTHER_MIXERS = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|LightningAttention|LinearAttention|ShortConv|ShortConvolution|Rwkv|"
    r"Recurrent|SSM|Hyena|Retention|xLSTM|mLSTM|sLSTM"
)


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a trace and why it was chosen; ``difference`` is what the self-check measured."""

    engine: Engine
    reason: str
    difference: float


@dataclass(frozen=True)
class _Verdict:
    tree: bool
    join: _core.Join
    reason: str
    difference: float
    rows: int


_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Verdict]] = weakref.WeakKeyDictionary()


def choose_engine(
    job: Job, cases: Sequence[Case], engine: str = "auto", batch_tokens: int | None = None
) -> EngineChoice:
    """The engine for ``job``, with a budget of token rows a batch. The model must be prepared.

    "auto" takes the tree engine where token mixing is masked attention, found by structure and confirmed on
    the longest case against plain forwards; the reference engine elsewhere. EngineError where "tree" is
    asked for and doesn't apply; TokenMixingError where a sequence's result depends on its batch.
    """
    if engine not in ENGINES:
        raise ArgumentError(f"engine is {engine!r}; expected one of {', '.join(map(repr, ENGINES))}")
    longest = max(cases, key=lambda case: len(case.input_ids))
    rows = max(map(TreeEngine(job, batch_tokens=batch_tokens).rows_of, cases))
    verdict = _verdict(job, longest, rows)
    if engine == "reference":
        return EngineChoice(ReferenceEngine(job), "asked for", 0.0)
    if verdict.tree:
        return EngineChoice(TreeEngine(job, verdict.join, batch_tokens), verdict.reason, verdict.difference)
    if engine == "tree":
        raise EngineError(
            f"the tree engine doesn't serve {type(job.anatomy.model).__name__}: {verdict.reason}; use "
            "engine='auto' or engine='reference'"
        )
    return EngineChoice(ReferenceEngine(job), verdict.reason, 0.0)


def _verdict(job: Job, case: Case, rows: int) -> _Verdict:
    anatomy = job.anatomy
    implementation = getattr(anatomy.config, "_attn_implementation", None)
    # Windows and chunks act only on prompts that are longer than they are.
    key = (
        implementation,
        len(case.input_ids).bit_length(),
        bool(job.expert_layers),
        fingerprint(anatomy.model),
    )
    known = _verdicts.setdefault(anatomy.model, {})
    # Nor does a pass of few rows tell of one with more, where a model counts its keys (minimax_m3's blocks).
    if key not in known or known[key].rows < rows:
        _refuse_mixed_tokens(job, case)
        known[key] = _examine(job, case, 1 << (rows - 1).bit_length())  # rounded up: seldom examined anew
    return known[key]


def other_mixers(layers: Sequence[nn.Module]) -> list[str]:
    """Class names of recurrent and convolutional mixers inside the layers."""
    found = set()
    for layer in layers:
        for module in layer.modules():
            if _OTHER_MIXERS.search(type(module).__name__) or isinstance(module, nn.Conv1d):
                found.add(type(module).__name__)
    return sorted(found)


def _examine(job: Job, case: Case, rows: int) -> _Verdict:
    """Whether the tree engine gives what plain forwards give, on one case, three layers and so many rows."""
    mixers = other_mixers(job.anatomy.layers)
    if mixers:
        reason = f"its token mixing isn't masked attention alone ({', '.join(mixers)})"
        return _Verdict(False, _core.Join.START, reason, 0.0, rows)
    probe = replace(job, patches=_probe_patches(job), sweeps=(), position="last")
    filled = _filled(probe, case, rows)
    expected = ReferenceEngine(probe).run([case])
    tolerance = _tolerance(job, expected.clean, expected.noised, expected.patched)
    if not np.isfinite(tolerance):  # nothing to compare: the case itself is not finite
        return _Verdict(
            True, _core.Join.AFTER_LAYER, "token mixing is masked attention (by structure)", 0.0, rows
        )
    joins = tuple(_core.Join)
    while joins:
        tree = TreeEngine(filled, joins[0])
        found = tree.run([case])
        difference = max(
            float(np.abs(mine - theirs).max())
            for mine, theirs in zip(
                (found.clean, found.noised, found.patched[:, : len(probe.patches)]),
                (expected.clean, expected.noised, expected.patched),
                strict=True,
            )
        )
        if difference <= tolerance:
            reason = f"token mixing is masked attention ({_JOINS[tree.join]})"
            return _Verdict(True, tree.join, reason, difference, rows)
        joins = lower(tree.join)
    reason = f"its single pass differs from plain forwards by {difference:.2g} (tolerance {tolerance:.2g})"
    return _Verdict(False, _core.Join.START, reason, difference, rows)


def _filled(probe: Job, case: Case, rows: int) -> Job:
    """The probe with as many null forks as make its tree no smaller than the trace's own."""
    lowest = min(patch.layer for patch in probe.patches)
    missing = rows - TreeEngine(probe).rows_of(case)
    fill = [Patch.null(lowest)] * max(0, -(-missing // probe.noise.draws))
    return replace(probe, patches=(*probe.patches, *fill))


def _probe_patches(job: Job) -> tuple[Patch, ...]:
    """Block patches at three layers, and where experts are traced the sum of all clean-routed ones there."""
    experts = job.expert_layers
    layers = experts or job.anatomy.default_layers()
    chosen = sorted({layers[0], layers[len(layers) // 2], layers[-1]})
    patches: list[Patch] = [Patch.block(layer) for layer in chosen]
    if experts:
        patches += [Patch.of_experts(layer, _core.Chosen.CLEAN) for layer in chosen]
    return tuple(patches)


def _tolerance(job: Job, *values: np.ndarray) -> float:
    """What rounding can explain. In half precision a near tie of a router can flip, so it is wide there."""
    size = max(float(np.abs(value).max()) for value in values)
    dtype = next(job.anatomy.model.parameters()).dtype
    return (1e-3 if dtype in (torch.float32, torch.float64) else 0.25) * max(1.0, size)


def _refuse_mixed_tokens(job: Job, case: Case) -> None:
    """TokenMixingError where the clean sequence gives another result beside another sequence."""
    alone = _clean_difference(job, case, beside=False)
    together = _clean_difference(job, case, beside=True)
    if not np.isfinite(alone) or abs(together - alone) <= _tolerance(job, np.array([alone])):
        return
    raise TokenMixingError(
        f"{type(job.anatomy.model).__name__}: the logit difference of case {case.case_id} changes from "
        f"{alone:.3g} to {together:.3g} when another sequence stands in the same batch, so a token's result "
        "depends on tokens that are not its own; patching one token is not defined there, and the model "
        "can't be traced"
    )


def _clean_difference(job: Job, case: Case, beside: bool) -> float:
    """The clean logit difference, alone or in a batch with the prompt read backwards."""
    sequences = [case.input_ids, case.input_ids[::-1]] if beside else [case.input_ids]
    ids = torch.tensor(sequences, device=embedding_device(job.anatomy))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    objects = torch.tensor([(case.true_id, case.foil_id)] * len(sequences))
    last = [len(case.input_ids) - 1]
    return float(read_differences(job.anatomy, job.readout, inputs, last, objects)[0, 0])
