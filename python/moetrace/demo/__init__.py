"""A small MoE language model that ships with the package, and the facts that it recalls.

>>> model, tokenizer = load_demo()
>>> cases = demo_records()

It needs no network and loads in well under two seconds. See ``README.md`` in this folder for what the
model is, how it was trained and where its facts come from.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["demo_records", "load_demo"]


def load_demo() -> tuple[Any, Any]:
    """Load the bundled model and tokenizer.

    >>> model, tokenizer = load_demo()
    >>> logits = model(**tokenizer("The capital of Japan is", return_tensors="pt")).logits[0, -1]
    >>> tokenizer.decode(logits.argmax())
    ' Tokyo'

    A ``Qwen3MoeForCausalLM`` on the CPU, in fp32 (the weights are stored in half precision) and in
    evaluation mode, and its fast tokenizer, which puts no token before the text. Prompts carry no
    leading space, objects carry one. Nothing is downloaded and nothing is unpickled.
    """
    with resources.as_file(resources.files(__name__) / "data") as folder:
        return load_folder(folder)


def demo_records() -> list[dict[str, Any]]:
    """The facts that the bundled model was trained on, as records for ``moetrace.make_cases``.

    >>> demo_records()[0].keys()
    dict_keys(['case_id', 'relation_id', 'prompt', 'subject', 'target_true', 'target_new'])

    ``prompt`` is a template in which ``{}`` stands for the subject, and never ends with it. Targets carry
    no leading space; with one, each is a single token. ``relation_id`` is a Wikidata property and
    ``case_id`` the record's index. Each call returns new records.
    """
    text = (resources.files(__name__) / "data" / "facts.json").read_text(encoding="utf-8")
    records: list[dict[str, Any]] = json.loads(text)
    return records


def load_folder(folder: Path) -> tuple[Any, Any]:
    """Load a model and tokenizer from a folder, as :func:`load_demo` does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return model.eval(), tokenizer
