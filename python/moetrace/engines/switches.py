"""Sets of experts switched off together, in plain forwards of clean prompts batched over cases.

Nothing is shared between runs and no vector is taken from a tree: weights are set to zero where the experts
are called, replacements are added behind the block, and routers choose without the experts that are off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.cases.forced import asked_of
from moetrace.engines.clean_contributions import of_one_length, plain_inputs, run_all, tokens_at
from moetrace.engines.job import Job, hook_error
from moetrace.engines.plain_forwards import with_first
from moetrace.engines.switched_sequences import Sequences, forced_tokens
from moetrace.metrics import Metric, Reading
from moetrace.models.experts import routed_call
from moetrace.models.forward import read_metrics
from moetrace.models.router import MaskedRouters
from moetrace.models.stacked import is_stacked, stacked, stacked_routing
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case


@dataclass(frozen=True, eq=False)
class Off:
    """A clean run of a case with experts switched off: by layer bool (experts,)."""

    case: Case
    experts: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Found:
    """Of each run the job's metrics (metrics, runs), and the model's first choice of a token behind the
    prompt (runs,)."""

    values: np.ndarray
    top: np.ndarray


def switch_off(job: Job, runs: Sequence[Off]) -> Found:
    """Run every case with its experts off, as ``job.ablation`` says. The model must be prepared."""
    assert job.ablation is not None
    if any(run.case.several_tokens for run in runs):
        sequences = Sequences.of(job, runs)
        found = _with_clean(sequences.job, sequences.runs)
        return Found(sequences.values(job, found.values), found.top[sequences.true])
    return _with_clean(job, runs)


def _with_clean(job: Job, runs: Sequence[Off]) -> Found:
    if any(metric.needs_clean for metric in job.metrics):
        job = replace(job, metrics=_beside_clean(job, runs))
    return _switch_off(job, runs)


def _beside_clean(job: Job, runs: Sequence[Off]) -> tuple[Metric, ...]:
    """The job's metrics, with the clean run's logits for those that compare with it: it isn't among the rows
    of these forwards, so it is run before them."""
    kept: dict[int, torch.Tensor] = {}

    def keep(given: Reading) -> torch.Tensor:
        assert given.whole is not None
        kept[given.case.case_id] = given.whole[0].clone()
        return torch.zeros(len(given.whole))

    def of(metric: Metric, given: Reading) -> torch.Tensor:
        return metric.of(replace(given, clean=kept[given.case.case_id]))

    cases = {run.case.case_id: run.case for run in runs}
    keeping = replace(job, metrics=(job.metrics[0], Metric("clean logits", "logits", keep)))
    _switch_off(keeping, [Off(case, {}) for case in cases.values()])
    return tuple(
        replace(metric, needs_clean=False, of=partial(of, metric)) if metric.needs_clean else metric
        for metric in job.metrics
    )


def _switch_off(job: Job, runs: Sequence[Off]) -> Found:
    assert job.ablation is not None
    batches: list[list[tuple[int, Off]]] = []
    for forced in sorted({forced_tokens(run) for run in runs}):
        own = [(index, run) for index, run in enumerate(runs) if forced_tokens(run) == forced]
        batches += of_one_length(own, lambda one: len(one[1].case.input_ids))
    tasks = [partial(_Forward(job, [own for _, own in batch]).run) for batch in batches]
    found = run_all(job.anatomy, tasks, together=job.ablation.kind != "reroute")
    values, top = np.empty((len(job.metrics), len(runs))), np.empty(len(runs), np.int64)
    for batch, (measured, first) in zip(batches, found, strict=True):
        places = [index for index, _ in batch]
        values[:, places], top[places] = measured, first
    return Found(values, top)


class _Forward:
    """One forward of runs whose prompts have one length."""

    def __init__(self, job: Job, runs: Sequence[Off]) -> None:
        assert job.ablation is not None
        self._job, self._runs, self._ablation = job, runs, job.ablation
        self._anatomy = job.anatomy
        self._cases = [run.case for run in runs]
        self._length = len(self._cases[0].input_ids)
        self._forced = forced_tokens(runs[0])
        self._layers = sorted({layer for run in runs for layer in run.experts})
        self._calls: dict[int, int] = {}
        self._added: dict[int, torch.Tensor] = {}
        self._head: torch.Tensor | None = None

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Metrics (metrics, runs), and tokens of the highest logit."""
        inputs = plain_inputs(self._anatomy, self._cases)
        last = [self._length - 1]
        masks = {layer: self._off(layer) for layer in self._layers}
        with _core.HookScope() as scope:
            scope.before(self._anatomy.head, self._keep_head)
            if self._ablation.kind == "reroute":
                routers = MaskedRouters(self._anatomy, masks)
                routers.arm(scope)
                with routers:
                    found = self._read(inputs, last, routers.reset)
                routers.check()
            else:
                for layer in self._layers:
                    experts, block = self._anatomy.experts(layer), self._anatomy.site(layer).block
                    if is_stacked(experts):
                        scope.behind(experts, partial(self._silence_stack, layer, masks[layer]))
                    else:
                        scope.before(experts, partial(self._silence, layer, masks[layer]))
                    scope.behind(block, partial(self._replace, layer))
                found = self._read(inputs, last, self._calls.clear)
                self._check()
        assert self._head is not None
        top = first_tensor(self._anatomy.head(self._head))[:, -1].argmax(dim=-1)
        return found[:, :, 0].cpu().numpy(), top.cpu().numpy()

    def _read(self, inputs: dict[str, Any], last: Sequence[int], again: Callable[[], None]) -> torch.Tensor:
        job = self._job
        return read_metrics(self._anatomy, job.readout, inputs, last, self._cases, job.metrics, again)

    def _keep_head(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else next(iter(kwargs.values()))
        place = hidden.shape[1] - 1 - self._forced
        self._head = hidden[:, place : place + 1].clone()

    def _off(self, layer: int) -> torch.Tensor:
        """bool (rows, experts): which experts are off at which token of the batch."""
        widths = [len(run.experts[layer]) for run in self._runs if layer in run.experts]
        mask = torch.zeros(len(self._runs), self._length, widths[0], dtype=torch.bool)
        for index, run in enumerate(self._runs):
            if layer in run.experts:
                own = torch.from_numpy(np.asarray(run.experts[layer], np.bool_))
                mask[index, [*tokens_at(self._job, run.case)]] = own
        return mask.flatten(0, 1)

    def _silence(
        self, layer: int, mask: torch.Tensor, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Before the experts: the weights of those that are off to zero, and what is to take their place."""
        hidden, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
        if len(index) != len(mask):
            what = f"its experts are given {len(index)} rows in a forward pass of {len(mask)} tokens"
            raise hook_error(self._anatomy, what, [("experts", layer)])
        self._calls[layer] = self._calls.get(layer, 0) + 1
        known = torch.cat([mask, torch.zeros(len(mask), 1, dtype=torch.bool)], 1).to(index.device)
        # Identity experts have numbers behind the routed ones, and are never off.
        off = known.gather(1, index.long().clamp(max=mask.shape[1]))
        self._added[layer] = self._replacements(layer, off.cpu(), index.cpu())
        given = {"hidden_states": hidden, "top_k_index": index, "top_k_weights": weights.masked_fill(off, 0)}
        first = args[0] if args else kwargs["hidden_states"]
        return (first, given["top_k_index"], given["top_k_weights"]), {}

    def _silence_stack(
        self,
        layer: int,
        mask: torch.Tensor,
        _module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor:
        """Behind experts that are given every token: the outputs of those that are off to zero."""
        where = f"layer {layer}"
        rows, experts = mask.shape
        gave = stacked(output, experts, rows, where)
        index = stacked_routing(stacked((*args, *kwargs.values())[0], experts, rows, where), where)
        self._calls[layer] = self._calls.get(layer, 0) + 1
        self._added[layer] = self._replacements(layer, mask.gather(1, index.cpu()), index.cpu())
        return gave.masked_fill(mask.T.to(gave.device).unsqueeze(-1), 0).reshape(output.shape)

    def _replacements(self, layer: int, off: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(rows, width), or (0, width) where nothing takes the experts' place."""
        width = self._anatomy.hidden_size
        if self._ablation.kind == "zero":
            return torch.zeros(0, width)
        found = torch.zeros(len(off), width, dtype=torch.float64)
        for row, place in off.nonzero().tolist():
            case, token = self._cases[row // self._length], row % self._length
            instead = self._ablation.replacement(asked_of(case), layer, token, int(index[row, place]))
            if instead is not None:
                found[row] += instead
        return found

    def _replace(self, layer: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Behind the block."""
        added = self._added.pop(layer, None)
        if added is None or not len(added):
            return None
        value = first_tensor(output)
        wide = value.reshape(-1, value.shape[-1]).double() + added.to(value.device)
        return with_first(output, wide.to(value.dtype).reshape(value.shape))

    def _check(self) -> None:
        wrong = [layer for layer in self._layers if self._calls.get(layer, 0) != 1]
        if wrong:
            what = f"the experts of layers {wrong} weren't called exactly once in a forward pass"
            raise hook_error(self._anatomy, what, [("experts", layer) for layer in wrong])
