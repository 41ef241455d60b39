from __future__ import annotations

import pytest
from toy_tokenizers import (
    Decoding,
    SecondThoughts,
    WithoutOffsets,
    gluing_tokenizer,
    lower_casing_tokenizer,
    word_tokenizer,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from moetrace.cases import Record, Records
from moetrace.cases.encoding import Encoder
from moetrace.cases.spans import PlacedPrompt, place_subject, token_spans
from moetrace.errors import TokenizerError


def record(prompt: str, subject: str) -> Record:
    return Record(0, "P1", prompt, subject, "true", "foil")


@pytest.mark.parametrize(
    ("prompt", "subject", "text", "start"),
    [
        ("The mother tongue of {} is", "Zola", "The mother tongue of Zola is", 21),
        ("{}, the", "Zola", "Zola, the", 0),
        ("The mother tongue of Zola is", "Zola", "The mother tongue of Zola is", 21),
        ("  {} is  ", " Zola ", "Zola is", 0),
        ("  by Zola is\n", "Zola", "by Zola is", 3),
        ("{} {is}", "{a}", "{a} {is}", 0),
    ],
)
def test_the_template_or_the_text_says_where_the_subject_is(
    prompt: str, subject: str, text: str, start: int
) -> None:
    placed = place_subject(record(prompt, subject))
    assert placed == PlacedPrompt(text, start, start + len(subject.strip()))
    assert placed.text[placed.start : placed.stop] == subject.strip()


@pytest.mark.parametrize(
    ("prompt", "subject", "reason"),
    [
        ("The mother tongue of {} is", " ", "subject_empty"),
        ("The mother tongue of is", "Zola", "subject_not_in_prompt"),
        ("{} and {} are", "Zola", "subject_repeated"),
        ("{} and Zola are", "Zola", "subject_repeated"),
        ("Zola and Zola are", "Zola", "subject_repeated"),
    ],
)
def test_a_subject_without_one_place_is_a_reason(prompt: str, subject: str, reason: str) -> None:
    assert place_subject(record(prompt, subject)) == reason


def spans(tokenizer: object, *facts: tuple[str, str]) -> list[tuple[int, int] | str]:
    encoder = Encoder(tokenizer)
    prompts = [place_subject(record(prompt, subject)) for prompt, subject in facts]
    return token_spans(encoder, prompts, encoder.encode([prompt.text for prompt in prompts]))


def test_words() -> None:
    found = spans(word_tokenizer(), ("The capital of {} is", "France"), ("{} lies in", "Vinson Massif"))
    assert found == [(3, 4), (0, 2)]


@pytest.mark.parametrize("neighbour", ["France,", "France's", "(France", "laFrance"])
def test_a_token_with_a_neighbouring_mark_or_word_is_a_merge(neighbour: str) -> None:
    template = "The capital of " + neighbour.replace("France", "{}") + " is"
    assert spans(gluing_tokenizer(neighbour), (template, "France")) == ["subject_merged"]


def test_a_mark_glued_to_the_subjects_own_last_mark_is_no_merge(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    for tokenizer in tokenizers.values():
        encoder = Encoder(tokenizer)
        placed = place_subject(record("{}, whose headquarters are in", "Sora Ltd."))
        (ids,) = encoder.encode([placed.text])
        (span,) = token_spans(encoder, [placed], [ids])
        pieces = tokenizer.convert_ids_to_tokens(ids)
        assert pieces[span[1] - 1] == ".,"
        assert span[0] == 0


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_the_decoded_span_is_the_subject(
    name: str, tokenizers: dict[str, PreTrainedTokenizerFast], counterfact: Records
) -> None:
    """The tokens of the span, decoded by themselves, are the subject and nothing but marks around it."""
    encoder = Encoder(tokenizers[name])
    prompts = [place_subject(fact) for fact in counterfact[::40]]
    ids = encoder.encode([prompt.text for prompt in prompts])
    for prompt, row, (start, stop) in zip(prompts, ids, token_spans(encoder, prompts, ids), strict=True):
        subject = prompt.text[prompt.start : prompt.stop]
        assert tokenizers[name].decode(row[start:stop]).strip().rstrip(",?'") == subject.rstrip(",?'")


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
@pytest.mark.parametrize("slow", [Decoding, WithoutOffsets])
def test_without_offsets_the_spans_are_the_same(
    name: str,
    slow: type[WithoutOffsets],
    tokenizers: dict[str, PreTrainedTokenizerFast],
    counterfact: Records,
) -> None:
    foreign = [record("Wer {} sagt, meint", "Ćirić Žižek"), record("{} 説", "東京 🗼")]
    prompts = [place_subject(fact) for fact in [*counterfact[::60], *foreign]]
    # Prefixes can only tell of subjects that end at a word's end.
    prompts = [prompt for prompt in prompts if prompt.text[prompt.stop] == " " or slow is Decoding]
    fast, bare = Encoder(tokenizers[name]), Encoder(slow(tokenizers[name]))
    ids = fast.encode([prompt.text for prompt in prompts])
    assert len(prompts) > 100
    assert token_spans(bare, prompts, ids) == token_spans(fast, prompts, ids)


@pytest.mark.parametrize(("head", "subject"), [("Wer ", "Ćirić"), ("", "東京 🗼"), ("In ", "São Tomé")])
def test_a_slow_tokenizer_of_transformers_with_many_tokens_a_character(head: str, subject: str) -> None:
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    start = len(head.encode())
    assert spans(tokenizer, (head + "{} is", subject)) == [(start, start + len(subject.encode()))]


def test_a_tokenizer_that_changes_the_text_is_asked_for_prefixes() -> None:
    found = spans(
        Decoding(lower_casing_tokenizer()),
        ("The capital of {} is", "France"),
        ("{} lies in", "Vinson Massif"),
    )
    assert found == [(3, 4), (0, 2)]


def test_a_tokenizer_that_cannot_tell_is_refused() -> None:
    with pytest.raises(
        TokenizerError,
        match=r"SecondThoughts gives no character offsets.*'The capital of' alone is tokenised in",
    ):
        spans(SecondThoughts(word_tokenizer()), ("The capital of {} is", "France"))
