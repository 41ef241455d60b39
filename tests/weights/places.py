"""Models whose weights accelerate keeps elsewhere, in every way that it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moetrace as mt
from tests.engines.tiny import make_model

PARTS = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
SOME = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
    "model.layers.3": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk",
}  # fmt: skip


def in_memory(dtype: torch.dtype = torch.float32, tied: bool = False) -> Any:
    """The model that all the others are."""
    model = make_model("qwen3_moe").to(dtype)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 2.0, model.config.hidden_size))
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.model.embed_tokens.weight
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    for module in model.modules():  # as from_pretrained leaves them
        if hasattr(module, "inv_freq"):
            module.inv_freq = make_model("qwen3_moe").model.rotary_emb.inv_freq
    return model


def _checkpoint(model: Any, folder: Path, device_map: dict[str, str]) -> Any:
    model.save_pretrained(folder / "checkpoint")
    more = {"device_map": device_map, "offload_folder": folder / "offload"}
    return mt.load_model(str(folder / "checkpoint"), **more)[0]


def _dispatched(model: Any, folder: Path, absent: str) -> Any:
    import accelerate

    places = {part: "disk" if part == absent else "cpu" for part in PARTS}
    return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))


def _offloaded(model: Any, folder: Path | None, **more: Any) -> Any:
    import accelerate

    if folder is None:
        return accelerate.cpu_offload(model, execution_device="cpu", **more)
    return accelerate.disk_offload(model, str(folder), execution_device="cpu", **more)


PLACES: dict[str, Callable[[Any, Path], Any]] = {
    "memory": lambda model, _: _offloaded(model, None),
    "disk": _offloaded,
    "disk, with buffers": lambda model, folder: _offloaded(model, folder, offload_buffers=True),
    "memory, whole blocks": lambda model, _: _offloaded(
        model, None, preload_module_classes=["Qwen3MoeSparseMoeBlock"]
    ),
    "checkpoint": lambda model, folder: _checkpoint(model, folder, {"": "disk"}),
    "checkpoint, some layers": lambda model, folder: _checkpoint(model, folder, SOME),
    **{
        f"disk, {part} only": lambda model, folder, part=part: _dispatched(model, folder, part)
        for part in PARTS
        if part != "model.rotary_emb"
    },
}
