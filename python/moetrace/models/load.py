"""Load a model and its tokenizer from the hub or a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from moetrace.arguments import as_flag, as_path, refuse_type
from moetrace.errors import ModelError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model in eval mode and its tokenizer.

    >>> model, tokenizer = mt.load_model("Qwen/Qwen3-30B-A3B-Base", dtype="bfloat16", device_map="auto")

    ``name``: a hub id or a folder. ``dtype``: "auto" is the checkpoint's. ``device_map``: as in transformers
    (needs accelerate). Only safetensors are read: a pickle can run any code, so a checkpoint of
    ``pytorch_model.bin`` is refused unless ``use_safetensors=False`` is given. ``trust_remote_code`` stays
    off unless turned on. Other arguments go to ``AutoModelForCausalLM.from_pretrained``. ModelError where the
    checkpoint can't be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not isinstance(name, str | os.PathLike):
        refuse_type(name, "name", "a hub id or a folder")
    if isinstance(name, os.PathLike) or not HUB_ID.fullmatch(name):
        name = str(as_path(name, "name"))
    trust_remote_code = as_flag(trust_remote_code, "trust_remote_code")
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if kwargs.get("use_safetensors") is not False:
        kwargs["use_safetensors"] = True
        _refuse_pickles(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **common)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, device_map=device_map, **common, **kwargs
        )
    except Exception as failure:  # transformers, safetensors and the hub raise dozens of kinds
        raise ModelError(f"{name!r} can't be loaded as a causal language model: {failure}") from failure
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer


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
