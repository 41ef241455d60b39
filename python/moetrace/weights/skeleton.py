"""A model as from_pretrained makes it from a checkpoint, but with every parameter on the meta device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moetrace.arguments import shown
from moetrace.errors import CheckpointError, ModelError
from moetrace.weights.checkpoint import Checkpoint
from moetrace.weights.conversion import Part, plan_conversion

# Quantised checkpoints that transformers makes plain again, by the method that their config names.
DEQUANTIZED = ("fp8", "mxfp4")


class _Stored:
    """Stands for a checkpoint tensor in from_pretrained's state dict: shape and dtype, no values.

    Keeps the dtype that the tensor is cast to before it is converted.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.cast: torch.dtype | None = None

    def __getitem__(self, _key: Any) -> _Stored:
        return self

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        self.cast = dtype
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


@dataclass(frozen=True)
class Skeleton:
    """``model``: buffers outside of the checkpoint have their values; ``parts``: how all else is made."""

    model: Any
    parts: list[Part]


def build_skeleton(
    checkpoint: Checkpoint, dtype: Any, options: dict[str, Any], *, trust_remote_code: bool = False
) -> Skeleton:
    """The model, and what its parameters come from.

    from_pretrained itself makes it, from a state dict of tensors without values. ModelError where the
    checkpoint isn't one of a model that can be made so.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = str(checkpoint.folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    _ask_for_plain_weights(config, folder)
    cls = _model_class(config, folder, trust_remote_code=trust_remote_code)
    stored = {name: _Stored(entry.shape, entry.dtype) for name, entry in checkpoint.entries.items()}
    transforms: list[Any] = []
    with _no_bars():
        model = _checked(cls, folder, transforms).from_pretrained(
            None, config=config, state_dict=stored, dtype=dtype, **options
        )
    model.__class__ = cls
    model.config.name_or_path = folder
    if (checkpoint.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    tensors = {name: torch.empty(own.shape, dtype=own.dtype, device="meta") for name, own in stored.items()}
    casts = {name: own.cast for name, own in stored.items()}
    return Skeleton(model.eval(), plan_conversion(model, transforms, tensors, casts))


def _ask_for_plain_weights(config: Any, folder: str) -> None:
    """A quantised checkpoint is dequantised on the way, or refused."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    own = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(own.get("quant_method", ""))
    if method not in DEQUANTIZED:
        raise ModelError(
            f"{folder} is quantised ({shown(method)}), and its layers can't be made plain one at a time; "
            f"stream=True serves plain checkpoints and {' and '.join(DEQUANTIZED)}: load it without stream"
        )
    config.quantization_config = {**own, "dequantize": True}


def _model_class(config: Any, folder: str, *, trust_remote_code: bool = False) -> type[nn.Module]:
    """The class that AutoModelForCausalLM has for a config, else the one that the config names."""
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    names = list(getattr(config, "architectures", None) or ())
    remote = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if remote and trust_remote_code:
        found: type[nn.Module] = get_class_from_dynamic_module(remote, folder)
        return found
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        several = known if isinstance(known, list | tuple) else (known,)
        chosen: type[nn.Module] = next((own for own in several if own.__name__ in names), several[0])
        return chosen
    for name in names:
        if hasattr(transformers, name):
            named: type[nn.Module] = getattr(transformers, name)
            return named
    raise ModelError(
        f"{folder} is of model type {shown(getattr(config, 'model_type', ''))} with architectures "
        f"{shown(names)}, none of which this version of transformers knows; update transformers"
    )


def _checked(cls: Any, folder: str, transforms: list[Any]) -> Any:
    """The class, with the first look at what loading found: before memory is filled for what is missing."""

    def finalize(model: Any, load_config: Any, info: Any) -> Any:
        transforms.extend(load_config.weight_mapping or [])
        _refuse_misfits(model, info, folder)
        return cls._finalize_model_loading(model, load_config, info)

    body = {"_finalize_model_loading": staticmethod(finalize), "__module__": cls.__module__}
    return type(cls.__name__, (cls,), body)


def _refuse_misfits(model: Any, info: Any, folder: str) -> None:
    """CheckpointError for parameters that are missing, of another shape, or can't be converted."""
    name = type(model).__name__
    if info.conversion_errors:
        first, why = next(iter(info.conversion_errors.items()))
        last = str(why).strip().splitlines()[-1]
        raise CheckpointError(
            f"{folder}: {first} of {name} can't be made from the checkpoint's tensors: {last}"
        )
    if info.mismatched_keys:
        first, found, expected = min(info.mismatched_keys, key=lambda own: str(own[0]))
        raise CheckpointError(
            f"{folder}: {first} has shape {tuple(found)} in the checkpoint and {tuple(expected)} in {name} "
            f"by config.json ({len(info.mismatched_keys)} such): config and weights are of different models; "
            "fetch both again"
        )
    ties = model.all_tied_weights_keys
    there = {twin for pair in ties.items() for twin in pair if not set(pair) <= info.missing_keys}
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    missing = sorted(
        key
        for key in info.missing_keys
        if key not in there and not any(pattern.search(key) for pattern in ignored)
    )
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the parameters of {name} ({missing[0]} first); expected a "
            "checkpoint of the whole model: fetch it again, or save it with save_pretrained"
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Nothing is loaded yet: no bar that says so."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown_before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            logging.enable_progress_bar()
