"""A streamed model in use: alone, in traces, copied, interrupted."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

import moetrace as mt
from moetrace.errors import EngineError, ModelError
from moetrace.models.anatomy import decoder_layers
from moetrace.models.state import fingerprint
from moetrace.trace.provenance import model_facts
from moetrace.weights import source_of
from tests.engines.tiny import make_cases, make_model
from tests.weights.folders import (
    edit_json,
    inputs,
    load_plain,
    load_streamed,
    logits,
    rewrite,
    same,
    save,
    state,
)


@pytest.fixture
def folder(tmp_path):
    save("qwen3_moe", tmp_path, max_shard_size="100KB")
    return tmp_path


@pytest.fixture
def pair(folder):
    model, source = load_streamed(make_model("qwen3_moe"), folder)
    return model, source


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


def nothing_is_left(model, source):
    assert not source._held
    assert all(weight.is_meta for layer in decoder_layers(model) for weight in layer.parameters())


def test_traces_are_those_of_the_model_in_memory(folder, pair):
    plain = load_plain(make_model("qwen3_moe"), folder)
    cases = mt.CaseSet(make_cases(6))
    for trace in (mt.trace_layers, mt.trace_experts):
        found, expected = trace(pair[0], cases), trace(plain, cases)
        assert found.rows.rescue.equals(expected.rows.rescue)
        assert found.provenance["engine"] == expected.provenance["engine"]
    nothing_is_left(*pair)


def test_enter_and_leave_count(pair):
    model, source = pair
    weight = decoder_layers(model)[2].self_attn.q_proj
    source.enter(2)
    before = source.bytes_read
    source.enter(2)
    source.leave(2)
    assert not weight.weight.is_meta
    assert source.bytes_read <= before + source._reader.buffer_bytes + 8192  # layer 3, ahead of its use
    source.leave(2)
    assert weight.weight.is_meta
    source.leave(2)  # once too often
    nothing_is_left(model, source)


def test_two_layers_are_held_and_no_more(pair):
    model, source = pair
    source.enter(0)
    source.enter(3)
    with pytest.raises(EngineError, match="layer 1 can't be entered: layers 0 and 3 are in use"):
        source.enter(1)
    source.leave(0)
    source.enter(1)
    source.end()
    nothing_is_left(model, source)


def test_a_layer_that_the_reader_holds_for_nobody(pair):
    """Ctrl-C after a layer was read and before it was noted down."""
    model, source = pair
    expected = logits(model)
    source._reader.acquire(0)
    source._reader.acquire(1)
    assert logits(model).equal(expected)
    nothing_is_left(model, source)


def test_a_sweep_reads_each_layer_once(pair):
    model, source = pair
    logits(model)
    layers = sum(w.nbytes for layer in decoder_layers(model) for w in layer.parameters())
    before = source.bytes_read
    source.begin()
    for layer in range(4):
        source.enter(layer)
        assert not decoder_layers(model)[layer].mlp.gate.weight.is_meta
        source.leave(layer)
    source.end()
    assert layers <= source.bytes_read - before <= layers + 4 * 3 * 8192
    nothing_is_left(model, source)


def test_a_forward_reads_each_layer_once(pair):
    model, source = pair
    layers = sum(w.nbytes for layer in decoder_layers(model) for w in layer.parameters())
    before = source.bytes_read
    logits(model)
    assert layers <= source.bytes_read - before <= layers + 4 * 3 * 8192


def test_no_thread_is_left(pair):
    model, source = pair
    logits(model)
    source.end()
    before = threads()
    for _ in range(3):
        source.begin()
        source.enter(0)
        source.end()
        assert threads() == before


def test_the_reader_goes_with_the_model(folder):
    model, source = load_streamed(make_model("qwen3_moe"), folder)
    logits(model)
    source.begin()
    found = weakref.ref(model)
    del model, source
    gc.collect()
    assert found() is None


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_layer(pair, failure):
    model, source = pair
    expected = logits(model)

    def fail(*_):
        raise failure("here")

    handle = decoder_layers(model)[2].mlp.register_forward_pre_hook(fail)
    with pytest.raises(failure, match="here"):
        model(**inputs())
    handle.remove()
    if failure is RuntimeError:  # Ctrl-C runs no hooks: what is left goes with the next forward or trace
        nothing_is_left(model, source)
    assert logits(model).equal(expected)
    nothing_is_left(model, source)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_sweep(pair, failure):
    model, source = pair

    def sweep():
        source.begin()
        try:
            source.enter(0)
            source.enter(1)
            raise failure
        finally:
            source.end()

    with pytest.raises(failure):
        sweep()
    nothing_is_left(model, source)


@pytest.mark.parametrize("place", range(1, 12))
def test_an_interrupt_while_weights_are_put_in_place(pair, monkeypatch, place):
    from moetrace.weights import streamed

    model, source = pair
    expected = logits(model)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == place:
            raise KeyboardInterrupt
        return like(*args)

    like = streamed.like
    monkeypatch.setattr(streamed, "like", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.enter(0)
    nothing_is_left(model, source)
    monkeypatch.undo()
    assert logits(model).equal(expected)


def test_a_block_may_be_called_without_its_layer(pair, folder):
    plain = load_plain(make_model("qwen3_moe"), folder)
    hidden = torch.randn(1, 3, 32)
    with torch.no_grad():
        for number in (3, 0):
            found = decoder_layers(pair[0])[number].mlp(hidden)
            assert torch.equal(found, decoder_layers(plain)[number].mlp(hidden))
    nothing_is_left(*pair)


def test_gradients_past_a_layer_that_is_gone_are_an_error(pair):
    """Their weights' memory holds another layer by then."""
    loss = pair[0](**inputs(), labels=inputs()["input_ids"]).loss
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode_and_back(pair):
    model, source = pair
    with torch.inference_mode():
        found = model(**inputs()).logits
        source.enter(1)
    source.leave(1)
    assert found.equal(logits(model))
    nothing_is_left(model, source)


def test_generation(pair, folder):
    plain = load_plain(make_model("qwen3_moe"), folder)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert pair[0].generate(**inputs(), **options).equal(plain.generate(**inputs(), **options))


def test_a_copy_is_a_model_of_its_own(pair):
    model, source = pair
    other = copy.deepcopy(model)
    assert source_of(other) is not source
    source_of(other).enter(1)
    assert decoder_layers(model)[1].mlp.gate.weight.is_meta
    assert not decoder_layers(other)[1].mlp.gate.weight.is_meta
    source_of(other).leave(1)
    assert logits(other).equal(logits(model))
    source.enter(0)
    with pytest.raises(ModelError, match="can't be copied while one is in use"):
        copy.deepcopy(model)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("moved or cast .to torch.float16", lambda m: m.half()),
        ("moved or cast .to torch.float64", lambda m: m.model.double()),
        ("moved or cast .to torch.float32 on meta", lambda m: m.to("meta")),
        ("moved or cast .to torch.bfloat16", lambda m: m.model.layers[1].to(torch.bfloat16)),
        ("saved", lambda m: m.save_pretrained("nowhere")),
        ("pickled", lambda m: torch.save(m, "/dev/null")),
    ],
)
def test_what_it_cant_do_is_refused_before_anything_changes(pair, folder, what, change):
    model, _ = pair
    expected = logits(model)
    with pytest.raises(ModelError, match=f"streamed from {folder}.*{what}.*without stream"):
        change(model)
    assert logits(model).equal(expected)
    assert model.to("cpu").float().eval() is model


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_another_dtype(family, dtype, tmp_path):
    made = save(family, tmp_path)
    plain = load_plain(made, tmp_path, dtype=dtype)
    streamed, source = load_streamed(made, tmp_path, dtype=dtype)
    for number, layer in enumerate(decoder_layers(streamed)):
        source.enter(number)
        wanted = state(decoder_layers(plain)[number])
        assert all(same(found, wanted[name]) for name, found in state(layer).items())
        source.leave(number)
    assert same(logits(streamed), logits(plain))


def test_the_dtype_is_the_checkpoints_where_the_config_has_none(folder):
    edit_json(folder / "config.json", dtype=None)
    model, _ = load_streamed(make_model("qwen3_moe"), folder)
    assert model.dtype is torch.float32


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("equal", [False, True])
def test_a_tied_head(tmp_path, both, equal):
    made = save("qwen3_moe", tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)

    def change(tensors):
        if not both:
            del tensors["lm_head.weight"]
        elif equal:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(tmp_path, change)
    plain = load_plain(made, tmp_path)
    streamed, _ = load_streamed(made, tmp_path)
    tied = streamed.lm_head.weight is streamed.model.embed_tokens.weight
    assert tied == (plain.lm_head.weight is plain.model.embed_tokens.weight)
    assert tied == (equal or not both)
    assert logits(streamed).equal(logits(plain))


def test_a_verdict_is_true_for_a_checkpoint(folder, pair, tmp_path_factory):
    """The fingerprint is the same whether a layer is there or not, and another for another checkpoint."""
    model, source = pair
    layer = decoder_layers(model)[1]
    absent = fingerprint(layer)
    source.enter(1)
    assert fingerprint(layer) == absent
    source.leave(1)
    other = tmp_path_factory.mktemp("other")
    made = make_model("qwen3_moe", seed=1)
    made.save_pretrained(other)
    assert fingerprint(decoder_layers(load_streamed(made, other)[0])[1])[0] != absent[0]
    assert model_facts(load_streamed(made, other)[0])["weights"] != model_facts(model)["weights"]
    copied = tmp_path_factory.mktemp("copied")
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert model_facts(load_streamed(made, copied)[0])["weights"] == model_facts(model)["weights"]


def test_two_models_in_two_threads(folder):
    made = make_model("qwen3_moe")
    models = [load_streamed(made, folder)[0] for _ in range(2)]
    expected = [logits(models[0], **inputs(seed)) for seed in range(2)]
    found = [None, None]

    def work(number):
        for _ in range(5):
            found[number] = logits(models[number], **inputs(number))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))


def test_a_tokenizer_comes_with_its_folder(tmp_path):
    model, tokenizer = mt.load_demo()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    streamed, found = mt.load_model(tmp_path, stream=True)
    assert found("Paris is in").input_ids == tokenizer("Paris is in").input_ids
    cases = mt.make_cases(mt.demo_records()[:40], found)
    kept = mt.select_cases(streamed, cases, n=4)
    assert [case.case_id for case in kept] == [case.case_id for case in mt.select_cases(model, cases, n=4)]


def test_a_hub_id_is_fetched_as_safetensors_alone(folder, tmp_path_factory, monkeypatch):
    import huggingface_hub

    asked = {}
    snapshot = tmp_path_factory.mktemp("snapshots") / "0123abcd"
    snapshot.symlink_to(folder)

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model, _ = mt.load_model("someone/some-model", stream=True, revision="v2")
    assert (asked["name"], asked["revision"]) == ("someone/some-model", "v2")
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked["allow_patterns"])
    assert model_facts(model)["name"] == "someone/some-model"
    assert model_facts(model)["revision"] == "0123abcd"


def test_a_hub_id_that_cant_be_fetched():
    with pytest.raises(ModelError, match="'someone/no-such-model' can't be streamed"):
        mt.load_model("someone/no-such-model", stream=True)
