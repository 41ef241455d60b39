"""First-order estimates of every routed expert's rescue: two forwards and one backward for all of them.

Attribution patching (Nanda 2023; Syed et al. 2023; Kramár et al. 2024): with g the gradient of a metric, the
logit difference (equation 1) by default, with respect to a block's output in the noised run, a patch vector
delta_e (equation 6) changes it by g · delta_e to first order. A contribution is linear in its routing weight
w_e, so g · c_e is w_e times the derivative with respect to w_e: the noised run's own backward gives it for
the noised contributions, and g with the clean run's experts for the clean ones. No contribution is made by
itself. Of several metrics each has a backward of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.differentiable import differentiable, with_gradients
from moetrace.engines.job import Job, embedding_device, hook_error
from moetrace.errors import ContributionError
from moetrace.metrics import Metric, Reading
from moetrace.models.anatomy import expert_count
from moetrace.models.experts import block_scale, routed_call, with_weights
from moetrace.models.forward import read_metrics
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case

Hooks = list[tuple[str, nn.Module, Any]]  # "before" or "behind", a module, and what is hung there
_Gradients = dict[int, tuple[torch.Tensor, ...]]  # of each layer, by metric
_Inputs = tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]  # of a block: rows, and what else it is given
_SCALED = 4  # rows on which a block's scale is measured
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Estimates:
    """What a batch gave: ``clean`` (metrics, cases), ``noised`` (metrics, cases, draws), float64, of all
    metrics of the job.

    By layer: ``estimates``, (metrics, cases, draws, tokens, experts), g · delta_e in the metric's unit, of
    every expert that either run routes to and 0 elsewhere, of the metrics that are screened by;
    ``clean_active``: bool (cases, tokens, experts).
    """

    clean: np.ndarray
    noised: np.ndarray
    estimates: Mapping[int, np.ndarray]
    clean_active: Mapping[int, np.ndarray]

    def case(self, index: int) -> Estimates:
        """One case, as a batch of its own."""
        own = slice(index, index + 1)
        estimates = {layer: values[:, own] for layer, values in self.estimates.items()}
        active = {layer: values[own] for layer, values in self.clean_active.items()}
        return Estimates(self.clean[:, own], self.noised[:, own], estimates, active)


@dataclass
class _Call:
    """A layer's experts in one run: ``index`` (rows, k), the weights and the output in the graph."""

    index: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor = field(default_factory=lambda: torch.empty(0))


def _first_rows(value: Any) -> Any:
    """What else a block is given, of the first tokens alone: token ids, for instance."""
    return value[:1, :_SCALED] if isinstance(value, torch.Tensor) and value.dim() > 1 else value


def batches_of_length(cases: Sequence[Case], rows: int, draws: int) -> list[list[int]]:
    """Indices of cases of one length each, of at most ``rows`` token rows: nothing is ever padded."""
    by_length: dict[int, list[int]] = {}
    for index, case in enumerate(cases):
        by_length.setdefault(len(case.input_ids), []).append(index)
    found = []
    for length, indices in by_length.items():
        size = max(1, rows // (length * draws))
        found += [indices[begin : begin + size] for begin in range(0, len(indices), size)]
    return found


class GradientScreen:
    """Estimates for batches of cases of one length. The model must be prepared.

    ``metrics``: by place among the job's, those that are screened by. ``tokens``: of a case, those whose
    experts are asked for, as many in cases of one length. ``rows``: token rows of a batch, at most.
    """

    def __init__(
        self,
        job: Job,
        layers: Sequence[int],
        metrics: Sequence[int],
        tokens: Callable[[Case], Sequence[int]],
        rows: int,
    ) -> None:
        self.job, self._layers, self._metrics = job, tuple(layers), tuple(metrics)
        self._tokens, self._budget = tokens, rows
        self._counts = {layer: expert_count(job.anatomy, layer) for layer in layers}
        self._scaled: set[int] = set()

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """Indices of the cases of each batch."""
        return batches_of_length(cases, self._budget, self.job.draws)

    def run(self, cases: Sequence[Case]) -> Estimates:
        """One batch. MetricError where a metric gives no gradient."""
        with with_gradients(self.job.anatomy.model):
            return self._run(cases, np.array([list(self._tokens(case)) for case in cases]))

    def _run(self, cases: Sequence[Case], tokens: np.ndarray) -> Estimates:
        draws, count = self.job.draws, len(self._metrics)
        rows, of_clean = self._rows(cases, tokens, draws), self._rows(cases, tokens, 1)
        noised, calls, gradients, of_weights = self._noised(cases)
        slopes: dict[int, list[torch.Tensor]] = {}
        clean_calls: dict[int, _Call] = {}
        clean = self._clean(cases, gradients, slopes, clean_calls)
        shape = (count, len(cases), draws, tokens.shape[1], -1)
        found, active = {}, {}
        for layer in self._layers:
            own = np.stack([self._scattered(layer, calls[layer], s, rows) for s in of_weights[layer]])
            parts = [self._scattered(layer, clean_calls[layer], s, of_clean) for s in slopes[layer]]
            first = np.stack(parts).reshape(count, draws, len(cases), tokens.shape[1], -1)
            found[layer] = first.swapaxes(1, 2) - own.reshape(shape)
            routed = clean_calls[layer].index[of_clean].reshape(*tokens.shape, -1)
            active[layer] = self._active(layer, routed)
        return Estimates(clean, noised.reshape(len(noised), len(cases), draws), found, active)

    def _noised(self, cases: Sequence[Case]) -> tuple[np.ndarray, dict[int, _Call], _Gradients, _Gradients]:
        """The noised forward and the backwards: metrics, calls, gradients of outputs and of weights."""
        job, draws = self.job, self.job.draws
        calls: dict[int, _Call] = {}
        inputs: dict[int, _Inputs] = {}
        hooks: Hooks = []
        for layer in self._layers:
            site = job.anatomy.site(layer)
            hooks.append(("before", site.block, partial(self._keep_input, layer, inputs)))
            hooks.append(("before", job.anatomy.experts(layer), partial(self._enter, layer, calls)))
            hooks.append(("behind", job.anatomy.experts(layer), partial(self._keep_output, layer, calls)))
        logits = self._clean_logits(cases)
        metrics = [
            differentiable(metric, logits) if place in self._metrics else metric
            for place, metric in enumerate(job.metrics)
        ]
        repeated = [case for case in cases for _ in range(draws)]
        parts = [job.corruptor.values(case).reshape(-1, job.anatomy.hidden_size) for case in cases]
        values = self._forward(repeated, torch.cat(parts), hooks, calls, metrics)
        sources = [calls[layer].output for layer in self._layers]
        sources += [calls[layer].weights for layer in self._layers]
        last = self._metrics[-1]
        found = [
            torch.autograd.grad(values[place].sum(), sources, retain_graph=place != last)
            for place in self._metrics
        ]
        self._check_scales(inputs)
        by_source = list(zip(*found, strict=True))
        count = len(self._layers)
        outputs = dict(zip(self._layers, by_source[:count], strict=True))
        weights = dict(zip(self._layers, by_source[count:], strict=True))
        for layer in self._layers:
            for g, slope in zip(outputs[layer], weights[layer], strict=True):
                self._check_sums(layer, calls[layer], g, slope)
            calls[layer].output = torch.empty(0)
        return values.detach().cpu().numpy(), calls, outputs, weights

    def _clean_logits(self, cases: Sequence[Case]) -> dict[int, torch.Tensor]:
        """Those of the clean run's final tokens by case id, where a metric compares with them."""
        found: dict[int, torch.Tensor] = {}

        def keep(given: Reading) -> torch.Tensor:
            found[given.case.case_id] = given.logits[0]
            return given.pair[:, 0]

        if any(self.job.metrics[place].needs_clean for place in self._metrics):
            with torch.no_grad():
                self._forward(cases, None, [], None, [Metric("clean logits", "logits", keep)])
        return found

    def _clean(
        self,
        cases: Sequence[Case],
        gradients: _Gradients,
        slopes: dict[int, list[torch.Tensor]],
        calls: dict[int, _Call],
    ) -> np.ndarray:
        """The clean forward; ``slopes``: of each metric's and draw's g · output by the routing weights."""
        draws = self.job.draws

        def leave(layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> torch.Tensor:
            self._once(layer, calls, behind=True)
            call = calls[layer]
            call.output = first_tensor(output)
            slopes[layer] = []
            for own in gradients[layer]:
                each = own.reshape(len(cases), draws, -1, own.shape[-1]).to(call.output.device)
                for draw in range(draws):
                    g = each[:, draw].reshape(call.output.shape)
                    (slope,) = torch.autograd.grad(call.output, call.weights, g, retain_graph=True)
                    self._check_sums(layer, call, g, slope)
                    slopes[layer].append(slope)
            call.output = call.output.detach()
            return call.output

        hooks: Hooks = []
        for layer in self._layers:
            experts = self.job.anatomy.experts(layer)
            hooks.append(("before", experts, partial(self._enter, layer, calls)))
            hooks.append(("behind", experts, partial(leave, layer)))
        return self._forward(cases, None, hooks, calls, self.job.metrics).detach().cpu().numpy()

    def _enter(self, layer: int, calls: dict[int, _Call], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Give the experts routing weights that nothing else reads, and keep them."""
        self._once(layer, calls)
        _, index, given = routed_call(module, args, kwargs, f"layer {layer}")
        weights = given.clone() if given.requires_grad else given.detach().clone().requires_grad_()
        calls[layer] = _Call(index.detach(), weights)
        return with_weights(args, kwargs, weights.clone())

    def _keep_output(
        self, layer: int, calls: dict[int, _Call], _module: Any, _args: Any, _kwargs: Any, output: Any
    ) -> None:
        self._once(layer, calls, behind=True)
        calls[layer].output = first_tensor(output)

    def _keep_input(
        self, layer: int, inputs: dict[int, _Inputs], _module: Any, args: Any, kwargs: Any
    ) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if isinstance(hidden, torch.Tensor) and layer not in self._scaled:
            rows = hidden.detach().reshape(len(hidden), -1, hidden.shape[-1])[:1, :_SCALED].clone()
            rest = {name: _first_rows(value) for name, value in kwargs.items() if name != "hidden_states"}
            inputs[layer] = (rows, tuple(map(_first_rows, args[1:])), rest)

    def _check_scales(self, inputs: dict[int, _Inputs]) -> None:
        """ContributionError where a block's steps behind its experts aren't a scale (see `block_scale`)."""
        with torch.no_grad():
            for layer, (rows, args, kwargs) in inputs.items():
                site = self.job.anatomy.site(layer)
                try:
                    block_scale(site, rows, partial(site.block, rows, *args, **kwargs))
                except ContributionError:
                    block = type(site.block).__name__
                    raise ContributionError(
                        f"layer {layer}: {block} does more with the sum of its experts than scale it, so "
                        "that first order isn't theirs alone; use trace_experts with engine='reference'"
                    ) from None
                self._scaled.add(layer)

    def _check_sums(self, layer: int, call: _Call, g: torch.Tensor, slope: torch.Tensor) -> None:
        """g · output must be the sum of the weights times their slopes, as it is where c_e = w_e E_e(h)."""
        output = call.output.detach().reshape(len(call.index), -1).double()
        g = g.reshape(output.shape).double()
        whole, size = (g * output).sum(dim=1), (g * output).abs().sum(dim=1)
        parts = (call.weights.detach().double() * slope.double()).sum(dim=1)
        off = (whole - parts).abs() - _TOLERANCE.get(call.output.dtype, 8e-2) * size
        if bool((off > 1e-30).any()):
            row = int(off.argmax())
            name = type(self.job.anatomy.experts(layer)).__name__
            raise ContributionError(
                f"layer {layer}: {name} isn't linear in its routing weights: its output weighs "
                f"{float(whole[row]):.6g} at row {row}, the sum over its experts {float(parts[row]):.6g}; "
                "trace_layers serves the model"
            )

    def _forward(
        self,
        cases: Sequence[Case],
        values: torch.Tensor | None,
        hooks: Hooks,
        calls: dict[int, _Call] | None,
        metrics: Sequence[Metric],
    ) -> torch.Tensor:
        """Metrics (metrics, sequences) at the final token of cases of one length, in the graph.

        ``values``: of the corruption, a row for each subject token of each sequence; None for none.
        ``calls``: that the hooks fill; None where they watch no experts.
        """
        anatomy = self.job.anatomy
        ids = torch.tensor([case.input_ids for case in cases], device=embedding_device(anatomy))
        spans = [range(*case.subject) for case in cases]
        at = torch.tensor([row * ids.shape[1] + token for row, span in enumerate(spans) for token in span])

        def corrupt(_module: Any, _args: Any, _kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            assert values is not None
            flat = output.detach().reshape(-1, output.shape[-1]).clone()
            where = at.to(flat.device)
            own = values.to(flat.device)
            if not self.job.corruptor.replaces:
                own = flat[where].float() + own
            flat[where] = own.to(flat.dtype)
            return flat.reshape(output.shape)

        def again() -> None:
            if calls is not None:
                calls.clear()

        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with _core.HookScope() as scope:
            if values is not None:
                scope.behind(anatomy.embedding, corrupt)
            for side, module, hook in hooks:
                (scope.before if side == "before" else scope.behind)(module, hook)
            last = [ids.shape[1] - 1]
            found = read_metrics(anatomy, self.job.readout, inputs, last, cases, metrics, again)
        if calls is not None:
            self._all_called(calls)
        return found[:, :, 0]

    def _all_called(self, calls: dict[int, _Call]) -> None:
        silent = [layer for layer in self._layers if layer not in calls or not calls[layer].output.numel()]
        if silent:
            what = f"the experts of layers {silent} were never called in a forward pass"
            raise hook_error(self.job.anatomy, what, [("experts", layer) for layer in silent])

    def _once(self, layer: int, calls: dict[int, _Call], behind: bool = False) -> None:
        """HookError where the experts of a layer are called twice in a forward."""
        if layer in calls and (calls[layer].output.numel() or not behind):
            what = f"the experts of layer {layer} were called repeatedly in a forward pass"
            raise hook_error(self.job.anatomy, what, [("experts", layer)])

    def _rows(self, cases: Sequence[Case], tokens: np.ndarray, draws: int) -> torch.Tensor:
        """Rows of a call, by case, draw and token."""
        length = len(cases[0].input_ids)
        first = np.arange(len(cases) * draws).reshape(len(cases), draws, 1) * length
        return torch.from_numpy((first + tokens[:, None, :]).reshape(-1))

    def _scattered(self, layer: int, call: _Call, slope: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
        """g · c_e by expert: float64 (rows, experts)."""
        where = rows.to(call.index.device)
        weights, slope = call.weights.detach()[where].double(), slope.to(call.index.device)[where].double()
        found = torch.zeros(len(rows), self._counts[layer], dtype=torch.float64, device=call.index.device)
        return found.scatter_add_(1, call.index[where].long(), weights * slope).cpu().numpy()

    def _active(self, layer: int, routed: torch.Tensor) -> np.ndarray:
        found = torch.zeros(*routed.shape[:-1], self._counts[layer], dtype=torch.bool, device=routed.device)
        return found.scatter_(-1, routed.long(), True).cpu().numpy()
