"""The user's model for the time of a trace, and as it was after it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

_IMPLEMENTATIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
TREE_ATTENTION = ("sdpa", "eager")


def configs_of(model: nn.Module) -> list[Any]:
    """Every configuration object that a module of the model reads, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """What a verdict about a module is true for: its weights, its hooks, its forwards.

    Weights by place, version and a few entries: an edit in place through ``.data`` raises no version, and
    shows where it reaches one of the entries.
    """
    weights = tuple(
        (0, 0, b"") if w.is_meta else (w.data_ptr(), 0 if w.is_inference() else w._version, few_entries(w))
        for w in (*module.parameters(), *module.buffers())
    )
    hooks = tuple(
        (
            type(child).__name__,
            *child._forward_hooks,
            *child._forward_pre_hooks,
            id(vars(child).get("forward")),
            id(type(child).forward),
        )
        for child in module.modules()
    )
    return weights, hooks


def settings_of(model: nn.Module) -> str:
    """A digest of every configuration that the model reads, attention and experts implementation included."""
    found = [
        (config.to_dict(), *(getattr(config, name, None) for name in _IMPLEMENTATIONS))
        for config in configs_of(model)
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def few_entries(weight: torch.Tensor) -> bytes:
    """Up to seven entries along each axis, spread evenly."""
    local = weight.to_local() if hasattr(weight, "to_local") else weight.detach()  # of a DTensor
    spread = local[tuple(slice(None, None, max(1, size // 4)) for size in local.shape)]
    return spread.to("cpu", torch.float64).numpy().tobytes()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, module by module as it was afterwards, also after an interrupt."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attention_that_takes_masks(model: nn.Module) -> Iterator[None]:
    """Switch attention that can't take a 4-D mask to one that can, and back."""
    changed: list[tuple[Any, Any]] = []
    sdpa = all(getattr(m, "_supports_sdpa", True) for m in model.modules() if hasattr(m, "_supports_sdpa"))
    try:
        for config in configs_of(model):
            before = config._attn_implementation_internal
            if before is not None and before not in TREE_ATTENTION:
                changed.append((config, before))
                config._attn_implementation_internal = "sdpa" if sdpa else "eager"
        yield
    finally:
        for config, before in changed:
            config._attn_implementation_internal = before


@contextmanager
def no_router_losses(model: nn.Module) -> Iterator[None]:
    """Switch off router logits and the loss over them, which ask for a plain batch, and back on."""
    changed = [config for config in configs_of(model) if getattr(config, "output_router_logits", False)]
    try:
        for config in changed:
            config.output_router_logits = False
        yield
    finally:
        for config in changed:
            config.output_router_logits = True


@contextmanager
def experts_that_take_doubles(model: nn.Module) -> Iterator[None]:
    """Switch experts of float64 models from grouped products, which torch has up to float32, and back."""
    name = "_experts_implementation_internal"
    double = any(weight.dtype is torch.float64 for weight in model.parameters())
    configs = [
        config for config in configs_of(model) if getattr(config, name, None) == "grouped_mm" and double
    ]
    try:
        for config in configs:
            setattr(config, name, "eager")
        yield
    finally:
        for config in configs:
            setattr(config, name, "grouped_mm")


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Call modules as they were before ``module.compile()``: hooks inside a compiled graph don't fire."""
    compiled = [m for m in model.modules() if getattr(m, "_compiled_call_impl", None) is not None]
    calls = [module._compiled_call_impl for module in compiled]
    try:
        for module in compiled:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in zip(compiled, calls, strict=True):
            module._compiled_call_impl = call


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """All of the above that every engine needs."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(attention_that_takes_masks(model))
        stack.enter_context(no_router_losses(model))
        stack.enter_context(experts_that_take_doubles(model))
        stack.enter_context(uncompiled(model))
        yield


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states that a module returns, alone or first in a tuple."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
