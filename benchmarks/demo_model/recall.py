"""How many facts a model recalls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def recall(model: Any, tokenizer: Any, facts: Iterable[tuple[str, str]]) -> float:
    """The share of (prompt, object) pairs whose object is the likeliest next token of all.

    >>> recall(model, tokenizer, [("The capital of Japan is", "Tokyo")])
    1.0
    """
    prompts, answers = zip(*facts, strict=True)
    rows = tokenizer(list(prompts)).input_ids
    targets = [ids[0] for ids in tokenizer([" " + answer for answer in answers]).input_ids]
    right = 0
    for batch in equal_lengths(rows, size=128):
        with torch.inference_mode():
            logits = model(torch.tensor([rows[index] for index in batch])).logits[:, -1]
        right += int((logits.argmax(-1) == torch.tensor([targets[index] for index in batch])).sum())
    return right / len(rows)


def equal_lengths(rows: list[list[int]], size: int) -> Iterator[list[int]]:
    """Cut the rows' indices into batches of one length each, so that no batch needs padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_length[len(row)].append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
