"""The Mixture-of-Experts families that the installed transformers has, read from its own files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

Kind = Literal["decoder", "encoder-decoder", "no language-model head"]

# Any of these makes a family: experts in a module, a number of experts in a config, a class named for them.
_SIGNS = (
    r"self\.experts\s*=",
    r"^    \w*expert\w*\s*[:=]",
    r"^class \w*(?:MoE|Moe|MOE|Experts|MixtureOfExp)\w*",
)
_EXPORTED = re.compile(r"__all__ = \[(.*?)\]", re.DOTALL)
_HEADS = re.compile(r"(?:ForCausalLM|ForConditionalGeneration|LMHeadModel)$")


@dataclass(frozen=True)
class Listed:
    """A folder of ``transformers.models`` that speaks of experts, and its language models."""

    family: str
    kind: Kind
    heads: tuple[str, ...]


@cache
def listed_families() -> dict[str, Listed]:
    """By name. Nothing is imported but the table of classes: a family of tomorrow is found as well."""
    root = Path(transformers.__file__).parent / "models"
    found = [_listed(folder) for folder in sorted(root.iterdir()) if folder.is_dir()]
    return {own.family: own for own in found if own is not None}


def decoder_families() -> list[str]:
    """Those that a trace could be asked of."""
    return [name for name, own in listed_families().items() if own.kind == "decoder"]


def _listed(folder: Path) -> Listed | None:
    modules, configs = (
        "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern)))
        for pattern in ("modeling_*.py", "configuration_*.py")
    )
    if not any(re.search(sign, f"{modules}\n{configs}", re.MULTILINE) for sign in _SIGNS):
        return None
    names = [name for part in _EXPORTED.findall(modules) for name in re.findall(r"\"(\w+)\"", part)]
    # A checkpoint whose code is another family's: its config alone is in the folder.
    types = re.findall(r"^    model_type = \"(\w+)\"", configs, re.MULTILINE)
    names += [own for own in map(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get, types) if own]
    heads = tuple(dict.fromkeys(name for name in names if _HEADS.search(name)))
    if re.search(r"is_encoder_decoder\b.*=.*True", configs):
        return Listed(folder.name, "encoder-decoder", heads)
    return Listed(folder.name, "decoder" if heads else "no language-model head", heads)
