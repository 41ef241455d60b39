"""The source of layers that accelerate offloads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import moetrace as mt
from moetrace import errors
from moetrace.weights import source_of
from moetrace.weights.offloaded import OffloadedSource, offloaded_source
from moetrace.weights.stored import FileRange, offloaded_modules
from tests.engines.tiny import make_cases
from tests.weights.places import PLACES, in_memory
from tests.weights.test_accelerated import assert_same, state_of

accelerate = pytest.importorskip("accelerate")
CASES = make_cases(4)


def weights_of(layer: Any) -> dict[str, Any]:
    return dict(layer.named_parameters())


def made(place: str, folder: Path) -> tuple[Any, OffloadedSource]:
    model = PLACES[place](in_memory(), folder)
    source = offloaded_source(model.model.layers)
    assert source is not None
    return model, source


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, str]]:
    """Each read of a file: its path, the offset, and the thread."""
    found: list[tuple[str, int, str]] = []
    read = FileRange.read

    def listened(self: FileRange, into: torch.Tensor | None = None) -> torch.Tensor:
        found.append((self.path, self.offset, threading.current_thread().name))
        return read(self, into)

    monkeypatch.setattr(FileRange, "read", listened)
    return found


@pytest.mark.parametrize("place", [name for name in PLACES if "only" not in name])
def test_layers_come_and_go(place: str, tmp_path: Path) -> None:
    model, source = made(place, tmp_path)
    plain, before = in_memory(), state_of(model)
    placeholders = [weights_of(layer) for layer in model.model.layers]
    for sweep in range(2):
        source.begin()
        for index, layer in enumerate(model.model.layers):
            source.enter(index)
            source.enter(index)
            source.leave(index)
            for name, weight in plain.model.layers[index].named_parameters():
                own = layer.get_parameter(name)
                assert torch.equal(own, weight)
                assert own.requires_grad == weight.requires_grad
            source.leave(index)
            after = weights_of(layer)
            assert all(after[name] is weight for name, weight in placeholders[index].items())
        source.end()
        assert sweep >= 0
    assert_same(before, state_of(model))


def test_layers_in_memory_are_left_alone(tmp_path: Path) -> None:
    model, source = made("checkpoint, some layers", tmp_path)
    own = weights_of(model.model.layers[0])
    source.begin()
    source.enter(0)
    assert all(weight is own[name] for name, weight in weights_of(model.model.layers[0]).items())
    source.leave(0)
    source.end()
    assert offloaded_source(in_memory().model.layers) is None
    assert offloaded_source(PLACES["disk, lm_head only"](in_memory(), tmp_path / "x").model.layers) is None


def test_forwards_inside_neither_load_nor_drop(tmp_path: Path, reads: list[Any]) -> None:
    model, source = made("disk", tmp_path)
    plain = in_memory()
    hidden = torch.randn(1, 5, 32)
    positions = plain.model.rotary_emb(hidden, torch.arange(5)[None])
    source.begin()
    source.enter(1)
    count = len(reads)
    for _ in range(3):
        with torch.no_grad():
            found = model.model.layers[1](hidden, position_embeddings=positions)
            expected = plain.model.layers[1](hidden, position_embeddings=positions)
        assert torch.equal(found, expected)
        assert not any(weight.is_meta for weight in model.model.layers[1].parameters())
    source.leave(1)
    source.end()
    assert len([read for read in reads[count:] if "layers.1." in read[0]]) == 0


@pytest.mark.parametrize("place", ["disk", "checkpoint"])
@pytest.mark.parametrize("trace", [mt.trace_layers, mt.trace_experts])
def test_a_trace_reads_each_weight_once(
    place: str, trace: Any, tmp_path: Path, reads: list[tuple[str, int, str]]
) -> None:
    model = PLACES[place](in_memory(), tmp_path)
    reads.clear()
    trace(model, CASES, batch_tokens=30)
    layers = sum(len(own.names) for own in offloaded_modules(model.model.layers))
    beside = sum(len(own.names) for own in offloaded_modules(model)) - layers
    counts = Counter((path, offset) for path, offset, _ in reads)
    assert len(reads) == layers + beside
    assert set(counts.values()) == {1}
    assert sum(thread.startswith("moetrace-weights") for *_, thread in reads) >= layers * 3 // 4
    assert source_of(model) is None


def test_what_is_read_is_counted(tmp_path: Path) -> None:
    model, source = made("disk", tmp_path)
    size = sum(weight.nbytes for weight in in_memory().model.layers.parameters())
    source.begin()
    for index in range(4):
        source.enter(index)
        source.leave(index)
    source.end()
    assert source.bytes_read == size
    model, source = made("memory", tmp_path)
    source.begin()
    source.enter(0)
    assert all(
        weight.data_ptr() == own.place(name).data_ptr()
        for own in offloaded_modules(model.model.layers[0])
        for name, weight in own.module.named_parameters(recurse=False)
    )
    source.end()
    assert source.bytes_read == 0


def test_the_next_layer_is_read_while_one_is_inside(tmp_path: Path, reads: list[Any]) -> None:
    _, source = made("disk", tmp_path)
    source.begin()
    source.enter(0)
    source._ahead[1].result(timeout=60)
    assert {read[2] for read in reads} == {"moetrace-weights_0"}
    assert any("layers.1." in read[0] for read in reads)
    assert not any("layers.2." in read[0] for read in reads)
    source.end()


def test_layers_out_of_order_and_side_by_side(tmp_path: Path) -> None:
    model, source = made("disk", tmp_path)
    plain = in_memory()
    source.begin()
    for index in (2, 0, 3):
        source.enter(index)
    for index in (2, 0, 3):
        for name, weight in plain.model.layers[index].named_parameters():
            assert torch.equal(model.model.layers[index].get_parameter(name), weight)
    source.end()
    assert all(weight.is_meta for weight in model.model.layers.parameters())


@pytest.mark.parametrize("failure", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", [0, 5, 40])
def test_a_failing_read_leaves_nothing_behind(
    failure: BaseException, when: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PLACES["disk"](in_memory(), tmp_path)
    before, threads, calls = state_of(model), threading.active_count(), []
    read = FileRange.read

    def fail(self: FileRange, into: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(None)
        if len(calls) > when:
            raise failure
        return read(self, into)

    monkeypatch.setattr(FileRange, "read", fail)
    with pytest.raises(type(failure)):
        mt.trace_layers(model, CASES)
    assert_same(before, state_of(model))
    assert source_of(model) is None
    assert threading.active_count() == threads
    monkeypatch.setattr(FileRange, "read", read)
    np.testing.assert_allclose(
        mt.trace_layers(model, CASES).effects, mt.trace_layers(in_memory(), CASES).effects, atol=2e-5
    )


def test_ctrl_c_while_a_layer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PLACES["disk"](in_memory(), tmp_path)
    before, threads, read = state_of(model), threading.active_count(), FileRange.read

    def slowly(self: FileRange, into: torch.Tensor | None = None) -> torch.Tensor:
        if "layers.2" in self.path:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return read(self, into)

    monkeypatch.setattr(FileRange, "read", slowly)
    with pytest.raises(KeyboardInterrupt):
        mt.trace_layers(model, CASES)
    assert_same(before, state_of(model))
    assert threading.active_count() == threads


@pytest.mark.parametrize("how", ["changed", "gone", "cut off"])
def test_a_file_that_changes_during_the_run_is_named(how: str, tmp_path: Path) -> None:
    model, source = made("disk", tmp_path)
    before = state_of(model)
    place = next(iter(offloaded_modules(model.model.layers[2]))).place("weight")
    source.begin()
    source.enter(0)
    path = Path(place.path)
    if how == "changed":
        os.utime(path, ns=(1, 1))
    elif how == "gone":
        path.unlink()
    else:
        os.truncate(path, 10)
    with pytest.raises(errors.ModelError, match=path.name.replace(".", r"\.")):
        source.enter(2)
    source.end()
    assert_same(before, state_of(model))
    with pytest.raises(errors.ModelError, match=path.name.replace(".", r"\.")):
        source.begin()


def test_two_buffers_take_turns(tmp_path: Path) -> None:
    model, source = made("disk", tmp_path)
    seen = set()
    source.begin()
    for index in range(4):
        source.enter(index)
        weight = model.model.layers[index].mlp.experts.down_proj
        seen.add(weight.untyped_storage().data_ptr())
        source.leave(index)
    source.end()
    assert len(seen) <= 2
