from __future__ import annotations

import pytest
from real_tokenizers import QWEN_PATTERN, mixtral_model_file, qwen_ranks
from toy_tokenizers import space_splitting_tokenizer, word_tokenizer
from transformers import PreTrainedTokenizerFast

from moetrace.cases import Records
from moetrace.cases.encoding import Encoder
from moetrace.cases.objects import following_tokens


def tokens(tokenizer: object, prompt: str, *objects: str) -> list[int | None]:
    encoder = Encoder(tokenizer)
    prompts = [prompt] * len(objects)
    found = following_tokens(encoder, prompts, encoder.encode(prompts), objects)
    return [None if own is None else own[0] for own in found]


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_the_token_carries_the_space(name: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = tokenizers[name]
    found = tokens(tokenizer, "The mother tongue of Zola is", "French", "English", "Gujarati Malayalam", "")
    assert tokenizer.convert_ids_to_tokens(found[:2]) in (["ĠFrench", "ĠEnglish"], ["▁French", "▁English"])
    assert found[2:] == [None, None]


def test_an_unknown_word_is_no_object() -> None:
    assert tokens(word_tokenizer(), "The capital of France is", "Paris", "Ouagadougou") == [8, None]


def test_a_space_split_off_is_no_object() -> None:
    assert tokens(space_splitting_tokenizer(), "The capital of France is", "Paris", "Rome") == [None, None]


def test_the_rule_agrees_with_the_vocabularies_own_libraries(
    tokenizers: dict[str, PreTrainedTokenizerFast], counterfact: Records
) -> None:
    """`` object`` is one token of tiktoken, ``object`` is one piece of sentencepiece."""
    import tiktoken
    from sentencepiece import SentencePieceProcessor

    qwen = tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=qwen_ranks(), special_tokens={})
    mixtral = SentencePieceProcessor(model_file=str(mixtral_model_file()))
    alone = {"qwen3": lambda text: qwen.encode(" " + text), "mixtral": mixtral.encode}
    facts = counterfact[::10]
    prompts = [fact.prompt.replace("{}", fact.subject) for fact in facts]
    for name, encode in alone.items():
        encoder = Encoder(tokenizers[name])
        found = following_tokens(
            encoder, prompts, encoder.encode(prompts), [fact.target_new for fact in facts]
        )
        own = [encode(fact.target_new) for fact in facts]
        assert found == [(row[0],) if len(row) == 1 else None for row in own]
        several = following_tokens(
            encoder, prompts, encoder.encode(prompts), [fact.target_new for fact in facts], several=True
        )
        assert several == [tuple(row) for row in own]


def test_the_test_tokenizers_are_the_real_ones(
    tokenizers: dict[str, PreTrainedTokenizerFast], counterfact: Records
) -> None:
    import tiktoken
    from sentencepiece import SentencePieceProcessor

    qwen = tiktoken.Encoding("qwen", pat_str=QWEN_PATTERN, mergeable_ranks=qwen_ranks(), special_tokens={})
    mixtral = SentencePieceProcessor(model_file=str(mixtral_model_file()))
    prompts = [fact.prompt.replace("{}", fact.subject) for fact in counterfact[::20]]
    assert Encoder(tokenizers["qwen3"]).encode(prompts) == [qwen.encode(prompt) for prompt in prompts]
    assert Encoder(tokenizers["mixtral"]).encode(prompts) == mixtral.encode(prompts)
