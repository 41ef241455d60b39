"""A model's shape: of one in memory, or of a folder or hub id from its config alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moetrace.arguments import as_choice, as_path, shown
from moetrace.errors import ModelError
from moetrace.models.anatomy import Anatomy, look_over
from moetrace.models.float32 import HALF
from moetrace.models.load import HUB_ID
from moetrace.planning.sizes import ModelSize, size_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Blueprint:
    """``anatomy``: of the model itself, or of a skeleton whose weights hold no values.

    ``folder``: where its checkpoint may lie. ``loaded``: whether the model is in memory.
    """

    anatomy: Anatomy
    size: ModelSize
    name: str
    dtype: torch.dtype
    loaded: bool
    folder: Path | None

    @property
    def weights(self) -> list[Path]:
        """The checkpoint's files, as far as they are there."""
        return [] if self.folder is None else sorted(self.folder.glob("*.safetensors"))


def blueprint_of(model: Any, dtype: str = "auto") -> Blueprint:
    """What is known of a model in memory, or of one that isn't loaded.

    ``dtype``: of the weights of one that isn't: "auto" is the config's. ModelError where a folder or hub id
    has no config, or none of a causal language model.
    """
    as_choice(dtype, "dtype", ("auto", *DTYPES))
    if isinstance(model, nn.Module):
        return _of_memory(model)
    if not isinstance(model, str | os.PathLike):
        raise ModelError(
            f"model is {shown(model)} ({type(model).__name__}); expected a transformers model, a folder or "
            "a hub id"
        )
    name = as_model_name(model)
    skeleton = skeleton_of(config_of(name), None if dtype == "auto" else DTYPES[dtype])
    anatomy = look_over(skeleton)
    return Blueprint(anatomy, size_of(anatomy), name, _dtype(anatomy), False, _folder(name))


def computed_in(blueprint: Blueprint, compute_dtype: str | None) -> Blueprint:
    """The same in the dtype that a trace computes in: half-precision weights count in float32 then.

    Sizes stay those of the weights themselves.
    """
    if compute_dtype is None or blueprint.dtype not in HALF:
        return blueprint
    wide = look_over(skeleton_of(blueprint.anatomy.config, DTYPES[compute_dtype]))
    return replace(blueprint, anatomy=wide, dtype=DTYPES[compute_dtype], loaded=False)


def _of_memory(model: nn.Module) -> Blueprint:
    anatomy = look_over(model)
    name = str(getattr(getattr(anatomy.model, "config", None), "_name_or_path", "") or "")
    shown_name = name or type(anatomy.model).__name__
    folder = _folder(name) if name else None
    return Blueprint(anatomy, size_of(anatomy), shown_name, _dtype(anatomy), True, folder)


def as_model_name(name: Any) -> str:
    """A hub id or the path of a folder. ArgumentError where it can be neither."""
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return name
    return str(as_path(name, "model"))


def config_of(name: str) -> Any:
    """The config of a folder or hub id: what is on this machine first, then the hub's."""
    from transformers import AutoConfig

    failures = []
    for offline in (True, False):
        try:
            return AutoConfig.from_pretrained(name, local_files_only=offline)
        except Exception as failure:  # transformers and the hub raise dozens of kinds
            failures.append(failure)
        if Path(name).exists() or not HUB_ID.fullmatch(name):
            break
    raise ModelError(
        f"{name!r} has no config that can be read ({_short(failures[-1])}); expected a folder with a "
        "config.json, or a hub id whose config is cached or can be fetched"
    )


def skeleton_of(config: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """A causal language model of this config without values: all its weights on the meta device."""
    from transformers import AutoModelForCausalLM

    chosen = dtype or getattr(config, "dtype", None) or torch.float32
    try:
        with torch.device("meta"):
            untyped: Any = AutoModelForCausalLM
            model: nn.Module = untyped.from_config(config, dtype=chosen)
    except Exception as failure:
        kind = type(config).__name__
        raise ModelError(f"{kind} makes no causal language model: {_short(failure)}") from failure
    return model.eval()


def _dtype(anatomy: Anatomy) -> torch.dtype:
    """The dtype of most weights."""
    counts: dict[torch.dtype, int] = {}
    for weight in anatomy.model.parameters():
        counts[weight.dtype] = counts.get(weight.dtype, 0) + weight.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def _folder(name: str) -> Path | None:
    """The folder of a checkpoint: the one named, or the snapshot in the hub's cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except Exception:  # no hub id at all
        return None
    return Path(found).parent if isinstance(found, str) else None


def _short(failure: Exception) -> str:
    text = " ".join(str(failure).split())
    return f"{type(failure).__name__}: {text[:200]}"
