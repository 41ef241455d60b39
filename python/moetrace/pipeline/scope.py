"""What ``capture`` and ``patch`` share: hooks that are there for a time, and the forward in progress."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.changes import Changes
from moetrace.errors import (
    ArgumentError,
    ContributionError,
    HookError,
    ModelError,
    TokenRangeError,
    WrappedModelError,
)
from moetrace.models.anatomy import Anatomy, LayerSite, find_anatomy
from moetrace.models.experts import measure_scale
from moetrace.models.state import by_one_thread, is_tracing
from moetrace.pipeline.router import RouterForward, Watcher
from moetrace.pipeline.routing import linear_call
from moetrace.pipeline.sites import router_width
from moetrace.pipeline.tokens import Call, Tokens, forward_of, read_call
from moetrace.weights.walk import walk


class ForwardScope:
    """Hooks on a model for the user's own forwards, from ``__enter__`` to ``__exit__``.

    The model is as it was afterwards, also after an exception or Ctrl-C. While it is open, the model runs as
    it did before ``module.compile()``: hooks inside a compiled graph don't fire.
    """

    _word = "capture"
    _acts_in_traces = False

    def __init__(self, model: Any, tokens: Tokens) -> None:
        _refuse_wrapped(model, self._word)
        self._anatomy: Anatomy = find_anatomy(model)
        self._decoder = _decoder_of(self._anatomy)
        self._tokens = tokens
        self._forward = forward_of(tokens)
        self._call: Call | None = None
        self._stack: ExitStack | None = None

    def _arm(self, hooks: _core.HookScope, stack: ExitStack) -> None:
        """Hang the hooks."""
        raise NotImplementedError

    def _open(self) -> None:
        if self._stack is not None:
            raise HookError(
                f"this {self._word} is open already; expected it to be left first: make another one to "
                "nest them"
            )
        model = self._anatomy.model
        _refuse_checkpointing(model, self._word)
        with ExitStack() as stack:
            stack.enter_context(by_one_thread(model))
            changes = Changes()
            stack.callback(changes.undo)
            for module in walk(model):
                if getattr(module, "_compiled_call_impl", None) is not None:
                    changes.attribute(module, "_compiled_call_impl", None)
            hooks = stack.enter_context(_core.HookScope())
            hooks.before(self._decoder, self._begin)
            self._arm(hooks, stack)
            hooks.behind(self._decoder, self._end)
            self._stack = stack.pop_all()

    def _close(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _core.is_quiet() or (is_tracing() and not self._acts_in_traces):
            return
        if self._forward.running_elsewhere:
            raise HookError(
                f"two threads run forwards of one {type(self._anatomy.model).__name__} inside a "
                f"{self._word}; expected one at a time: give each thread a copy of the model"
            )
        call = read_call(args, kwargs)
        if call is None:
            raise HookError(
                f"{type(self._decoder).__name__} is called without input_ids or inputs_embeds of (batch, "
                f"tokens); a {self._word} can't tell its tokens"
            )
        try:
            self._forward.begin(call.batch, call.tokens, call.past, call.last())
        except IndexError as failure:
            raise TokenRangeError(
                f"{failure}; expected tokens from 0 to {call.past + call.tokens - 1}"
            ) from None
        except ValueError as failure:
            raise ArgumentError(f"tokens: {failure}") from None
        self._call = call

    def _end(self, _module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
        if not _core.is_quiet():
            self._forward.end()

    def _attended(self) -> torch.Tensor | None:
        """bool (batch, chosen): False for padding; None where nothing is known of it."""
        assert self._call is not None
        if self._call.attended is None:
            return None
        rows = torch.tensor(self._forward.rows, device=self._call.attended.device)
        return self._call.attended.flatten()[rows].view(self._call.batch, self._forward.chosen)

    def _watch_router(self, stack: ExitStack, layer: int, hook: Any, choice: Any = None) -> None:
        """Let a router's logits pass a hook, and the scores by which it chooses experts another."""
        site = self._anatomy.site(layer)
        router = site.router
        assert router is not None
        watcher = Watcher(partial(hook, router, (), {}), choice and partial(choice, router, (), {}))
        width = router_width(self._anatomy, layer)
        stack.callback(RouterForward.add(router, width, f"layer {layer}", watcher))

    def _watch_contributions(
        self, hooks: _core.HookScope, layer: int, tap: _core.ContributionTap, function: Any
    ) -> None:
        """Let a function know what a layer's experts contribute at the block's output."""
        site = self._anatomy.site(layer)
        scale = None if site.block is not site.experts else 1.0
        call: tuple[tuple[Any, ...], dict[str, Any]] = (), {}

        def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal call
            if scale is None and not _core.is_quiet():
                call = args, kwargs

        def scaled(found: torch.Tensor, *others: torch.Tensor) -> None:
            nonlocal scale, call
            if scale is None:
                with torch.no_grad():
                    scale = _scale(site, *call)
                call = (), {}
            function(found * scale, *others)

        hooks.before(site.block, remember)
        hooks.behind(site.experts, tap.hook(self._forward, linear_call, site.expert_layout, scaled))

    def _outside(self) -> str:
        """What a message says of tokens that no forward held; empty where all were there."""
        absent = self._forward.unreached()
        if not absent:
            return ""
        tokens, last = ", ".join(map(str, absent[:8])), self._forward.longest - 1
        return (
            f"token {tokens} lies outside of the prompt; expected tokens 0 to {last}, which its forwards held"
        )


def _scale(site: LayerSite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """What a block multiplies the sum of its experts by. ContributionError where it does more with it."""
    hidden = args[0] if args else kwargs["hidden_states"]
    rows = hidden.detach().reshape(-1, hidden.shape[-1])
    largest = rows.float().square().sum(1).topk(min(2, len(rows))).indices  # none that is zero
    few = partial(site.block, rows[largest].unsqueeze(0))
    more = len(args) + len(kwargs) > 1  # token ids, perhaps
    run = partial(site.block, *args, **kwargs) if more else few
    try:
        return measure_scale(site, run)
    except ContributionError as failure:
        raise ContributionError(
            f"layer {site.layer}: {type(site.block).__name__} does more with the sum of its experts than "
            "scale it (a norm, perhaps), so that an expert has no share of its output; expected a block that "
            f"adds them. What is lost without an expert: the block's output with and without {{mt.Routing("
            f"{site.layer}): mt.Suppress([expert])}}"
        ) from failure


def _decoder_of(anatomy: Anatomy) -> nn.Module:
    """The module that holds the decoder layers: it is what every forward passes, a bare decoder's too."""
    first = anatomy.layers[0]
    for module in walk(anatomy.model):
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is first:
                return module
    raise ModelError(f"{type(anatomy.model).__name__}: its decoder layers are in no module of its own")


def _refuse_wrapped(model: Any, word: str) -> None:
    """WrappedModelError for wrappers whose forwards don't pass the model's own hooks."""
    if type(model).__name__ == "OptimizedModule":
        raise WrappedModelError(
            f"the model is what torch.compile returned, and hooks don't fire inside its graphs; {word} and "
            "call the module that was compiled (model._orig_mod), or compile in place with model.compile(), "
            f"which a {word} turns off for its time"
        )
    if isinstance(model, nn.DataParallel):
        raise WrappedModelError(
            f"the model is a DataParallel, whose replicas run in threads of their own; {word} and call its "
            ".module, or load it with device_map='auto'"
        )


def _refuse_checkpointing(model: nn.Module, word: str) -> None:
    """ModelError where a backward would run layers again, perhaps when the scope is left."""
    newer = hasattr(model, "is_activation_checkpointing")  # the older name warns where there is a newer one
    name = "is_activation_checkpointing" if newer else "is_gradient_checkpointing"
    if model.training and torch.is_grad_enabled() and getattr(model, name, False):
        raise ModelError(
            f"{type(model).__name__} recomputes its layers in the backward (gradient checkpointing), where a "
            f"{word} would act a second time or no more; call model.gradient_checkpointing_disable() first"
        )
