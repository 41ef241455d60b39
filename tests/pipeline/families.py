"""Models of a dozen layouts, and hooks written by hand to hold captures and patches to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from tests.engines import tiny, wide

IDS = torch.randint(3, tiny.VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
# Fused experts with and without biases, shared experts, norms behind the block, experts in the layer itself,
# experts by token id, identity experts, blocks that scale, a text part beside vision, mixers of other kinds.
SPARSE = [
    "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "granitemoe", "granitemoeshared", "gemma4_text",
    "dbrx", "longcat_flash", "phimoe", "ernie4_5_vl_moe", "deepseek_v4", "jamba", "hunyuan_v1_moe",
]  # fmt: skip
DENSE = ["llama", "gemma3"]
FAMILIES = SPARSE + DENSE
SHARED = {
    "qwen2_moe": "mlp.shared_expert", "deepseek_v3": "mlp.shared_experts", "granitemoeshared": "shared_mlp",
    "gemma4_text": "mlp", "ernie4_5_vl_moe": "mlp.shared_experts", "deepseek_v4": "mlp.shared_experts",
    "hunyuan_v1_moe": "mlp.shared_mlp",
}  # fmt: skip
ROUTERS = {
    "qwen3_moe": "mlp.gate", "qwen2_moe": "mlp.gate", "deepseek_v3": "mlp.gate", "gpt_oss": "mlp.router",
    "granitemoe": "block_sparse_moe.router", "granitemoeshared": "block_sparse_moe.router",
    "gemma4_text": "router", "dbrx": "ffn.router", "longcat_flash": "mlp.router", "phimoe": "mlp.router",
    "ernie4_5_vl_moe": "mlp.text_moe.gate", "deepseek_v4": "mlp.gate", "jamba": "feed_forward.router",
    "hunyuan_v1_moe": "mlp.gate",
}  # fmt: skip
LAYER = 3  # sparse in all of them


@cache
def model_of(family: str) -> Any:
    return tiny.make_model(family) if family in tiny.FAMILIES else wide.make_wide(family)


def layer_of(model: Any, family: str, layer: int = LAYER) -> Any:
    if family in tiny.FAMILIES:
        return model.model.layers[layer]
    return wide.layers_of(model, family)[layer]


def block_of(model: Any, family: str, layer: int = LAYER) -> Any:
    own = layer_of(model, family, layer)
    names = ("block_sparse_moe", "feed_forward", "ffn", "experts", "mlp")
    return next(getattr(own, name) for name in names if isinstance(getattr(own, name, None), torch.nn.Module))


def experts_of(model: Any, family: str, layer: int = LAYER) -> Any:
    return wide.experts_of(block_of(model, family, layer))


def mixer_of(model: Any, family: str, layer: int = LAYER) -> Any:
    own = layer_of(model, family, layer)
    return own.norm_attn_norm.attn if family == "dbrx" else own.self_attn


def linear_of(model: Any, family: str) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
    """What a router's logits are a linear map of: the module that is given it, the weight and the bias."""
    router = layer_of(model, family).get_submodule(ROUTERS[family])
    home = router
    for name in ("proj", "layer", "classifier", "wg"):
        home = getattr(home, name, home)
    entered = home if family in ("gemma4_text", "dbrx", "hunyuan_v1_moe") else router
    return entered, home.weight, getattr(home, "bias", None)


@contextmanager
def hooked(module: Any, function: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """A hook written by hand."""
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(function, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def by_token(value: torch.Tensor, ids: torch.Tensor = IDS) -> torch.Tensor:
    if value.dim() > 2 and value.shape[:2] == ids.shape:
        return value
    return value.reshape(*ids.shape, *value.shape[1:])


def output_of(model: Any, module: Any, **inputs: Any) -> torch.Tensor:
    """What a module gives in a forward."""
    found: list[torch.Tensor] = []
    with hooked(module, lambda _m, _a, _k, output: found.append(first(output).clone())), torch.no_grad():
        model(**(inputs or {"input_ids": IDS}))
    return by_token(found[0], inputs.get("input_ids", IDS))


def replaced(model: Any, module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Logits with a module's output changed by hand; ``change`` is given (batch, tokens, width)."""

    def act(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        value = first(output)
        new = change(by_token(value).clone()).reshape(value.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with hooked(module, act), torch.no_grad():
        return model(input_ids=IDS).logits


NAMES = ("hidden_states", "top_k_index", "top_k_weights")


def routed(args: Any, kwargs: Any) -> dict[str, Any]:
    return dict(zip(NAMES, args, strict=False)) | kwargs


def rerouted(model: Any, family: str, change: Callable[..., Any]) -> Callable[..., Any]:
    """A hook before experts: ``change(index, weights)``, both by token."""

    def act(_module: Any, args: Any, kwargs: Any) -> Any:
        given = routed(args, kwargs)
        index, weights = given["top_k_index"], given["top_k_weights"]
        new = change(by_token(index).clone(), by_token(weights).clone())
        given["top_k_index"], given["top_k_weights"] = (
            value.reshape(index.shape).to(old.dtype) for value, old in zip(new, (index, weights), strict=True)
        )
        return (), given

    return act
