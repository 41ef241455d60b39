"""A streamed model is the one that from_pretrained gives: every weight and the logits, to the bit."""

from __future__ import annotations

import pytest

from moetrace.models.anatomy import decoder_layers, find_anatomy
from tests.weights.folders import ALL_FAMILIES, load_plain, load_streamed, logits, same, save, state


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_streamed_equals_loaded(family, tmp_path):
    made = save(family, tmp_path, max_shard_size="100KB")
    plain = load_plain(made, tmp_path)
    streamed, source = load_streamed(made, tmp_path)
    assert type(streamed) is type(plain)
    assert len({shard.path for shard in source._checkpoint.shards}) > 1
    for number, (layer, expected) in enumerate(
        zip(decoder_layers(streamed), decoder_layers(plain), strict=True)
    ):
        assert all(weight.is_meta for weight in layer.parameters())
        source.enter(number)
        found, wanted = state(layer), state(expected)
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name]) for name in found)
        source.leave(number)
        assert all(weight.is_meta for weight in layer.parameters())
    found, wanted = state(streamed), state(plain)
    assert found.keys() == wanted.keys()
    assert all(weight.is_meta or same(weight, wanted[name]) for name, weight in found.items())
    assert logits(streamed).equal(logits(plain))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "dbrx", "llama4_text"])
def test_layers_hold_all_of_their_weights_on_disk(family, tmp_path):
    """Fused experts are of the layers, not of what is kept in memory."""
    streamed, _ = load_streamed(save(family, tmp_path), tmp_path)
    in_memory = sum(w.numel() for w in streamed.parameters() if not w.is_meta)
    layers = sum(w.numel() for layer in decoder_layers(streamed) for w in layer.parameters())
    assert layers > in_memory
    assert find_anatomy(streamed).layers == decoder_layers(streamed)


def test_experts_are_read_straight_into_their_place(tmp_path):
    """No second copy of a layer: what a layer holds lies in the reader's buffer."""
    streamed, source = load_streamed(save("qwen3_moe", tmp_path), tmp_path)
    source.enter(1)
    buffer = source._held[1].buffer
    begin, end = buffer.data_ptr(), buffer.data_ptr() + buffer.numel()
    for weight in decoder_layers(streamed)[1].parameters():
        assert begin <= weight.data_ptr() < end
        assert weight.data_ptr() % 64 == 0
    source.leave(1)
