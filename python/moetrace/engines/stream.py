"""Whether direct effects mean something in a model, found by measuring: one forward of two equal sequences.

The second sequence gets a vector added behind the lowest traced layer, and in every later layer each module
with weights gives it what it gave the first: those layers are frozen. Where layers add to one residual stream
the vector arrives unchanged at the final norm. It doesn't where a layer scales or mixes the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.engines.job import Job, embedding_device
from moetrace.engines.self_check import widened
from moetrace.models.anatomy import Anatomy
from moetrace.models.ending import Ending
from moetrace.models.forward import pair_of, read_differences
from moetrace.models.readout import make_readout, plain_weight
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case

_SIZE = 30.0  # of the vector in the stream's own size: later layers' writes don't hide it
_LOST = 1e-3  # part of the vector that may be lost beyond rounding


def find_ending(job: Job, case: Case) -> Ending:
    """What stands behind the last layer's stream, or why direct effects aren't available for the model."""
    name = type(job.anatomy.model).__name__
    try:
        with widened(job) as wide:
            found = _found(wide, case)
    except Exception as failure:  # a model of unknown make may fail in any way; the trace goes on without
        found = f"the check of its residual stream failed ({type(failure).__name__}: {failure})"[:300]
    if isinstance(found, Ending):
        return found
    return Ending(fault=f"direct effects aren't available for {name}: {found}")


def likely_ending(job: Job) -> Ending:
    """The ending by its looks: the one norm beside the layers. What it is must be found out all the same."""
    norms = [
        module
        for module in _beside_layers(job.anatomy)
        if "norm" in type(module).__name__.lower() and len(list(module.children())) == 0
    ]
    if len(norms) != 1:
        return Ending(fault="its final norm can't be told by its looks")
    return Ending(norms[0], job.readout)


def _found(job: Job, case: Case) -> Ending | str:
    seen = _Frozen(job, case)
    differences = seen.run()
    stream, vector = seen.stream, seen.vector
    if stream is None or vector is None:
        return "its layers don't pass on one stream of (batch, tokens, width)"
    if seen.readout.own_head:
        if plain_weight(job.anatomy.head) is None:
            return "its head isn't a plain matrix in memory"
        return "what it does between its head and its logits isn't recognised"
    norm = next((norm for norm, given, gave in seen.called if seen.ends(given, gave)), None)
    if norm is None:
        return "between its last layer and its head stands more than one norm of the last layer's output"
    arrived = (stream[1, -1] - stream[0, -1]).double()
    lost = float((arrived - vector.to(arrived)).norm() / vector.double().norm())
    rounding = (
        8 * torch.finfo(stream.dtype).eps * float(stream[:, -1].double().norm() / vector.double().norm())
    )
    if not lost <= _LOST + rounding:
        return (
            f"its layers change the residual stream that they add to: with their blocks and attention frozen "
            f"a vector added behind layer {min(job.block_layers)} arrives changed by {lost:.2g} of its norm"
        )
    ending = Ending(norm, seen.readout)
    tokens = torch.tensor([pair_of(case, job.anatomy.vocab_size)])
    noised = stream[:1, -1:]
    none = torch.zeros_like(noised).unsqueeze(1)
    direct, linear = ending.effects(noised, none, tokens, differences[:1])
    if not bool(torch.isfinite(direct).all()):
        return "its final norm and read-out give other logits by themselves than in its forward"
    if bool(torch.isfinite(linear).all()):
        return ending
    absent = any(weight.is_meta for weight in norm.parameters())
    why = "has weights that aren't in memory" if absent else "isn't a gain times its input over a scale"
    fault = (
        f"linear direct effects aren't available for {type(job.anatomy.model).__name__}: its final norm "
        f"({type(norm).__name__}) {why}"
    )
    return Ending(norm, seen.readout, linear_fault=fault)


class _Frozen:
    """The forward of two sequences, and what it showed."""

    def __init__(self, job: Job, case: Case) -> None:
        self.job, self.case = job, case
        self.readout = make_readout(job.anatomy)
        self.vector: torch.Tensor | None = None
        self.stream: torch.Tensor | None = None  # the last layer's output
        self.entered: torch.Tensor | None = None  # the head
        self.called: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def run(self) -> torch.Tensor:
        anatomy, case = self.job.anatomy, self.case
        first = min(self.job.block_layers)
        ids = torch.tensor([case.input_ids] * 2, device=embedding_device(anatomy))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with _core.HookScope() as scope:
            scope.behind(anatomy.layers[first], self._add)
            for layer in range(first + 1, len(anatomy.layers)):
                for module in _with_weights(anatomy, layer):
                    scope.behind(module, partial(_freeze, len(case.input_ids)))
            scope.behind(anatomy.layers[-1], self._keep_stream)
            for module in _beside_layers(anatomy):
                scope.behind(module, self._keep_call)
            scope.before(anatomy.head, self._keep_entered)
            last = [len(case.input_ids) - 1]
            return read_differences(anatomy, self.readout, inputs, last, [case] * 2, self.called.clear)

    def ends(self, given: torch.Tensor, gave: torch.Tensor) -> bool:
        """Whether a module was given the last layer's output, and the head what it gave."""
        assert self.stream is not None
        assert self.entered is not None
        return _same(given, self.stream) and _same(gave[:, -1], self.entered[:, -1])

    def _add(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        value = first_tensor(output)
        if not (isinstance(value, torch.Tensor) and value.shape[:-1] == (2, len(self.case.input_ids))):
            return None
        row = value[0, -1]
        drawn = torch.randn(row.shape, generator=torch.Generator().manual_seed(0)).to(row)
        changed = value.clone()
        changed[1] = value[0]
        changed[1, -1] = row + _SIZE * row.float().square().mean().sqrt().to(row) * drawn
        self.vector = changed[1, -1] - row
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _keep_stream(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        value = first_tensor(output)
        whole = isinstance(value, torch.Tensor) and value.dim() == 3 and len(value) == 2
        self.stream = value if whole else None

    def _keep_call(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if isinstance(given, torch.Tensor) and isinstance(output, torch.Tensor) and output.dim() == 3:
            self.called.append((module, given, output))

    def _keep_entered(self, _module: Any, args: Any, _kwargs: Any) -> None:
        self.entered = args[0]


def _with_weights(anatomy: Anatomy, layer: int) -> Iterator[nn.Module]:
    """Modules inside a layer that have weights of their own, and its block."""
    site = anatomy.sites[layer]
    for module in anatomy.layers[layer].modules():
        if module is anatomy.layers[layer]:
            continue
        if module._parameters or (site is not None and module is site.block):
            yield module


def _freeze(tokens: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
    """Give the second sequence what the first one got."""

    def frozen(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(frozen(item) for item in value)
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or len(value) not in (2, 2 * tokens):
            return value
        half = value[: len(value) // 2]
        return torch.cat([half, half])

    return frozen(output)


def _beside_layers(anatomy: Anatomy) -> Iterator[nn.Module]:
    """Modules beside the layers, or beside what holds them, without layers, embedding or head inside."""
    names = {module: name for name, module in anatomy.model.named_modules()}
    path = names[anatomy.layers[-1]].split(".")
    for depth in range(len(path) - 1):
        for child in anatomy.model.get_submodule(".".join(path[:depth])).children():
            inside = set(child.modules())
            if not inside & {anatomy.layers[-1], anatomy.embedding, anatomy.head}:
                yield child


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
