"""A third implementation of the layer sweep: plain hooks, one sequence a forward, the model's own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from moetrace import Case

PATHS = ("mlp", "block_sparse_moe", "feed_forward")


def block_of(layer: torch.nn.Module) -> torch.nn.Module:
    return next(getattr(layer, name) for name in PATHS if hasattr(layer, name))


def layers_of(model: Any) -> torch.nn.ModuleList:
    return model.model.layers


def embedding_output_std(model: Any) -> float:
    with torch.no_grad():
        return model.get_input_embeddings()(torch.arange(model.config.vocab_size)[None]).double().std().item()


def run(model: Any, case: Case, noise: Any = None, patch: Any = None, keep: dict | None = None) -> float:
    """True minus foil logit; arguments of :func:`final_logits`."""
    logits = final_logits(model, case, noise, patch, keep)
    return float(logits[case.true_id] - logits[case.foil_id])


def final_logits(
    model: Any, case: Case, noise: Any = None, patch: Any = None, keep: dict | None = None
) -> torch.Tensor:
    """``patch``: (layer, vector, position); ``keep``: filled with each block's whole output."""
    handles = []
    start, stop = case.subject
    if noise is not None:

        def corrupt(_m: Any, _a: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[0, start:stop] += noise
            return out

        handles.append(model.get_input_embeddings().register_forward_hook(corrupt))
    for index, layer in enumerate(layers_of(model)):

        def hook(_m: Any, _a: Any, out: Any, index: int = index) -> Any:
            hidden = out[0] if isinstance(out, tuple) else out
            flat = hidden.reshape(-1, hidden.shape[-1]).clone()
            if keep is not None:
                keep[index] = flat.clone()
            if patch is not None and patch[0] == index:
                flat[patch[2]] = patch[1]
            hidden = flat.reshape(hidden.shape)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handles.append(block_of(layer).register_forward_hook(hook))
    try:
        with torch.no_grad():
            return model(input_ids=torch.tensor([case.input_ids]), use_cache=False).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()


def rescue(model: Any, case: Case, layers: list[int], scale: float = 3.0, position: int = -1) -> np.ndarray:
    """(layers,): equation 4, straight from its definition."""
    start, stop = case.subject
    generator = torch.Generator().manual_seed(case.case_id)
    noise = torch.randn(stop - start, model.config.hidden_size, generator=generator)
    noise = noise * (scale * embedding_output_std(model))
    clean: dict[int, torch.Tensor] = {}
    run(model, case, keep=clean)
    noised = run(model, case, noise)
    return np.array(
        [run(model, case, noise, (layer, clean[layer][position], position)) - noised for layer in layers]
    )
