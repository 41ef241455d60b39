"""Models inside of others: served as the model inside where that is the same model, else refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

import moetrace as mt
from moetrace import errors
from moetrace.models.anatomy import find_anatomy
from tests.engines.tiny import make_cases, make_model

CASES = make_cases(3)


@pytest.fixture
def model() -> Any:
    return make_model("qwen3_moe")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def is_traced_as(outer: Any, inner: Any, names: list[str]) -> None:
    """Effects of both engines, what the outer model itself says, and what provenance says."""
    expected = mt.trace_experts(inner, CASES)
    for engine in ("auto", "reference"):
        found = mt.trace_experts(outer, CASES, engine=engine)
        np.testing.assert_allclose(found.effects, expected.effects, atol=2e-5)
        assert found.provenance["wrapped"] == names
        assert found.provenance["model"] == expected.provenance["model"]
    assert expected.provenance["wrapped"] == []


def test_compiled_models_are_traced_as_what_they_compile_saying_so_once(model: Any) -> None:
    compiled = torch.compile(model, backend="eager")
    with pytest.warns(errors.WrapperWarning, match="traced as the module that was compiled"):
        mt.trace_layers(compiled, CASES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.WrapperWarning)
        is_traced_as(compiled, model, ["OptimizedModule"])


def test_data_parallel(model: Any) -> None:
    is_traced_as(nn.DataParallel(model), model, ["DataParallel"])


def test_distributed_data_parallel(model: Any, alone: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model)
    is_traced_as(wrapped, model, ["DistributedDataParallel"])
    assert torch.compile(wrapped, backend="eager") is not wrapped
    found = mt.trace_layers(torch.compile(wrapped, backend="eager"), CASES)
    assert found.provenance["wrapped"] == ["OptimizedModule", "DistributedDataParallel"]


@pytest.mark.parametrize("place", ["model.layers.1", "model.layers.1.mlp", "model.layers.1.mlp.experts"])
def test_compiled_parts_are_refused(model: Any, place: str) -> None:
    """A compiled block would pass for a dense one."""
    model.set_submodule(place, torch.compile(model.get_submodule(place), backend="eager"))
    with pytest.raises(errors.WrappedModelError, match=rf"{place} was replaced by what torch.compile"):
        mt.trace_layers(model, CASES)


def test_fully_sharded_models_are_refused(model: Any, alone: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    sharded = make_model("qwen3_moe")
    mesh = distributed.init_device_mesh("cpu", (1,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(errors.WrappedModelError, match=r"is sharded by FSDP.*stream=True"):
        mt.trace_layers(sharded, CASES)
    try:
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    except RuntimeError as failure:  # it wants a GPU
        pytest.skip(str(failure))
    with pytest.raises(errors.WrappedModelError, match="is sharded by FSDP"):
        mt.trace_layers(wrapped, CASES)


def test_zero_3_is_refused(model: Any) -> None:
    model.lm_head.weight.ds_id = 3  # as DeepSpeed marks what it has partitioned
    with pytest.raises(errors.WrappedModelError, match="DeepSpeed ZeRO-3"):
        mt.trace_layers(model, CASES)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (
            lambda model: SimpleNamespace(model=model),
            "SimpleNamespace is something around a model.*pass its .model",
        ),
        (lambda model: "Qwen/Qwen3-30B-A3B", r"load it first: .*mt\.load_model\('Qwen/Qwen3-30B-A3B'\)"),
        (lambda model: (model, None), "is a tuple, as load_model returns it"),
        (lambda model: None, "NoneType has no config; expected a transformers model"),
        (lambda model: nn.Linear(2, 2), "Linear has no config"),
        (lambda model: model.model, "no language-model head"),
    ],
)
def test_what_is_no_model_is_told_what_would_be(model: Any, wrong: Any, advice: str) -> None:
    with pytest.raises(errors.ModelError, match=advice):
        mt.trace_layers(wrong(model), CASES)


def test_a_pipeline_is_told_apart(model: Any) -> None:
    import transformers as tf

    _, tokenizer = mt.load_demo()
    pipe = tf.pipeline("text-generation", model=model, tokenizer=tokenizer)
    with pytest.raises(errors.ModelError, match=r"TextGenerationPipeline .* pass its \.model"):
        mt.trace_layers(pipe, CASES)


ADAPTERS: dict[str, Any] = {
    "LoRA": lambda peft: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "LoRA on experts": lambda peft: peft.LoraConfig(
        r=4,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=False,
    ),
    "IA3": lambda peft: peft.IA3Config(
        target_modules=["q_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False
    ),
}


@pytest.mark.parametrize(("adapter", "mixed"), [*((name, False) for name in ADAPTERS), ("LoRA", True)])
def test_adapters_inside_of_modules(model: Any, adapter: str, mixed: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    plain = mt.trace_experts(model, CASES)
    config = ADAPTERS[adapter](peft)
    outer = peft.PeftMixedModel(model, config) if mixed else peft.get_peft_model(model, config)
    outer.eval()
    found = mt.trace_experts(outer, CASES)
    expected = mt.trace_experts(outer, CASES, engine="reference")
    np.testing.assert_allclose(found.effects, expected.effects, atol=2e-5)
    assert np.abs(found.effects - plain.effects).max() > 1e-3
    for index, case in enumerate(CASES):
        with torch.no_grad():
            logits = outer(input_ids=torch.tensor([case.input_ids])).logits[0, -1]
        clean = float(logits[case.true_id] - logits[case.foil_id])
        assert abs(found.cases.clean[index] - clean) < 2e-5
    assert found.provenance["wrapped"] == [type(outer).__name__]


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig"])
def test_adapters_that_are_tokens_are_refused(model: Any, kind: str) -> None:
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    outer = peft.get_peft_model(model, config)
    with pytest.raises(errors.WrappedModelError, match=r"virtual tokens before every prompt.*get_base_model"):
        mt.trace_layers(outer, CASES)
    mt.trace_layers(outer.get_base_model(), CASES)


def test_a_whole_protocol_of_a_wrapped_model(model: Any, tmp_path: Path) -> None:
    from tests.test_arguments import PROTOCOL

    cases = mt.CaseSet(make_cases(6))
    out = tmp_path / "run"
    report = mt.run_protocol(nn.DataParallel(model), None, cases, "quick", out=out, **PROTOCOL)
    again = mt.run_protocol(model, None, cases, "quick", out=out, **PROTOCOL)
    assert report.tables["1"].equals(again.tables["1"])
    assert find_anatomy(model).wrapped == ()
