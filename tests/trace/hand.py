"""A patched forward by hooks written by hand: what positions mean, without any of the package."""

from __future__ import annotations

from typing import Any

import torch

from moetrace import Case


def run_by_hand(
    model: Any, case: Case, noise: Any, layer: int, rows: dict[int, torch.Tensor]
) -> tuple[float, torch.Tensor]:
    """Logit difference of one forward, and what the layer's block gave. ``rows``: what it is made to give."""
    kept: list[torch.Tensor] = []
    start, stop = case.subject

    def corrupt(_m: Any, _a: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[0, start:stop] += noise
        return out

    def write(_m: Any, _a: Any, out: Any) -> Any:
        hidden = (out[0] if isinstance(out, tuple) else out).clone()
        flat = hidden.reshape(-1, hidden.shape[-1])
        kept.append(flat.clone())
        for position, value in rows.items():
            flat[position] = value
        hidden = flat.reshape(hidden.shape)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handles = [model.model.layers[layer].mlp.register_forward_hook(write)]
    if noise is not None:
        handles.append(model.get_input_embeddings().register_forward_hook(corrupt))
    try:
        with torch.no_grad():
            ids = torch.tensor([case.input_ids])
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[case.true_id] - logits[case.foil_id]), kept[0]
