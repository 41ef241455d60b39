"""What every routed expert gives in the clean run, and what the router would choose without it.

Plain forwards of clean prompts, those of one length together; beside each block its experts are run again on
the rows that are asked for, pair by pair, while the layer's weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from moetrace._native import _core
from moetrace.counts import count_forward
from moetrace.engines.elsewhere import changes_elsewhere
from moetrace.engines.job import Job, embedding_device
from moetrace.engines.lockstep import Lockstep
from moetrace.errors import ContributionError, LayoutError
from moetrace.models.anatomy import Anatomy, LayerSite, expert_count
from moetrace.models.experts import block_scale, routed_call
from moetrace.models.router import MaskedRouters
from moetrace.models.stacked import is_stacked, stacked, stacked_routing
from moetrace.models.state import first_tensor
from moetrace.weights import source_of

if TYPE_CHECKING:
    from moetrace.cases import Case

ROWS = 2048  # token rows of one batch of plain forwards
T = TypeVar("T")
What = Literal["values", "rerouted"]


@dataclass(frozen=True)
class Contributions:
    """One layer of one case. ``tokens`` (t,): places in the prompt; ``experts`` int64 (t, k), in the router's
    order; ``values`` (t, k, width), c_e at the block's output (equation 5); ``rerouted`` the same shape, by
    how much the block's output changes where its router mustn't choose the expert; None where they weren't
    asked for. On the CPU, float32 or better. ``scale``: what the block multiplies the sum of its experts by,
    None where it does more with it. ``elsewhere``: whether a token's routing may also change where it mustn't
    choose an expert that it isn't routed to; looked for beside ``rerouted`` where there are several tokens.
    """

    tokens: torch.Tensor
    experts: torch.Tensor
    values: torch.Tensor | None = None
    rerouted: torch.Tensor | None = None
    scale: float | None = None
    elsewhere: bool = False

    @property
    def routed(self) -> list[int]:
        """Every expert that some of the tokens is routed to, ascending."""
        return sorted(set(self.experts.flatten().tolist()))

    def at(self, token: int, expert: int, rerouted: bool = False) -> torch.Tensor | None:
        """The expert's vector at a token of the prompt; None where it isn't routed there."""
        places = (self.tokens[:, None] == token) & (self.experts == expert)
        found = places.nonzero()
        if not len(found):
            return None
        values = self.rerouted if rerouted else self.values
        assert values is not None
        return values[found[0, 0], found[0, 1]]


ByLayer = Mapping[int, Contributions]


def capture(
    job: Job,
    cases: Sequence[Case],
    layers: Sequence[int],
    what: Sequence[What] = ("values",),
) -> dict[int, ByLayer]:
    """Contributions by case id and layer, at the tokens of the job's place.

    ``what``: of "values" and "rerouted" those to measure beside the experts. The model must be prepared.
    LayoutError where a family's experts, or for "rerouted" its router, aren't understood.
    """
    found: dict[int, ByLayer] = {}
    batches = of_one_length(cases, lambda case: len(case.input_ids))
    tasks = []
    for batch in batches:
        tokens = [tokens_at(job, case) for case in batch]
        for count in sorted({len(own) for own in tokens}):
            own = [case for case, places in zip(batch, tokens, strict=True) if len(places) == count]
            tasks.append(partial(_Capture(job, own, layers, what).run, found))
    run_all(job.anatomy, tasks, together="rerouted" not in what)
    return found


def tokens_at(job: Job, case: Case) -> tuple[int, ...]:
    """The tokens at which experts are switched off: those of the job's place."""
    return job.tokens_of(case)[0]


def of_one_length(things: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of things whose prompts have one length, in order: no padding is needed."""
    groups: dict[int, list[T]] = {}
    for one in things:
        groups.setdefault(length(one), []).append(one)
    for tokens, own in groups.items():
        size = max(1, ROWS // tokens)
        yield from (own[begin : begin + size] for begin in range(0, len(own), size))


def run_all(anatomy: Anatomy, tasks: Sequence[Callable[[], Any]], together: bool = True) -> list[Any]:
    """What tasks that call the model return; where its weights come from elsewhere, in one sweep of them.

    ``together``: False where tasks set something that holds for a whole thread.
    """
    source = source_of(anatomy.model)
    if source is None:
        return [task() for task in tasks]
    if together:
        return Lockstep(anatomy, source).run(tasks)
    return [Lockstep(anatomy, source).run([task])[0] for task in tasks]


def plain_inputs(anatomy: Anatomy, cases: Sequence[Case]) -> dict[str, Any]:
    """Arguments of a plain forward of prompts of one length."""
    ids = torch.tensor([case.input_ids for case in cases], device=embedding_device(anatomy))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


class _Capture:
    """One forward of cases of one length."""

    def __init__(
        self,
        job: Job,
        cases: Sequence[Case],
        layers: Sequence[int],
        what: Sequence[What],
    ) -> None:
        self._anatomy, self._cases, self._layers, self._what = job.anatomy, cases, layers, what
        length = len(cases[0].input_ids)
        places = [tokens_at(job, case) for case in cases]
        self._tokens = torch.tensor(places, dtype=torch.long)  # (cases, tokens)
        self._total = length * len(cases)
        self._rows = (torch.arange(len(cases))[:, None] * length + self._tokens).flatten()
        self._found: dict[int, dict[str, torch.Tensor]] = {}
        self._scales: dict[int, float | None] = {}
        self._elsewhere: dict[int, bool] = {}

    def run(self, into: dict[int, ByLayer]) -> None:
        """Run the model and file what was seen by case."""
        with _core.HookScope() as scope:
            for layer in self._layers:
                _Watch(self, layer, scope).arm()
            inputs = plain_inputs(self._anatomy, self._cases)
            count_forward(inputs["input_ids"].numel())
            self._anatomy.model(**inputs)
        silent = [layer for layer in self._layers if layer not in self._found]
        if silent:
            raise LayoutError(
                f"the experts of layers {silent} were never called in a forward pass; expected one call of "
                "each; trace_layers serves the model"
            )
        for index, case in enumerate(self._cases):
            into[case.case_id] = {layer: self._of(layer, index) for layer in self._layers}

    def _of(self, layer: int, index: int) -> Contributions:
        tokens = self._tokens[index]
        part = slice(index * len(tokens), (index + 1) * len(tokens))
        found = {name: value[part].cpu() for name, value in self._found[layer].items()}
        elsewhere = self._elsewhere.get(layer, False)
        return Contributions(tokens, **found, scale=self._scales[layer], elsewhere=elsewhere)


@dataclass(frozen=True)
class BlockRows:
    """Rows of what a block is given: ``hidden`` (rows, width), and what else is one row for each token."""

    block: torch.nn.Module
    hidden: torch.Tensor
    beside: Mapping[str, torch.Tensor]

    def rows(self, index: torch.Tensor) -> BlockRows:
        """Some of them, as they are now."""
        return self._each(lambda value: value[index.to(value.device)].clone())

    def repeated(self, times: int) -> BlockRows:
        """Each of them so often, one copy behind the other."""
        return self._each(lambda value: value.repeat_interleave(times, 0))

    def run(self) -> Any:
        """What the block gives of them, as of one sequence."""
        return self.block(self.hidden[None], **{name: value[None] for name, value in self.beside.items()})

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockRows:
        beside = {name: change(value) for name, value in self.beside.items()}
        return BlockRows(self.block, change(self.hidden), beside)


class _Watch:
    """One layer of a capture: reads the call of the experts, then looks again at single pairs."""

    def __init__(self, capture: _Capture, layer: int, scope: _core.HookScope) -> None:
        self._capture, self._layer, self._scope = capture, layer, scope
        self._anatomy = capture._anatomy
        self._site: LayerSite = self._anatomy.site(layer)
        self._experts = self._anatomy.experts(layer)
        self._call: BlockRows | None = None
        self._ends: BlockRows | None = None  # rows that may tell a scale from a gate
        self._routed: tuple[torch.Tensor, ...] | None = None
        self._stacked: torch.Tensor | None = None  # what each expert adds, where that is the module's output

    def arm(self) -> None:
        self._scope.before(self._site.block, self._enter)
        if is_stacked(self._experts):
            self._scope.behind(self._experts, self._look_at_stack)
        else:
            self._scope.before(self._experts, self._look)
        self._scope.behind(self._anatomy.layers[self._layer], self._measure)

    def _enter(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        flat = hidden.reshape(-1, hidden.shape[-1])
        beside = {
            name: value.flatten(0, 1)
            for name, value in kwargs.items()
            if isinstance(value, torch.Tensor) and value.shape[:2] == hidden.shape[:2] and value is not hidden
        }
        call = BlockRows(self._site.block, flat, beside)
        self._call, self._ends = call.rows(self._capture._rows), call.rows(torch.tensor([0, len(flat) - 1]))

    def _look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = routed_call(module, args, kwargs, f"layer {self._layer}")
        rows = self._capture._rows
        self._routed = tuple(value[rows.to(value.device)].clone() for value in call)

    def _look_at_stack(
        self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> None:
        rows, where = self._capture._rows, f"layer {self._layer}"
        count, total = expert_count(self._anatomy, self._layer), self._capture._total
        given, gave = (
            stacked(value, count, total, where)[:, rows.to(value.device)]
            for value in ((*args, *kwargs.values())[0], output)
        )
        index = stacked_routing(given, where)
        self._routed = (given, index)
        wide = gave.to(torch.promote_types(gave.dtype, torch.float32))
        self._stacked = wide[index, torch.arange(len(index), device=index.device)[:, None]].clone()

    def _measure(self, *_: Any) -> None:
        if self._routed is None or self._call is None:
            return  # the capture says itself that they weren't called
        self._scope.pause()
        try:
            scale = self._scale()
            found = {"experts": self._routed[1].long()}
            if "values" in self._capture._what:
                found["values"] = self._values(scale)
            if "rerouted" in self._capture._what:
                given = (self._anatomy, self._layer, self._call, found["experts"])
                found["rerouted"] = rerouted(*given)
                if self._capture._tokens.shape[1] > 1:
                    self._capture._elsewhere[self._layer] = changes_elsewhere(*given)
        finally:
            self._scope.resume()
        self._capture._found[self._layer], self._capture._scales[self._layer] = found, scale

    def _scale(self) -> float | None:
        assert self._ends is not None
        if self._stacked is not None:
            return None
        try:
            return block_scale(self._site, self._ends.hidden[None], self._ends.run)
        except ContributionError:  # a norm, say, stands behind the experts
            return None

    def _values(self, scale: float | None) -> torch.Tensor:
        assert self._routed is not None
        assert self._call is not None
        if self._stacked is not None:
            return self._stacked
        if scale is None:
            return ablated(self._site, self._call, self._routed[2].shape[1])
        return pair_outputs(self._experts, *self._routed) * scale


def pair_outputs(
    experts: torch.nn.Module, hidden: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Weighted output of every (row, expert) pair by the module itself: (rows, k, width), float32 or better.

    Each pair is a row with a second slot of weight 0: some experts squeeze a single one away.
    """
    rows, top_k = index.shape
    one, own = index.reshape(-1, 1), weight.reshape(-1, 1)
    found = experts(
        hidden.repeat_interleave(top_k, 0), torch.cat([one, one], 1), torch.cat([own, own * 0], 1)
    )
    wide: torch.Tensor = found.reshape(rows, top_k, -1).to(torch.promote_types(found.dtype, torch.float32))
    return wide


def ablated(site: LayerSite, call: BlockRows, top_k: int) -> torch.Tensor:
    """Equation 5 literally: the block's output minus that with one expert's weight at zero.

    ``call``: rows of what the block is given. It is run again: (rows, k, width).
    """
    assert site.experts is not None
    rows = len(call.hidden)
    kept = 1.0 - torch.eye(top_k + 1)[:, 1:].repeat(rows, 1)  # of each copy of a row: who is left

    def silence(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, index, weights = routed_call(module, args, kwargs, f"layer {site.layer}")
        return (given, index, weights * kept.to(weights)), {}

    with _core.HookScope() as scope:
        scope.before(site.experts, silence)
        output = first_tensor(call.repeated(top_k + 1).run())
    output = output.reshape(rows, top_k + 1, -1)
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    return wide[:, :1] - wide[:, 1:]


def rerouted(anatomy: Anatomy, layer: int, call: BlockRows, index: torch.Tensor) -> torch.Tensor:
    """By how much a block's output changes where its router mustn't choose one of the experts it chose.

    ``call``: rows of what the block is given; ``index``: (rows, k). The block itself is run again, with the
    logit of the expert at minus infinity: (rows, k, width).
    """
    rows, top_k = index.shape
    count = expert_count(anatomy, layer)
    mask = torch.zeros(rows, top_k + 1, count, dtype=torch.bool)
    places = index.cpu().unsqueeze(-1)
    mask[:, 1:].scatter_(2, places, True)
    routers = MaskedRouters(anatomy, {layer: mask.reshape(-1, count)})
    with _core.HookScope() as scope, routers:
        routers.arm(scope)
        output = first_tensor(call.repeated(top_k + 1).run())
    routers.check()
    output = output.reshape(rows, top_k + 1, -1)
    wide = output.to(torch.promote_types(output.dtype, torch.float32))
    return wide[:, 1:] - wide[:, :1]
