"""What a block gives when its input, its router's or one expert's is changed in some sequences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moetrace._native import _core
from moetrace.errors import LayoutError
from moetrace.models.anatomy import Anatomy
from moetrace.models.experts import routed_call, with_weights
from moetrace.models.state import first_tensor

Hooks = list[tuple[Any, Any]]
Check = Callable[[Any, str], None]


class Receiver:
    """The block of one layer. ``sequences``: which of them end here, each with what is changed and which
    expert; sequence 0 is the noised run. The block runs as it is called, on changed inputs; where a router or
    an expert is the receiver it runs once more on the noised run's input, with that alone changed."""

    def __init__(
        self,
        anatomy: Anatomy,
        layer: int,
        tokens: int,
        position: int,
        sequences: dict[int, tuple[str, int]],
    ) -> None:
        self._anatomy, self._layer, self._site = anatomy, layer, anatomy.site(layer)
        self._tokens, self._position, self._sequences = tokens, position, sequences
        self._inside = False
        self.forget()

    def forget(self) -> None:
        """The forward is run again."""
        self._beside: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._call: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._given: dict[int, torch.Tensor | None] = {}

    def given(self, sequence: int) -> torch.Tensor | None:
        """The block's output at the position; None for an expert that the noised run doesn't route to."""
        return self._given[sequence]

    def hooks(self, check: Check) -> tuple[Hooks, Hooks]:
        """Before and behind modules. ``check``: whether a value is the stream with the sender's change."""
        layer, block = self._anatomy.layers[self._layer], self._site.block
        before: Hooks = [(layer, partial(self._enter_layer, check)), (block, partial(self._enter, check))]
        inside = set(block.modules())
        beside = [module for module in layer.modules() if module is not layer and module not in inside]
        behind: Hooks = [(module, self._pass) for module in beside if block not in module.modules()]
        if any(kind != "block" for kind, _ in self._sequences.values()):
            before.append((self._anatomy.experts(self._layer), self._look))
        return before, [*behind, (block, self._leave)]

    def _enter_layer(self, check: Check, _module: Any, args: Any, kwargs: Any) -> None:
        check(args[0] if args else kwargs.get("hidden_states"), "the entry")

    def _pass(self, _module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        if isinstance(given, torch.Tensor) and isinstance(output, torch.Tensor):
            self._beside.append((given, output))

    def _enter(self, check: Check, _module: Any, args: Any, kwargs: Any) -> None:
        """The block's input must be the stream, or what one module beside the block makes of it."""
        if self._inside:
            return
        hidden = args[0] if args else kwargs.get("hidden_states")
        for given, output in reversed(self._beside):
            same = isinstance(hidden, torch.Tensor) and output.numel() == hidden.numel()
            if same and torch.equal(output.reshape(-1), hidden.reshape(-1)):
                check(given, "the norm before the block")
                return
        check(hidden, "the block")

    def _look(self, module: Any, args: Any, kwargs: Any) -> None:
        if not self._inside:
            self._call = routed_call(module, args, kwargs, f"layer {self._layer}")

    def _leave(self, _module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self._inside:
            return
        whole = first_tensor(output)
        rows = self._rows(whole)
        again = None
        if any(kind != "block" for kind, _ in self._sequences.values()):
            again = self._rows(self._once_more(args, kwargs, len(rows)))
        for sequence, (kind, _) in self._sequences.items():
            if kind == "block":
                self._given[sequence] = rows[sequence].clone()
            elif sequence not in self._given:
                assert again is not None
                self._given[sequence] = again[sequence].clone()

    def _rows(self, value: torch.Tensor) -> torch.Tensor:
        return value.reshape(-1, self._tokens, value.shape[-1])[:, self._position]

    def _once_more(self, args: Any, kwargs: Any, sequences: int) -> torch.Tensor:
        """The block's output on sequence 0's input in all sequences, with routing or one expert changed."""
        if self._call is None:
            raise LayoutError(
                f"layer {self._layer} of {type(self._anatomy.model).__name__}: its experts weren't called in "
                "its block, so that none of them and no router can be a receiver"
            )
        first = partial(_first_in_all, sequences, self._tokens)
        given = tuple(first(value) for value in args)
        named = {name: first(value) for name, value in kwargs.items()}
        block, experts = self._site.block, self._anatomy.experts(self._layer)
        if block is experts:
            given, named = self._reroute(block, given, named)
            return first_tensor(self._change_experts(block, given, named, block.forward(*given, **named)))
        self._inside = True
        try:
            with _core.HookScope() as scope:
                scope.before(experts, self._reroute)
                scope.behind(experts, self._change_experts)
                output = block.forward(*given, **named)  # not the call: this hangs behind it
        finally:
            self._inside = False
        return first_tensor(output)

    def _row(self, sequence: int) -> int:
        return sequence * self._tokens + self._position

    def _reroute(self, module: Any, args: Any, kwargs: Any) -> Any:
        """Sequences with a changed router get its choice: the experts' own input is the noised run's."""
        _, index, weights = routed_call(module, args, kwargs, f"layer {self._layer}")
        assert self._call is not None
        _, changed_index, changed_weights = self._call
        index, weights = index.clone(), weights.clone()
        for sequence, (kind, _) in self._sequences.items():
            if kind == "router":
                row = self._row(sequence)
                index[row], weights[row] = changed_index[row], changed_weights[row]
        return with_weights(args, kwargs, weights, index)

    def _change_experts(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """One expert's output is what it gives for the changed input, with its weight of the noised run."""
        hidden, index, weights = routed_call(module, args, kwargs, f"layer {self._layer}")
        assert self._call is not None
        changed = self._call[0]
        value = first_tensor(output)
        flat = value.reshape(-1, value.shape[-1]).clone()
        for sequence, (kind, expert) in self._sequences.items():
            if kind != "expert":
                continue
            row = self._row(sequence)
            own = torch.where(index[row] == expert, weights[row], torch.zeros_like(weights[row]))[None]
            if not bool((index[row] == expert).any()):
                self._given[sequence] = None
                continue
            one = index[row : row + 1]
            after = first_tensor(module.forward(changed[row : row + 1], one, own))
            before = first_tensor(module.forward(hidden[row : row + 1], one, own))
            flat[row] += (after - before).reshape(-1)
        found = flat.reshape(value.shape)
        return (found, *output[1:]) if isinstance(output, tuple) else found


def _first_in_all(sequences: int, tokens: int, value: Any) -> Any:
    """The same value with sequence 0 in the place of every sequence."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or not value.numel():
        return value
    if len(value) not in (sequences, sequences * tokens):
        return value
    rows = value.reshape(sequences, -1, *value.shape[1:])
    return rows[:1].expand_as(rows).reshape(value.shape).contiguous()
