"""Small tokenizers, each with one habit that making cases must cope with."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SENTENCES = """<unk> <s> </s> The capital of France is Paris Rome Lyon , . Vinson Massif lies on in
    Antarctica Asia 's speaks French Thai Zola and also"""
WORDS = SENTENCES.split()


def word_tokenizer(
    pre_tokenizer: Any = None, extra: tuple[str, ...] = (), template: str | None = None
) -> PreTrainedTokenizerFast:
    """One token a word; punctuation apart unless another pre-tokenizer is given."""
    vocabulary = {word: index for index, word in enumerate((*WORDS, *extra))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    if template is not None:
        core.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def gluing_tokenizer(*extra: str) -> PreTrainedTokenizerFast:
    """Splits at spaces alone, so a word keeps its comma."""
    return word_tokenizer(pre_tokenizers.WhitespaceSplit(), extra)


def space_splitting_tokenizer() -> PreTrainedTokenizerFast:
    """Every space is a token of its own."""
    return word_tokenizer(pre_tokenizers.Split(Regex(" "), behavior="isolated"), (" ",))


def lower_casing_tokenizer() -> PreTrainedTokenizerFast:
    """Decodes to another text than it was given."""
    tokenizer = word_tokenizer(extra=tuple(word.lower() for word in WORDS if word.lower() not in WORDS))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


class WithoutOffsets:
    """A tokenizer that can't say which characters a token covers, as the slow ones can't."""

    is_fast = False

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.unk_token_id = tokenizer.unk_token_id

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": self._tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]}


class Decoding(WithoutOffsets):
    """The same, but it can decode."""

    def decode(self, ids: list[int], **options: Any) -> str:
        text: str = self._tokenizer.decode(ids, **options)
        return text


class SecondThoughts(WithoutOffsets):
    """Tokenises the beginning of a text differently once it knows how it ends."""

    def __call__(self, texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        rows = super().__call__(texts, add_special_tokens)["input_ids"]
        return {"input_ids": [[1000 * (len(row) // 4) + token for token in row] for row in rows]}
