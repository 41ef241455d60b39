"""Every layout of fused experts that the compiled routines read, against the module that stores them so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from moetrace import SubjectNoise
from moetrace._native import _core
from moetrace.engines import tree
from moetrace.engines.job import Patch, Sweep, make_job
from moetrace.engines.reference import ReferenceEngine
from moetrace.engines.tree import TreeEngine
from moetrace.models.anatomy import find_anatomy
from moetrace.models.layout import expert_layout
from moetrace.models.state import prepared
from tests.engines.tiny import make_cases, make_model

COUNT, WIDTH, INNER = 8, 32, 12


def gpt_oss(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both[..., ::2].clamp(max=self.limit), both[..., 1::2].clamp(-self.limit, self.limit)
    return (up + 1) * gate * torch.sigmoid(gate * self.alpha)


def clamped(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return self.act_fn(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit)


def clamped_behind(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return self.act_fn(gate).clamp(max=self.limit) * up.clamp(-self.limit, self.limit)


def shifted(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    gate, up = gate.clamp(max=self.swiglu_limit), up.clamp(-self.swiglu_limit, self.swiglu_limit)
    return (up + 1.0) * gate * torch.sigmoid(gate * self.swiglu_alpha)


def wide(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return (self.act_fn(gate.float()) * up.float()).to(gate.dtype)


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"activation": "gelu"},
    "gelu_tanh": {"activation": "gelu_pytorch_tanh"},
    "relu": {"activation": "relu"},
    "no gate, relu squared": {"activation": "relu2", "has_gate": False},
    "no gate, silu, biases": {"has_gate": False, "has_bias": True},
    "biases": {"has_bias": True},
    "transposed": {"is_transposed": True},
    "transposed, biases, no gate": {"is_transposed": True, "has_bias": True, "has_gate": False},
    "gpt_oss": {
        "is_concatenated": False, "is_transposed": True, "has_bias": True, "gate": gpt_oss,
        "alpha": 1.702, "limit": 0.5,
    },
    "minimax_m3": {"gate": shifted, "swiglu_alpha": 1.5, "swiglu_limit": 0.4},
    "deepseek_v4": {"gate": clamped, "limit": 0.3},
    "step3p7": {"gate": clamped_behind, "limit": 0.2},
    "step3p7 without a limit": {"gate": clamped_behind, "limit": float("inf")},
    "beam": {"gate": wide},
}  # fmt: skip


def make_experts(
    activation: str = "silu", gate: Any = None, std: float = 0.3, **flags: Any
) -> tuple[nn.Module, Any]:
    """A module in transformers' own interface, and the attributes that its gate reads."""
    numbers = {
        name: flags.pop(name) for name in [*flags] if not name.startswith(("is_", "has_"))
    }  # limits and slopes
    transposed, biased = flags.get("is_transposed", False), flags.get("has_bias", False)
    up_name = "gate_up_proj" if flags.get("has_gate", True) else "up_proj"
    columns = 2 * INNER if flags.get("has_gate", True) else INNER

    def drawn(*shape: int) -> nn.Parameter:
        return nn.Parameter(std * torch.randn(*shape), requires_grad=False)

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = COUNT
            self.act_fn = ACT2FN[activation]
            up, down = (COUNT, columns, WIDTH), (COUNT, WIDTH, INNER)
            if transposed:
                up, down = (COUNT, WIDTH, columns), (COUNT, INNER, WIDTH)
            self.register_parameter(up_name, drawn(*up))
            self.down_proj = drawn(*down)
            if biased:
                self.register_parameter(f"{up_name}_bias", drawn(COUNT, columns))
                self.down_proj_bias = drawn(COUNT, WIDTH)
            for name, value in numbers.items():
                setattr(self, name, value)

        def forward(self, *_: Any) -> Any:
            raise AssertionError("transformers' own implementation serves")

    if gate is not None:
        Experts._apply_gate = gate  # type: ignore[attr-defined]
    kind = use_experts_implementation(Experts, **flags)
    return kind(SimpleNamespace(_experts_implementation="batched_mm"))


@pytest.fixture(params=LAYOUTS)
def model(request: Any) -> Any:
    """Qwen3-MoE whose experts are stored otherwise."""
    found = make_model("qwen3_moe")
    torch.manual_seed(7)
    for layer in found.model.layers:
        layer.mlp.experts = make_experts(**LAYOUTS[request.param])
    return found.eval()


def run_both(model: Any, cases: Any) -> tuple[Any, Any, int]:
    """What plain forwards and the tree find for all kinds of patches, and how often it was fused."""
    with prepared(model):
        anatomy = find_anatomy(model)
        patches = [
            patch
            for layer in (1, 3)
            for patch in (Patch.block(layer), Patch.of_experts(layer, _core.Chosen.UNION))
        ]
        job = make_job(anatomy, patches, SubjectNoise(), sweeps=[Sweep(1, 2), Sweep(3, 2)])
        expected = ReferenceEngine(job).run(cases)
        engine = TreeEngine(job)
        return expected, engine.run(cases), engine.fused_calls


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "contributions alone"])
def test_every_layout(model: Any, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "FUSED_FROM", 1 if fused else 10_000)
    expected, found, calls = run_both(model, make_cases(3))
    assert calls == (4 if fused else 0)
    np.testing.assert_allclose(found.patched, expected.patched, atol=2e-4)
    for layer, routing in expected.routing.items():
        np.testing.assert_allclose(found.routing[layer].patched, routing.patched, atol=2e-4)
        np.testing.assert_allclose(found.routing[layer].delta_norm, routing.delta_norm, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_layout_in_half_precision(
    model: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every layer is computed, and every row that is compared agrees with the module (or it would be left).

    Rounding flips a router's near tie in single runs, so that most runs are alike and not all.
    """
    monkeypatch.setattr(tree, "FUSED_FROM", 1)
    expected, found, calls = run_both(model.to(dtype), make_cases(3))
    assert calls == 4
    assert np.median(np.abs(found.patched - expected.patched)) < 0.05 * np.abs(expected.patched).max()


def drawn_call(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Weights, hidden states and routing of 40 rows."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    up, down, hidden = drawn(6, 64, 48) / 7, drawn(6, 48, 32) / 6, drawn(40, 48)
    index = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in range(40)])
    weights = drawn(40, 4).softmax(-1)
    return up.to(dtype), down.to(dtype), hidden.to(dtype), index, weights.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_exact_sum_than_the_module(dtype: torch.dtype) -> None:
    up, down, hidden, index, weights = drawn_call(dtype)
    wanted = [3, 39, 0]
    found, contribution = torch.ops.moetrace.fused_output(up, down, hidden, index, weights, wanted)
    assert found.dtype == dtype
    assert contribution.dtype == torch.float32

    exact = torch.zeros(40, 4, 48, dtype=torch.float64)
    eager = torch.zeros(40, 48, dtype=dtype)
    for row in range(40):
        for slot in range(4):
            expert = index[row, slot]
            gate, value = (up[expert].double() @ hidden[row].double()).chunk(2)
            exact[row, slot] = weights[row, slot] * (
                down[expert].double() @ (nn.functional.silu(gate) * value)
            )
            gate, value = nn.functional.linear(hidden[row], up[expert]).chunk(2)
            own = nn.functional.linear(nn.functional.silu(gate) * value, down[expert])
            eager[row] += own * weights[row, slot]
    mine, theirs = ((own - exact.sum(1)).square().mean() for own in (found, eager))
    assert mine <= theirs
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(contribution.double(), exact[wanted], rtol=0, atol=4 * unit)
    # The contributions' sum is the output but for one rounding of it.
    torch.testing.assert_close(contribution.sum(1), found[wanted].float(), rtol=unit / 2, atol=1e-6)


def twice(self: Any, both: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return 2 * self.act_fn(gate) * up


def raising(self: Any, both: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("needs what a probe doesn't have")


@pytest.mark.parametrize(
    "flags",
    [
        {"gate": twice},
        {"gate": raising},
        {"activation": "tanh"},
        {"has_post_expert_norm": True},
        {"gate": clamped, "limit": 0.3, "other_limit": 1.0},
    ],
    ids=["another gate", "a gate that fails", "another activation", "a norm behind", "known all the same"],
)
def test_what_is_not_known_is_left_to_the_module(flags: dict[str, Any]) -> None:
    module = make_experts(**flags)
    if flags.get("has_post_expert_norm"):
        module.post_expert_norm = nn.LayerNorm(WIDTH)
    known = "other_limit" in flags
    assert (expert_layout(module) is not None) == known


def test_identity_experts_and_odd_shapes_are_not_known() -> None:
    module = make_experts()
    assert expert_layout(module) is not None
    module.down_proj = nn.Parameter(torch.zeros(COUNT - 1, WIDTH, INNER))
    assert expert_layout(module) is None
    assert expert_layout(nn.Linear(3, 3)) is None
