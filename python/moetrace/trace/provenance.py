"""Where a result comes from, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace.engines.direct import at_final
from moetrace.metrics import LOGIT_DIFF
from moetrace.models.quantised import quantisation_note
from moetrace.models.state import stored
from moetrace.weights import origin
from moetrace.weights.stored import FileRange, offloaded_modules, placement_note
from moetrace.weights.tensors import parts_of

if TYPE_CHECKING:
    from moetrace.trace.session import Session

_SAMPLED = 64  # entries of each parameter that go into the fingerprint


def model_facts(model: torch.nn.Module) -> dict[str, Any]:
    """Name, revision, dtype, a digest of the config and a fingerprint of the weights.

    The fingerprint reads a few entries of every parameter, wherever it is: it tells two models of one config
    apart without reading all of a large one, and is the same for one model in memory and offloaded. Of a
    streamed one it reads the files a little; of a parameter that lies in parts on several ranks it has the
    shape alone, so that it is the same on all.
    """
    config = getattr(model, "config", None)
    text = json.dumps(config.to_dict(), sort_keys=True, default=str) if config is not None else ""
    digest = hashlib.sha256()
    places = {
        id(holder[leaf]): place
        for own in offloaded_modules(model)
        for (holder, leaf), place in ((own.holder(name), own.place(name)) for name in own.names)
    }
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, parameter in ((name, stored(weight)) for name, weight in model.named_parameters()):
        place = places.get(id(parameter))
        if place is not None and name in tied:  # in memory, it is one with another
            continue
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if hasattr(parameter, "device_mesh"):
            continue
        if origin(parameter) is not None:  # it stays in a checkpoint, which was looked into
            digest.update(repr(origin(parameter)).encode())
            continue
        for part in parts_of(parameter) if place is None else [place]:
            sample = _sample(part).to("cpu", torch.float32)
            digest.update(sample.numpy().tobytes())
    return {
        "class": type(model).__name__,
        "name": str(getattr(config, "_name_or_path", "") or ""),
        "revision": str(getattr(config, "_commit_hash", "") or ""),
        "dtype": str(stored(next(model.parameters())).dtype).removeprefix("torch."),
        "config": hashlib.sha256(text.encode()).hexdigest()[:16],
        "weights": digest.hexdigest()[:16],
    }


def _sample(part: torch.Tensor | FileRange) -> torch.Tensor:
    """Some entries of a weight, spread evenly."""
    step = max(1, torch.Size(part.shape).numel() // _SAMPLED)
    if isinstance(part, FileRange):
        return part.sample(step, _SAMPLED)
    return part.detach().flatten()[::step][:_SAMPLED]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("moetrace", "torch", "transformers", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except Exception:
            found[name] = "not installed as a distribution"
    return found


def provenance(session: Session, layers: tuple[int, ...]) -> dict[str, Any]:
    """Everything that a reader needs to make a result again. JSON values only."""
    job, choice = session.job, session.choice
    return {
        "model": model_facts(job.anatomy.model),
        "placement": placement_note(job.anatomy.model),
        "quantization": quantisation_note(job.anatomy),
        "wrapped": list(job.anatomy.wrapped),
        "versions": versions(),
        "engine": choice.engine.name,
        "engine_reason": choice.reason,
        "self_check": _at(choice.difference, session.place),
        "null_floor": _at(choice.null, session.place),
        "attention": session.attention,
        "compute_dtype": session.compute_dtype,
        "readout": job.readout.asked,
        "readout_by": job.readout.kind,
        **job.corruptor.corruption.facts(job.corruptor.embedding),
        "position": job.position,
        "mode": job.direction,
        "direct": _direct_note(session),
        "metric": session.metric.name,
        **({"metric_code": session.metric.code} if session.metric.code else {}),
        "ranks": session.ranks,
        "layers": list(layers),
        "case_ids": [case.case_id for case in session.cases],
        "failed_case_ids": session.failed.case_id.tolist(),
    }


def _at(floors: tuple[float, ...], place: int) -> float:
    """The floor of one metric; 0 where it wasn't compared."""
    return floors[place] if place < len(floors) else 0.0


def _direct_note(session: Session) -> str:
    """Whether direct effects were measured, and why not."""
    if session.metric is not LOGIT_DIFF:
        return "direct effects are of the logit difference alone"
    if any(case.several_tokens for case in session.cases):
        return "direct effects are of objects of one token"
    ending, outcome = session.job.ending, session.outcome
    if ending is None:
        return "not asked for"
    if ending.fault:
        return ending.fault
    notes = [ending.linear_fault] if ending.linear_fault else []
    unknown = (np.isnan(outcome.direct) & outcome.present[..., None]).any(axis=(1, 2)).sum()
    if unknown:
        notes.append(
            f"they are NaN in {unknown} of {len(outcome.direct)} cases, where final norm and read-out gave "
            "another logit difference by themselves than in the model's forward"
        )
    early = len(outcome.direct) - int(at_final(session.job, session.cases).any(axis=1).sum())
    if early:
        notes.append(f"0 in {early} of {len(outcome.direct)} cases, whose patched token isn't the final one")
    return "; ".join(["measured", *notes])
