"""What gradients need of a model and of a metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import nn

from moetrace.changes import Changes
from moetrace.errors import MetricError, ModelError
from moetrace.metrics import Asked, Metric, Reading
from moetrace.models.anatomy import Anatomy
from moetrace.models.float32 import ComputeDtype, computing_in, held_wide
from moetrace.weights import source_of
from moetrace.weights.stored import offloaded_modules
from moetrace.weights.tensors import is_plain

_REMEDY = (
    "take one with a gradient: 'logit_diff', 'logprob', 'prob', 'prob_ratio', 'kl', or a function that stays "
    "in torch and changes smoothly with its logits; trace_experts takes any metric"
)


def refuse_without_gradients(anatomy: Anatomy) -> None:
    """ModelError for weights through which no gradient can flow back, by name, with what would do."""
    model, name = anatomy.model, type(anatomy.model).__name__
    remedy = "load it whole and unquantised, or use trace_experts, which needs no gradients"
    if source_of(model) is not None:
        raise ModelError(
            f"{name} is streamed: its layers leave memory as a forward goes on, and a backward pass needs "
            f"them all; {remedy}"
        )
    away = [own for module in model.modules() for own in offloaded_modules(module)]
    if away:
        raise ModelError(
            f"{name} has offloaded weights: they leave memory as a forward goes on, and a backward pass "
            f"needs them all; {remedy}"
        )
    for where, weight in model.named_parameters():
        if not is_plain(weight):
            raise ModelError(
                f"{name}: {where} is a {type(weight).__name__} of {weight.dtype}, quantised or in parts, and "
                f"gradients need plain weights; {remedy}"
            )
        if weight.is_inference():
            raise ModelError(
                f"{name}: {where} was made under torch.inference_mode, where no gradient can flow; load the "
                "model outside of it"
            )


def refuse_steps(asked: Asked) -> None:
    """MetricError, by name, for a metric that changes in steps: its gradient is zero or isn't there."""
    for metric in asked.metrics:
        if not (metric.smooth or metric.code):
            raise MetricError(
                f"metric {metric.name!r} changes in steps, and a screening takes its gradient; {_REMEDY}"
            )


def refuse_flat(metric: Metric, moved: bool) -> None:
    """MetricError for a user's function whose gradient was zero wherever it was taken."""
    if metric.code and not moved:
        raise MetricError(
            f"the metric function {metric.name!r} has a gradient of zero in every case, so that nothing is "
            f"estimated from it; {_REMEDY}"
        )


def differentiable(metric: Metric, clean: Mapping[int, torch.Tensor]) -> Metric:
    """The same metric, with a MetricError where what it gives has no graph.

    ``clean``: logits of the clean run by case id, where the metric needs them.
    """

    def of(given: Reading) -> torch.Tensor:
        own = replace(given, clean=clean[given.case.case_id]) if metric.needs_clean else given
        try:
            found = metric.of(own)
        except MetricError as failure:
            raise MetricError(f"{failure}. A screening takes its gradient: {_REMEDY}") from failure
        if not found.requires_grad:
            raise MetricError(
                f"metric {metric.name!r} gives numbers without a gradient (case {given.case.case_id}), which "
                f"a screening takes; {_REMEDY}"
            )
        return found

    return replace(metric, of=of, needs_clean=False)


@contextmanager
def wide_throughout(anatomy: Anatomy, dtype: ComputeDtype | None) -> Iterator[None]:
    """As :func:`computing_in`, with the copies of all layers held until the end.

    A backward pass reads them again: a layer's can't make room for the next one's.
    """
    blocks = [site.block for site in anatomy.sites if site is not None]
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as held:
        held.enter_context(computing_in(anatomy, dtype))
        for module in dict.fromkeys((*anatomy.layers, *blocks)):
            held.enter_context(held_wide(anatomy.model, module))
        yield


@contextmanager
def with_gradients(model: nn.Module) -> Iterator[None]:
    """Gradients on, but not of the weights, whose flags are as they were afterwards."""
    changes = Changes()
    try:
        for weight in model.parameters():
            if weight.requires_grad:
                changes.attribute(weight, "requires_grad", False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        changes.undo()
