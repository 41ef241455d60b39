"""Models inside of others: what is traced is the transformers model itself."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import nn

from moetrace.arguments import shown
from moetrace.errors import ModelError, WrappedModelError, WrapperWarning
from moetrace.weights.walk import walk

_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def unwrap(model: Any) -> tuple[Any, tuple[str, ...]]:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and PEFT, and what was around it.

    The innermost last. WrappedModelError for what changes more than the place of the model.
    """
    found: list[str] = []
    while isinstance(model, nn.Module):
        inner = _inside(model)
        if inner is None:
            break
        found.append(type(model).__name__)
        model = inner
    if not isinstance(model, nn.Module):
        raise _no_model(model)
    _refuse_sharded(model)
    for module, name in walk(model).items():
        if _is_compiled(module):
            raise WrappedModelError(
                f"{type(model).__name__}: {name} was replaced by what torch.compile returned, in which hooks "
                f"don't fire; put the module back ({name}._orig_mod), or compile it in place with "
                ".compile(), which a trace turns off for its time"
            )
    if "OptimizedModule" in found and model not in _told:
        _told.add(model)
        warnings.warn(
            f"the compiled {type(model).__name__} is traced as the module that was compiled (its _orig_mod): "
            "hooks don't fire inside compiled graphs",
            WrapperWarning,
            stacklevel=4,
        )
    return model, tuple(found)


def _inside(model: nn.Module) -> nn.Module | None:
    """The model that a wrapper holds; None for what is none."""
    kinds = {kind.__name__ for kind in type(model).__mro__}
    if _is_compiled(model):
        return model.get_submodule("_orig_mod")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.get_submodule("module")
    if kinds & {"PeftModel", "PeftMixedModel"}:
        return _of_peft(model)
    return None


def _of_peft(model: Any) -> nn.Module:
    """The model with its adapters. WrappedModelError for adapters that are tokens."""
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        kind = getattr(getattr(config, "peft_type", None), "value", type(config).__name__)
        raise WrappedModelError(
            f"{type(model).__name__} is adapted by {kind}, which puts virtual tokens before every prompt: a "
            "case's positions aren't those of the sequence that the model sees, and it can't be traced. "
            "Adapters inside of modules (LoRA and its kin) are served; for the model without adapter pass "
            ".get_base_model()"
        )
    inner: nn.Module = model.base_model.model
    return inner


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _refuse_sharded(model: nn.Module) -> None:
    """WrappedModelError for weights that a training framework has cut up."""
    for module in walk(model):
        kinds = {kind.__name__ for kind in type(module).__mro__}
        framework = next((name for kind, name in _SHARDING.items() if kind in kinds), None)
        partitioned = any(hasattr(weight, "ds_id") for weight in module._parameters.values())
        if framework or partitioned:
            raise WrappedModelError(
                f"{type(model).__name__} is sharded by {framework or 'DeepSpeed ZeRO-3'}, whose own hooks "
                "gather and free its weights; expected a model that is whole. Save its full state dict and "
                "load that with load_model (device_map='auto' puts it on several devices, stream=True leaves "
                "it on disk)"
            )


_SHARDING = {
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP",
    "DeepSpeedEngine": "DeepSpeed",
}


def _no_model(given: Any) -> ModelError:
    """What to do about something that isn't a model."""
    name = type(given).__name__
    if isinstance(given, str):
        return ModelError(
            f"model is the text {shown(given)}; load it first: "
            f"model, tokenizer = mt.load_model({shown(given)})"
        )
    if isinstance(getattr(given, "model", None), nn.Module):
        return ModelError(f"{name} is something around a model; expected the model itself: pass its .model")
    if isinstance(given, tuple) and given and isinstance(given[0], nn.Module):
        return ModelError(
            "model is a tuple, as load_model returns it; expected the model: pass its first part"
        )
    return ModelError(
        f"{name} has no config; expected a transformers model such as AutoModelForCausalLM gives"
    )
