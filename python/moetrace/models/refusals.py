"""Models that can't be traced whatever their layers are: encoders, and those without their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from moetrace.errors import ModelError, NotCausalError
from moetrace.weights import source_of
from moetrace.weights.stored import offloaded_names
from moetrace.weights.walk import walk


def refuse_encoders(model: nn.Module, config: Any) -> None:
    """NotCausalError for a model whose tokens see later ones by what it says of itself.

    Others are found by running them. A causal model may say nothing, or of its image encoder alone.
    """
    name = type(model).__name__
    expected = "since the protocol reads what follows the prompt"
    if name.endswith("ForMaskedLM"):
        raise NotCausalError(
            f"{name} is a masked language model: its tokens see later ones; expected a causal one "
            f"(AutoModelForCausalLM), {expected}"
        )
    said = {
        type(module).__name__: value
        for module in list(walk(model))[1:]
        for value in (getattr(module, "is_causal", None), getattr(module, "is_decoder", None))
        if isinstance(value, bool)
    }
    if getattr(config, "is_decoder", None) is False and said and not any(said.values()):
        raise NotCausalError(
            f"{name} is an encoder with a causal model's head: config.is_decoder is False and its attention "
            f"({', '.join(sorted(said))}) isn't causal, so tokens see later ones; expected a causal model "
            f"(AutoModelForCausalLM; with is_decoder=True for an encoder trained as a decoder), {expected}"
        )


def refuse_absent_weights(model: nn.Module) -> None:
    """ModelError for weights on the meta device that nothing brings into memory during a forward."""
    if source_of(model) is not None:
        return
    modules = walk(model)
    heads = {module: f"{path}." if path else "" for module, path in modules.items()}
    brought = {heads[module] + name for module in modules for name in offloaded_names(module)}
    weights = (
        (heads[module] + name, weight)
        for module in modules
        for name, weight in (*module._parameters.items(), *module._buffers.items())
        if weight is not None and weight.is_meta
    )
    for name, _ in weights:
        if name not in brought:
            raise ModelError(
                f"{type(model).__name__}: {name} is on the meta device and holds no values; load the "
                "checkpoint into memory (load_model, or from_pretrained without init_empty_weights)"
            )
