"""Which layouts of expert weights the compiled routines read, and what stands between their products."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.integrations import moe as hf_moe

from moetrace._native import _core
from moetrace.weights.tensors import is_plain

_LIMITS = ("limit", "swiglu_limit")
_SLOPES = ("alpha", "swiglu_alpha")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOLERANCE = 1e-5  # of the gate's size, in float32
# Of experts modules what their gate was made of when it was looked for, and what was found.
_found: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _core.Gate | None]] = weakref.WeakKeyDictionary()


def expert_layout(module: nn.Module) -> _core.ExpertLayout | None:
    """How an experts module stores its weights; None where the compiled routines don't know.

    Known are fused weights with or without a gate and biases, transposed or not, whose gate gives what one of
    :func:`_gates` gives. Nothing else may act on the output: muse_spark's experts end with a norm of their
    own. Whether the weights are in memory is another question.
    """
    gated, biased = bool(getattr(module, "has_gate", True)), bool(getattr(module, "has_bias", False))
    up_name = "gate_up_proj" if gated else "up_proj"
    names = {up_name, "down_proj"} | ({f"{up_name}_bias", "down_proj_bias"} if biased else set())
    if {name for name, _ in module.named_parameters()} != names:
        return None
    weights: dict[str, Any] = {name: getattr(module, name) for name in names}
    up, down = weights[up_name], weights["down_proj"]
    if not all(_known_kind(weight) and weight.device == down.device for weight in weights.values()):
        return None
    transposed = bool(getattr(module, "is_transposed", False))
    if up.dim() != 3 or down.dim() != 3:
        return None
    width, inner = down.shape[:0:-1] if transposed else down.shape[1:]
    columns = 2 * inner if gated else inner
    shape = (width, columns) if transposed else (columns, width)
    if tuple(up.shape) != (down.shape[0], *shape):  # not with identity experts
        return None
    gate = _gate_of(module, gated)
    return None if gate is None else _core.ExpertLayout(gate, transposed=transposed, biased=biased)


def _known_kind(weight: Any) -> bool:
    """Whether the compiled routines read it: a tensor like any other, in a dtype that they compute in."""
    return is_plain(weight) and weight.dtype in _DTYPES


def _gate_of(module: nn.Module, gated: bool) -> _core.Gate | None:
    """The module's gate, looked for once and again when anything that it is made of is another."""
    function = vars(module).get("_apply_gate", getattr(type(module), "_apply_gate", None))
    numbers = (_number(module, _LIMITS), _number(module, _SLOPES))
    state = (gated, function, getattr(module, "act_fn", None), *numbers)
    known = _found.get(module)
    if known is None or known[0] != state:
        known = _found[module] = (state, _known_gate(module, gated))
    return known[1]


def _known_gate(module: nn.Module, gated: bool) -> _core.Gate | None:
    """The gate that gives the module's own numbers on a grid; None where none does, or it can't be called."""
    function: Any = getattr(module, "act_fn", None)
    if gated:
        function = getattr(module, "_apply_gate", partial(hf_moe._default_apply_gate, module))
    probe = _probe(module, gated)
    try:
        with torch.no_grad():
            expected = function(probe.clone())
    except Exception:
        return None
    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        return None
    expected = expected.float()
    for gate in _gates(module, gated):
        found = torch.ops.moetrace.gate(probe, *_fields(gate))
        if found.shape == expected.shape and torch.allclose(
            found, expected, rtol=_TOLERANCE, atol=_TOLERANCE
        ):
            return gate
    return None


def _fields(gate: _core.Gate) -> tuple[bool, bool, int, float, float, bool, float]:
    """As the operator takes them."""
    kind = list(_core.Activation).index(gate.activation)
    return (
        gate.gated, gate.interleaved, kind, gate.slope, gate.limit, gate.limits_activated, gate.shift
    )  # fmt: skip


def _probe(module: nn.Module, gated: bool) -> torch.Tensor:
    """Inputs of a gate, in rows of 12 or 6: around zero, and beyond what it clamps."""
    limit = _number(module, _LIMITS) or 4.0
    limit = limit if math.isfinite(limit) else 4.0
    values = np.concatenate([np.linspace(-4, 4, 61), np.linspace(-3 * limit, 3 * limit, 59)])
    mixed = torch.from_numpy(np.random.default_rng(0).permutation(values).astype(np.float32))
    return mixed.reshape(-1, 12 if gated else 6)


def _gates(module: nn.Module, gated: bool) -> Iterator[_core.Gate]:
    """Gates that a module may have: of any activation, clamped by its limit, with its slope and shift."""
    slope, limit = _number(module, _SLOPES) or 1.0, _number(module, _LIMITS) or math.inf
    for activation in _core.Activation:
        if not gated:
            yield _core.Gate(gated=False, activation=activation)
            continue
        for interleaved in (False, True):
            for shift in (0.0, 1.0):
                for late in (False, True) if math.isfinite(limit) else (False,):
                    yield _core.Gate(
                        interleaved=interleaved,
                        activation=activation,
                        slope=slope if activation is _core.Activation.SILU else 1.0,
                        limit=limit,
                        limits_activated=late,
                        shift=shift,
                    )


def _number(module: nn.Module, names: tuple[str, ...]) -> float | None:
    """The first of these attributes that is a number."""
    found = (getattr(module, name, None) for name in names)
    return next((float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)), None)
