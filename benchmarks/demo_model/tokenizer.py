"""The demo's tokenizer: byte-level BPE trained on the facts' own text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.demo_model.facts import phrasings
from moetrace.errors import TokenizerError

VOCAB_SIZE = 2000
PAD, EOS = "<pad>", "<eos>"
OBJECT_WEIGHT = 50
"""How often each object is repeated, so that BPE merges it whole before any piece of a subject."""


def train_tokenizer(records: list[dict[str, Any]]) -> Any:
    """Train the tokenizer so that a space and an object are one token, and most subjects are several.

    >>> tokenizer = train_tokenizer(build_records())
    >>> len(tokenizer(" Germany").input_ids)
    1

    Objects are ordinary merges of the BPE, no added tokens. No token is put before the text.

    Raises:
        TokenizerError: when an object is not one token (the vocabulary is too small for the facts).
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(records), trainer)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = fast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)
    split = [answer for answer in objects(records) if len(tokenizer(" " + answer).input_ids) != 1]
    if split:
        raise TokenizerError(
            f"{len(split)} objects are not one token each with a vocabulary of {VOCAB_SIZE} (first: "
            f"{split[0]!r}); raise VOCAB_SIZE or OBJECT_WEIGHT"
        )
    return tokenizer


def objects(records: list[dict[str, Any]]) -> list[str]:
    """All true objects and foils, each once, sorted."""
    return sorted({record[key] for record in records for key in ("target_true", "target_new")})


def corpus(records: list[dict[str, Any]]) -> Iterator[str]:
    """The text that the merges are learnt from."""
    for record in records:
        yield from phrasings(record)
    for answer in objects(records):
        yield f" {answer}" * OBJECT_WEIGHT
