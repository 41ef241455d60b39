"""Checkpoints of the tests' tiny models in hub layout, and the models that are loaded from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import moetrace as mt
from moetrace.weights import source_of
from tests.engines.tiny import FAMILIES, make_model
from tests.engines.wide import WIDE, make_wide

ALL_FAMILIES = [*FAMILIES, *WIDE]


def make_any(family: str) -> Any:
    return make_model(family) if family in FAMILIES else make_wide(family)


def save(family: str, folder: Path, **options: Any) -> Any:
    """A tiny model, saved as it would lie on the hub."""
    model = make_any(family)
    model.save_pretrained(folder, **options)
    return model


def load_plain(made: Any, folder: Path, **options: Any) -> Any:
    """By transformers, with weights where torch aligns them: products round by the place of their factors."""
    attention = made.config._attn_implementation
    model = type(made).from_pretrained(folder, attn_implementation=attention, **options).eval()
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def load_streamed(made: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """By moetrace, and where its layers come from."""
    options.setdefault("attn_implementation", made.config._attn_implementation)
    model, tokenizer = mt.load_model(str(folder), stream=True, **options)
    assert tokenizer is None
    return model, source_of(model)


def inputs(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(3, 90, (2, 9), generator=generator)}


def logits(model: Any, **batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**(batch or inputs())).logits


def state(module: Any) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def rewrite(folder: Path, change: Any) -> None:
    """Let ``change`` have its way with the tensors of a checkpoint of one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
