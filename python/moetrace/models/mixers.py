"""Token mixers that aren't masked attention, run on every run's own tokens while the rest stays a tree.

A mixer's call is replaced: its hooks give it sequences in place of tree rows and fold back what it gives.
Where it keeps a state (recurrent, convolutional, keys and values) the runs of a case aren't read again from
their beginning: clean and noised runs go up to where forks leave them, and each fork goes on from there.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.errors import EngineError
from moetrace.models.anatomy import Anatomy
from moetrace.models.sequences import Sequences, Window
from moetrace.models.states import cache_argument, fresh, split, state_bytes, with_cache

TOKENS_TOGETHER = 8192  # of one call
STATES_TOGETHER = 256 << 20  # bytes of the states that one call goes on from


class Way(enum.Enum):
    """How a mixer's sequences are run."""

    CONTINUED = "from a state, several tokens at a time"
    STEPPED = "from a state, token by token"
    WHOLE = "from their first token"


@dataclass(frozen=True, eq=False)
class Mixer:
    """A module that mixes tokens, by its ``layer`` and its ``name`` there. ``cache``: an empty one."""

    layer: int
    name: str
    way: Way = Way.WHOLE
    cache: Any = None

    def module(self, anatomy: Anatomy) -> nn.Module:
        """The module itself."""
        return anatomy.layers[self.layer].get_submodule(self.name)


@dataclass(frozen=True)
class Call:
    """A mixer's arguments on tree rows."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, sequences: Sequences, turn: Turn) -> tuple[Any, Any]:
        """Its arguments on a window of the sequences, with a cache where there is one."""
        args = sequences.unfold(self.args, turn.window)
        kwargs = sequences.unfold(self.kwargs, turn.window)
        argument = cache_argument(self.module) if turn.cache is not None else None
        return (args, kwargs) if argument is None else with_cache(args, kwargs, argument, turn.cache)


@dataclass(frozen=True)
class Turn:
    """One call on a window of the sequences. ``last``: whether no other follows."""

    window: Window
    cache: Any
    last: bool


def turns_of(sequences: Sequences, mixer: Mixer) -> Iterator[Turn]:
    """The calls that give every token. Each must be run before the next is asked for."""
    if mixer.way is Way.WHOLE or sequences.count == sequences.bases:
        for chosen, last in _parts(np.arange(sequences.count), TOKENS_TOGETHER // sequences.longest):
            yield Turn(Window(chosen, 0, sequences.longest), None, last)
        return
    bases, begin = np.arange(sequences.bases), 0
    of_forks = sequences.cut[sequences.bases :]
    state = fresh(mixer.cache)
    for cut in (cuts := np.unique(of_forks).tolist()):
        for window in _steps(mixer.way, bases, begin, cut):
            yield Turn(window, state, False)
        begin = cut
        leaving = sequences.bases + np.flatnonzero(of_forks == cut)
        ends = cut == cuts[-1]  # what is left of the other runs goes with the last forks
        chosen = np.concatenate([leaving, bases[sequences.length[bases] > cut]]) if ends else leaving
        together = STATES_TOGETHER * len(bases) // max(1, state_bytes(state))
        for own, last in _parts(chosen, together):
            origin = torch.from_numpy(sequences.origin[own])
            split_state = split(state, origin, len(bases)) if cut else fresh(mixer.cache)
            windows = list(_steps(mixer.way, own, cut, int(sequences.length[own].max())))
            for window in windows:
                yield Turn(window, split_state, ends and last and window is windows[-1])


def _steps(way: Way, chosen: np.ndarray, begin: int, end: int) -> Iterator[Window]:
    """One window from the beginning of the prompt; from a state one for each token, or one for all."""
    if way is Way.STEPPED and begin:
        for position in range(begin, end):
            yield Window(chosen, position, position + 1)
    elif begin < end:
        yield Window(chosen, begin, end)


def _parts(chosen: np.ndarray, together: int) -> Iterator[tuple[np.ndarray, bool]]:
    """So many at a time, and whether they are the last."""
    size = max(1, together)
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size], begin + size >= len(chosen)


def run_on_sequences(call: Call, sequences: Sequences, mixer: Mixer) -> Any:
    """What a mixer gives on tree rows, by calls of its forward on sequences."""
    parts = []
    for turn in turns_of(sequences, mixer):
        args, kwargs = call.on(sequences, turn)
        parts.append((turn.window, call.module.forward(*args, **kwargs)))
    return sequences.fold(parts)


class Unfolding:
    """Hooks of one pass around its mixers. The last window of a mixer is run by the call itself."""

    def __init__(self, run: _core.Pass) -> None:
        self._run = run
        self._known: dict[int, Sequences] = {}
        self._open: dict[nn.Module, tuple[Sequences, list[tuple[Window, Any]], Window]] = {}

    def arm(self, scope: _core.HookScope, anatomy: Anatomy, mixers: tuple[Mixer, ...]) -> None:
        """Hang them; outside those of the pass itself."""
        for mixer in mixers:
            module = mixer.module(anatomy)
            scope.before(module, partial(self._enter, mixer))
            scope.behind(module, self._leave)

    def sequences(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequences | None:
        """Those of the rows that a call is given; None where it isn't given hidden states of all cases."""
        plan = self._run.plan
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.dim() > 2 and len(value) == plan.cases:
                rows = int(value.shape[1])
                if not plan.base_rows <= rows <= plan.rows:
                    continue
                if rows not in self._known:
                    self._known[rows] = Sequences(self._run.paths(rows))
                return self._known[rows]
        return None

    def _enter(self, mixer: Mixer, module: nn.Module, args: Any, kwargs: Any) -> Any:
        sequences = self.sequences(args, kwargs)
        if sequences is None:
            raise EngineError(
                f"{type(module).__name__} of layer {mixer.layer} ({mixer.name}) isn't given hidden states of "
                "the tree's rows"
            )
        call, parts = Call(module, args, kwargs), list[tuple[Window, Any]]()
        for turn in turns_of(sequences, mixer):
            given = call.on(sequences, turn)
            if turn.last:
                break
            parts.append((turn.window, module.forward(*given[0], **given[1])))
        self._open[module] = (sequences, parts, turn.window)
        return given

    def _leave(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        sequences, parts, window = self._open.pop(module)
        return sequences.fold([*parts, (window, output)])
