"""What a model computes in forwards of the user's own, kept as it passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from moetrace._native import _core
from moetrace.arguments import as_choice, as_list, nearest, shown
from moetrace.errors import ArgumentError, HookError, LayerRangeError, TokenRangeError
from moetrace.pipeline.routing import Routed, linear_call
from moetrace.pipeline.scope import ForwardScope
from moetrace.pipeline.sites import SITES, Router, Site, check_site, experts_of, module_of
from moetrace.pipeline.tokens import Tokens

WHAT = ("block", "routing", "contributions", "router_logits", "residual", "attention", "shared_expert")
_Value = TypeVar("_Value")


def capture(
    model: Any,
    what: str | Sequence[str] | None = None,
    layers: int | Sequence[int] | None = None,
    tokens: Tokens = None,
) -> Tap:
    """Keep what passes in a model while the ``with`` is open, in any forward of your own.

    >>> with mt.capture(model, what=("routing", "contributions", "block"), tokens="last") as tap:
    ...     model(**batch)
    >>> tap.block[3].shape, tap.routing[3].experts.shape, tap.contributions[3].shape
    (torch.Size([8, 1, 2048]), torch.Size([8, 1, 8]), torch.Size([8, 1, 8, 2048]))

    Args:
        model: A transformers decoder as you have it, on any devices, its layers in memory or not.
        what: ``"block"`` and, where there are experts, ``"routing"`` if None; else one or several of

            - ``"block"``: what the MoE block (or MLP) gives, (batch, tokens, width);
            - ``"routing"``: ``.experts`` and ``.weights`` as applied, (batch, tokens, k);
            - ``"contributions"``: each routed expert's share of the block's output (equation 5: weights
              applied, the block's own scale carried), (batch, tokens, k, width) in the order of
              ``.experts``, in float32 or wider;
            - ``"router_logits"``: before softmax, sigmoid or bias, (batch, tokens, experts);
            - ``"residual"``: the stream as it leaves the layer, (batch, tokens, width);
            - ``"attention"``: what attention (or another mixer) gives, before it is added;
            - ``"shared_expert"``: what the shared experts give, before a gate of theirs.
        layers: Numbers of decoder layers; None for all that have it.
        tokens: None for all; ``"last"`` for each sequence's last that isn't padding; numbers from 0 over the
            whole sequence, padding and cached tokens counted; negative ones from the end of each forward; a
            (batch, n) tensor of numbers, or a boolean (batch, tokens) with as many of each sequence.

    Values are in the model's dtype, on the device of their layer. With gradients on they carry them, and
    where every token is kept they are on the path to the logits: ``torch.autograd.grad(loss, tap.block[3])``
    works (but not for contributions, which are computed beside it).

    A forward that goes on with the cache of the one before it (``generate``, your own decoding) adds its
    tokens behind the others' (``tap.steps`` says how many each had); any other begins anew, and what was kept
    is forgotten. What is read stays yours, also when the ``with`` is left.

    Where sequences change places in the batch between forwards (beams), rows are those of each forward.

    Hooks act in the order in which they came: a capture inside a :func:`moetrace.patch` sees what the patch
    puts there, one around it what was there before. Contributions are those of the experts as called.
    Forwards of a trace aren't yours: nothing of them is kept.

    Raises:
        ArgumentError: an unknown word in ``what``, or tokens that aren't tokens.
        LayerRangeError: a layer that the model hasn't, or that has nothing of the kind.
        TokenRangeError: a token before the first, in the forward; outside of every forward, on reading and on
            leaving.
        ContributionError: in the forward, experts that aren't linear in their weights, or a block that does
            more with their sum than scale it.
        HookError: something is read before any forward, or a module ran twice in one.
        WrappedModelError, ModelError: a model in whose forwards hooks don't fire as they should.
    """
    return Tap(model, what, layers, tokens)


class Captured(Mapping[int, _Value], Generic[_Value]):
    """What was kept of one kind, by layer."""

    def __init__(self, tap: Tap, word: str) -> None:
        self._tap, self._word = tap, word

    def __getitem__(self, layer: int) -> _Value:
        return self._tap._read(self._word, layer)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[int]:
        return iter(self._tap._layers(self._word))

    def __len__(self) -> int:
        return len(self._tap._layers(self._word))

    def __repr__(self) -> str:
        return f"<{self._word} of layers {shown(list(self))}>"


class Tap(ForwardScope):
    """What :func:`capture` kept: ``tap.block[layer]`` and so on, by the names of its ``what``."""

    block: Captured[torch.Tensor]
    routing: Captured[Routed]
    contributions: Captured[torch.Tensor]
    router_logits: Captured[torch.Tensor]
    residual: Captured[torch.Tensor]
    attention: Captured[torch.Tensor]
    shared_expert: Captured[torch.Tensor]

    def __init__(self, model: Any, what: Any, layers: Any, tokens: Tokens) -> None:
        words = None if what is None else _words(what)
        super().__init__(model, tokens)
        if words is None:
            found = [site.experts for site in self._anatomy.sites if site is not None]
            callable_ = any(own is not None and not isinstance(own, nn.ModuleList) for own in found)
            words = ("block", "routing") if callable_ else ("block",)
        self._what = words
        self._taps: dict[str, dict[int, _core.Tap]] = {
            word: {
                layer: _core.Tap(f"{word.replace('_', ' ')} of layer {layer}", self._forward)
                for layer in self._layers_with(word, layers)
            }
            for word in self._what
        }

    def __enter__(self) -> Tap:
        self._open()
        self.clear()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._close()
        if kind is None and self.steps and (outside := self._outside()):
            raise TokenRangeError(f"{self!r} was left: {outside}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in WHAT:
            raise AttributeError(
                f"a tap has no {name!r}{nearest(name, WHAT)}; it has {', '.join(self._what)}"
            )
        self._layers(name)
        return Captured(self, name)

    def __repr__(self) -> str:
        return f"<capture of {', '.join(self._what)} of {type(self._anatomy.model).__name__}>"

    def clear(self) -> None:
        """Forget what was kept."""
        for taps in self._taps.values():
            for tap in taps.values():
                tap.reset()

    @property
    def steps(self) -> list[int]:
        """Tokens that each forward of the sequences gave, in order; they lie behind each other."""
        found = (tap.steps for taps in self._taps.values() for tap in taps.values())
        return next((steps for steps in found if steps), [])

    def _layers_with(self, word: str, layers: Any) -> tuple[int, ...]:
        """Layers that are asked for, or all that have something of the kind."""
        anatomy = self._anatomy
        if layers is not None:
            chosen = anatomy.check_layers(layers)
            for layer in chosen:
                self._check(word, layer)
            return chosen
        found = []
        for layer in range(len(anatomy.layers)):
            try:
                self._check(word, layer)
            except LayerRangeError:
                continue
            found.append(layer)
        if not found:
            raise LayerRangeError(
                f"no layer of {type(anatomy.model).__name__} has what {word!r} asks for; leave it out of what"
            )
        return tuple(found)

    def _check(self, word: str, layer: int) -> None:
        if word in ("routing", "contributions"):
            experts_of(self._anatomy, layer)
        else:
            check_site(self._anatomy, self._site(word, layer))

    @staticmethod
    def _site(word: str, layer: int) -> Site:
        return Router(layer) if word == "router_logits" else SITES[word](layer)

    def _arm(self, hooks: _core.HookScope, stack: ExitStack) -> None:
        for word, taps in self._taps.items():
            for layer, tap in taps.items():
                if word == "routing":
                    experts = experts_of(self._anatomy, layer)
                    hooks.before(experts, tap.routing_hook(self._forward, linear_call))
                elif word == "contributions":
                    own = _core.ContributionTap(f"contributions of layer {layer}", self._forward)
                    self._watch_contributions(hooks, layer, own, _keeper(tap))
                elif word == "router_logits":
                    self._watch_router(stack, layer, tap.hook(self._forward))
                else:
                    hooks.behind(module_of(self._anatomy, self._site(word, layer)), tap.hook(self._forward))

    def _layers(self, word: str) -> list[int]:
        if word not in self._taps:
            raise HookError(
                f"{word} wasn't captured; expected one of {', '.join(self._what)}, or "
                f"mt.capture(model, what={(*self._what, word)!r})"
            )
        return list(self._taps[word])

    def _read(self, word: str, layer: int) -> Any:
        taps = self._taps[word]
        if layer not in taps:
            raise LayerRangeError(
                f"{word} of layer {shown(layer)} wasn't captured; layers that were: {shown(list(taps))}"
            )
        name = type(self._anatomy.model).__name__
        if not self._forward.number:
            raise HookError(
                f"{word} of layer {layer} is read before any forward of {name} ran inside the capture; "
                "expected: with mt.capture(model) as tap: model(**batch), with the model that is captured"
            )
        if outside := self._outside():
            raise TokenRangeError(f"{word} of layer {layer}: {outside}")
        if taps[layer].repeated:
            raise HookError(
                f"{word} of layer {layer}: its module ran more than once in one forward of {name}, so that a "
                "token has no single value there; expected one run: read a place that has it, as the residual"
            )
        found = torch.ops.moetrace.fire(taps[layer].number, _core.Step.READ, [])
        if not found:
            raise HookError(
                f"{word} of layer {layer} is read, and it didn't run in the last forward of {name}"
            )
        return Routed(*found) if word == "routing" else found[0]


def _words(what: Any) -> tuple[str, ...]:
    words = [what] if isinstance(what, str) else as_list(what, "what", "words, as ('routing', 'block')")
    if not words:
        raise ArgumentError(f"what is empty; expected one or several of {', '.join(WHAT)}")
    return tuple(dict.fromkeys(as_choice(word, "what", WHAT) for word in words))


def _keeper(tap: _core.Tap) -> Any:
    """What is told of a layer's contributions and keeps them."""

    def keep(found: torch.Tensor) -> None:
        torch.ops.moetrace.fire(tap.number, _core.Step.KEEP, [found])

    return keep
