"""Load a model and its tokenizer from the hub or a folder."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from moetrace.arguments import as_flag, as_path, refuse_type, shown
from moetrace.errors import ArgumentError, ModelError
from moetrace.models.quantised import load_fault, method_named, method_of, warn_of_plain_experts

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    stream: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer; None in its place where the folder has none.

    >>> model, tokenizer = mt.load_model("Qwen/Qwen3-30B-A3B-Base", dtype="bfloat16", device_map="auto")

    ``stream=True`` leaves the decoder layers on disk, for a model that is larger than memory: every trace
    reads each layer once, the next one while the present one computes, straight from the checkpoint's
    safetensors, and holds two of them. Embedding, head and norms are in memory. The model also works by
    itself, and reads all its layers in every forward then. It can't be trained, moved or saved.

    ``name``: a hub id or a folder. ``dtype``: "auto" is the checkpoint's. ``device_map``: as in transformers
    (needs accelerate). Only safetensors are read: a pickle can run any code, so a checkpoint of
    ``pytorch_model.bin`` is refused unless ``use_safetensors=False`` is given. ``trust_remote_code`` stays
    off unless turned on. ``quantization_config``, ``gguf_file`` (its weights are unpacked) and all other
    arguments go to ``AutoModelForCausalLM.from_pretrained``. ModelError where the checkpoint can't be loaded;
    of its kinds QuantizationError where that is for its quantised weights, and CheckpointError where a
    streamed one is incomplete or damaged.
    """
    from transformers import AutoModelForCausalLM

    if not isinstance(name, str | os.PathLike):
        refuse_type(name, "name", "a hub id or a folder")
    if isinstance(name, os.PathLike) or not HUB_ID.fullmatch(name):
        name = str(as_path(name, "name"))
        if not Path(name).exists():
            raise ModelError(
                f"{name!r} can't be loaded as a causal language model: there is no such folder, and a hub id "
                "is a name or organisation/name"
            )
    trust_remote_code = as_flag(trust_remote_code, "trust_remote_code")
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if as_flag(stream, "stream"):
        return _load_streamed(name, dtype, device_map, revision, kwargs, trust_remote_code=trust_remote_code)
    if "gguf_file" in kwargs:
        common["gguf_file"] = kwargs.pop("gguf_file")
    if kwargs.get("use_safetensors") is not False:
        kwargs["use_safetensors"] = True
        _refuse_pickles(name)
    reading = "tokenizer"
    try:
        tokenizer = _load_tokenizer(name, **common)
        reading = "model"
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, device_map=device_map, **common, **kwargs
        )
    except Exception as failure:  # transformers, safetensors and the hub raise dozens of kinds
        method = _quantised_by(name, common, kwargs)
        if method is not None and reading == "model":
            raise load_fault(name, method, failure) from failure
        raise ModelError(f"{name!r} can't be loaded as a causal language model: {failure}") from failure
    if method_of(model) is not None:
        warn_of_plain_experts(model)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


def _quantised_by(name: str, common: dict[str, Any], kwargs: dict[str, Any]) -> str | None:
    """How what was to be loaded is quantised, as the call or the folder's config says."""
    if "gguf_file" in common:
        return "GGUF"
    if kwargs.get("quantization_config") is not None:
        return method_named(kwargs["quantization_config"])
    try:
        found = json.loads((Path(name) / "config.json").read_text(encoding="utf-8")).get(
            "quantization_config"
        )
    except (OSError, ValueError, AttributeError):
        return None
    return None if found is None else method_named(found)


def _load_streamed(
    name: str,
    dtype: Any,
    device_map: Any,
    revision: str | None,
    options: dict[str, Any],
    *,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    from moetrace.models.anatomy import decoder_layers
    from moetrace.weights.load import load_streamed

    if device_map is not None or options.get("use_safetensors") is False:
        what = "device_map" if device_map is not None else "use_safetensors=False"
        raise ArgumentError(
            f"stream=True takes no {what}: layers stay in the checkpoint's safetensors and are computed on "
            "the processor; leave one of the two out"
        )
    options.pop("use_safetensors", None)
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    floating = isinstance(known, torch.dtype) and known.is_floating_point
    if not floating and not (isinstance(dtype, str) and dtype == "auto"):
        raise ArgumentError(
            f"dtype is {shown(dtype)}; expected 'auto' for the checkpoint's, or a floating one such as "
            "'bfloat16'"
        )
    try:
        local = Path(name).exists()
        folder = Path(name) if local else _fetched(name, revision, trust_remote_code=trust_remote_code)
        _refuse_pickles(folder)
        model = load_streamed(
            folder, decoder_layers, dtype=dtype, trust_remote_code=trust_remote_code, **options
        )
        if not local:  # the hub's cache names a folder by its commit
            model.config.name_or_path, model.config._commit_hash = name, folder.name
        return model, _load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except Exception as failure:  # as above
        raise ModelError(f"{name!r} can't be streamed as a causal language model: {failure}") from failure


def _fetched(name: str, revision: str | None, *, trust_remote_code: bool = False) -> Path:
    """The folder of a hub's checkpoint, downloaded where the hub may be asked: safetensors and text alone."""
    from huggingface_hub import snapshot_download

    wanted = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    code = ["*.py"] if trust_remote_code else []
    return Path(snapshot_download(name, revision=revision, allow_patterns=[*wanted, *code]))


def _load_tokenizer(name: str, **common: Any) -> Any:
    """None for a folder without a tokenizer."""
    from transformers import AutoTokenizer

    folder = Path(name)
    if (
        "gguf_file" not in common
        and folder.is_dir()
        and not any(
            path.suffix in (".model", ".tiktoken") or path.name.startswith(("tokenizer", "vocab"))
            for path in folder.iterdir()
        )
    ):
        return None
    return AutoTokenizer.from_pretrained(name, **common)


def _refuse_pickles(name: str | os.PathLike[str]) -> None:
    """ModelError for a folder whose weights are pickled and nothing else."""
    folder = Path(name)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{pickles[0]} holds pickled weights, which can run any code when they are read, and there are "
            "no safetensors beside it. If you trust where it comes from, convert it once: "
            f"from transformers import AutoModelForCausalLM as M; f = {str(folder)!r}; "
            "M.from_pretrained(f, use_safetensors=False, dtype='auto').save_pretrained(f); or load it as it "
            "is, with use_safetensors=False"
        )
