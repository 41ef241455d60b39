"""Values of the user's own in the place of what a model computes, in forwards of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from moetrace._native import _core
from moetrace.arguments import refuse_type, shown
from moetrace.errors import ArgumentError, HookError, PatchError, TokenRangeError
from moetrace.pipeline.expert_patch import ExpertPatch, rerouted
from moetrace.pipeline.routing import Force, Suppress, linear_call
from moetrace.pipeline.scope import ForwardScope
from moetrace.pipeline.sites import (
    Attention,
    Block,
    Residual,
    Router,
    Routing,
    SharedExpert,
    Site,
    as_site,
    check_expert,
    check_site,
    module_of,
    router_width,
)
from moetrace.pipeline.tokens import Tokens, forward_of
from moetrace.pipeline.values import (
    Ablate,
    check_takes,
    check_value,
    fitting,
    new_value,
    refuse_nan,
    resampled,
)
from moetrace.results.expert_name import Expert

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
Value = Any  # a tensor, a function, Ablate, Suppress or Force: see mt.patch


def patch(model: Any, values: Mapping[Any, Value], tokens: Tokens = None) -> Patch:
    """Put values of your own in places of a model while the ``with`` is open, in any forward of your own.

    >>> with mt.patch(model, {mt.Block(3): vector, mt.Expert(3, 17): mt.Ablate("zero")}, tokens="last"):
    ...     logits = model(**batch).logits

    Args:
        model: A transformers decoder as you have it, on any devices, its layers in memory or not.
        values: By site: ``mt.Block(layer)``, ``mt.Residual(layer)``, ``mt.Attention(layer)``,
            ``mt.SharedExpert(layer)``, ``mt.Router(layer)``, ``mt.Routing(layer)``, ``mt.Expert(layer,
            expert)``, or its name as text ("block.3", "L03E017"). A value is

            - a tensor that replaces: (width,), (n, width) or (batch, n, width) for n patched tokens; of
              ``Router`` the width is the number of experts, of ``Routing`` it is a pair (experts, weights)
              of (batch, n, k);
            - a function of the present value, (batch, n, width), that gives one of its shape; of
              ``Routing`` ``function(experts, weights)`` gives both;
            - ``mt.Ablate("zero" | "mean" | "resample")``, of an expert also ``"reroute"``;
            - of ``Routing`` also ``mt.Suppress(experts)`` and ``mt.Force(experts)``.

            An expert's present value is its contribution at the block's output (equation 5), in float32 or
            wider; it is zero at tokens that aren't routed to it, and what stands in its place there is added
            all the same.
        tokens: As in :func:`moetrace.capture`: None for every token of every forward.

    Everything that follows a place runs as the model runs it. Within a layer values are put in the order in
    which the model comes by: router, routing, experts, shared expert, block. Gradients flow through what is
    put there to whatever it was made of. A function may call the model: it runs without the patch then.
    A trace inside of it traces the patched model, by plain forwards where the single pass has no row for each
    patched token. The device is the model's own; a dtype narrower than the model's is widened.

    Raises:
        ArgumentError, LayerRangeError: a site that the model hasn't, with the nearest name; tokens that
            aren't tokens; an unknown mode.
        PatchError: another shape or a wider dtype than the place has, or a function that returns them.
        TokenRangeError: a token before the first, in the forward; outside of every forward, on leaving.
        ContributionError: in the forward, experts that aren't linear in their weights.
        HookError: on leaving, a patch that never came to act; an expert that the router chooses in spite of
            ``"reroute"``.
        WrappedModelError, ModelError: a model in whose forwards hooks don't fire as they should.
    """
    return Patch(model, values, tokens)


class Patch(ForwardScope):
    """The open patch of :func:`patch`."""

    _word = "patch"
    _acts_in_traces = True  # the patched model is what is traced

    def __init__(self, model: Any, values: Mapping[Any, Value], tokens: Tokens) -> None:
        if not isinstance(values, Mapping):
            refuse_type(values, "values", "a dictionary of sites and their values, as {mt.Block(3): vector}")
        if not values:
            raise ArgumentError("values is empty; expected one site at least, as {mt.Block(3): vector}")
        super().__init__(model, tokens)
        self._values: dict[Site | Expert, Value] = {}
        for key, value in values.items():
            site = as_site(key)
            if site in self._values:
                raise ArgumentError(f"{site} is given twice; expected each site once")
            check_site(self._anatomy, site)
            self._check(site, value)
            self._values[site] = value
        self._counts: dict[Site | Expert, Callable[[], int]] = {}

    def __enter__(self) -> Patch:
        self._counts.clear()
        self._forward = forward_of(self._tokens)
        self._open()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._close()
        if kind is None:
            self._check_fired()

    def __repr__(self) -> str:
        return f"<patch of {', '.join(map(str, self._values))} of {type(self._anatomy.model).__name__}>"

    def _check(self, site: Site | Expert, value: Value) -> None:
        if isinstance(site, Routing):
            self._check_routing(site, value)
        elif isinstance(value, Suppress | Force):
            raise PatchError(
                f"{site}: the value is {shown(value)}, which changes what is routed where; expected "
                f"{{mt.Routing({site.layer}): {shown(value)}}}"
            )
        elif not (isinstance(site, Expert) and value == Ablate("reroute")):
            router = isinstance(site, Router)
            check_value(
                site, value, router_width(self._anatomy, site.layer) if router else self._anatomy.hidden_size
            )
        else:
            module_of(self._anatomy, Router(site.layer))

    def _check_routing(self, site: Routing, value: Value) -> None:
        if isinstance(value, Suppress | Force):
            assert isinstance(value.experts, tuple)
            for expert in value.experts:
                check_expert(self._anatomy, site.layer, expert)
            return
        pair = (
            isinstance(value, tuple) and len(value) == 2 and all(isinstance(x, torch.Tensor) for x in value)
        )
        if pair:
            refuse_nan(site, value[1], "the weights are")
            return
        if callable(value) and not isinstance(value, type):
            check_takes(site, value, "experts", "weights")
            return
        if isinstance(value, Ablate) and value.mode in ("zero", "resample"):
            return
        raise PatchError(
            f"{site}: the value is {shown(value)}; expected mt.Suppress(experts), mt.Force(experts), a "
            "pair of tensors (experts, weights), a function of both, mt.Ablate('zero') or "
            "mt.Ablate('resample')"
        )

    def _arm(self, hooks: _core.HookScope, stack: ExitStack) -> None:
        layers = sorted({site.layer for site in self._values})
        for layer in layers:
            own = {site: value for site, value in self._values.items() if site.layer == layer}
            experts = {s: v for s, v in own.items() if isinstance(s, Expert)}
            away = [site for site, value in experts.items() if value == Ablate("reroute")]
            if Router(layer) in own:
                self._arm_router(stack, Router(layer), own[Router(layer)])
            if away:
                self._arm_rerouting(hooks, stack, layer, away)
            if Routing(layer) in own:
                self._arm_routing(hooks, Routing(layer), own[Routing(layer)])
            contributing = {site: value for site, value in experts.items() if site not in away}
            if contributing:
                self._arm_experts(hooks, layer, contributing)
            for kind in (SharedExpert, Block, Attention, Residual):
                if kind(layer) in own:
                    self._arm_output(hooks, kind(layer), own[kind(layer)])

    def _site_patch(self, site: Site) -> _core.TokenPatch:
        own = _core.TokenPatch(str(site), self._forward)
        self._counts[site] = lambda: own.fired
        return own

    def _arm_output(self, hooks: _core.HookScope, site: Site, value: Value) -> None:
        function = partial(self._put, site, value)
        hooks.behind(module_of(self._anatomy, site), self._site_patch(site).hook(self._forward, function))

    def _arm_router(self, stack: ExitStack, site: Router, value: Value) -> None:
        hook = self._site_patch(site).hook(self._forward, partial(self._put, site, value))
        self._watch_router(stack, site.layer, hook)

    def _arm_routing(self, hooks: _core.HookScope, site: Routing, value: Value) -> None:
        hook = self._site_patch(site).routing_hook(
            self._forward, linear_call, partial(self._reroute, site, value)
        )
        hooks.before(self._anatomy.experts(site.layer), hook)

    def _arm_rerouting(
        self, hooks: _core.HookScope, stack: ExitStack, layer: int, away: list[Expert]
    ) -> None:
        numbers = [site.expert for site in away]
        own = _core.TokenPatch(f"router of layer {layer}", self._forward)
        hook = own.hook(self._forward, partial(rerouted, numbers))
        scores = _core.TokenPatch(f"scores of layer {layer}", self._forward)
        self._watch_router(stack, layer, hook, scores.hook(self._forward, partial(rerouted, numbers)))
        check = _core.TokenPatch(f"routing of layer {layer}", self._forward)

        def see(experts: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for site in away:
                if (experts == site.expert).any():
                    raise HookError(
                        f"{site}: the router of layer {layer} chooses it even with the lowest logit and "
                        f"score; mt.Routing({layer}): mt.Suppress([{site.expert}]) takes its "
                        "weight away"
                    )
            return experts, weights

        hooks.before(self._anatomy.experts(layer), check.routing_hook(self._forward, linear_call, see))
        for site in away:
            self._counts[site] = lambda: own.fired

    def _arm_experts(self, hooks: _core.HookScope, layer: int, values: dict[Expert, Value]) -> None:
        patches = []
        for site, value in values.items():
            tap = _core.ContributionTap(str(site), self._forward, site.expert)
            own = ExpertPatch(site, value, self._attended)
            self._watch_contributions(hooks, layer, tap, own.at_experts)
            self._counts[site] = partial(getattr, own, "fired")
            patches.append(own)

        def at_block(present: torch.Tensor) -> torch.Tensor:
            wide = present.to(torch.promote_types(present.dtype, torch.float32))
            for own in patches:
                wide = wide + own.taken().to(wide.device, wide.dtype)
            return wide.to(present.dtype)

        block = _core.TokenPatch(f"block of layer {layer}", self._forward)
        hooks.behind(self._anatomy.site(layer).block, block.hook(self._forward, at_block))

    def _put(self, site: Site, value: Value, present: torch.Tensor) -> torch.Tensor:
        return new_value(site, value, present, self._attended)

    def _reroute(
        self, site: Routing, value: Value, experts: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if value == Ablate("zero"):
            return experts, torch.zeros_like(weights)
        if value == Ablate("resample"):
            return resampled(site, experts), resampled(site, weights)
        found = value if isinstance(value, tuple) else value(experts, weights)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise PatchError(
                f"{site}: the function returned {shown(found)}; expected a pair (experts, weights)"
            )
        index, weight = found
        if not isinstance(index, torch.Tensor) or index.dtype not in _WHOLE:
            raise PatchError(f"{site}: the experts are {shown(index)}; expected a tensor of whole numbers")
        weight = fitting(site, weight, weights, "the weights are")
        if index.shape != experts.shape or weight.shape != weights.shape:
            raise PatchError(
                f"{site}: experts are of shape {tuple(index.shape)} and weights of {tuple(weight.shape)}; "
                f"expected {tuple(experts.shape)} of both: (batch, patched tokens, experts a token has)"
            )
        index = index.to(experts.device, experts.dtype)
        if index.numel():
            for expert in (int(index.min()), int(index.max())):
                check_expert(self._anatomy, site.layer, expert)
        return index, weight

    def _check_fired(self) -> None:
        name = type(self._anatomy.model).__name__
        if not self._forward.number:
            raise HookError(
                f"{self!r} was left, and no forward of {name} ran inside it; expected: with mt.patch(model, "
                "...): model(**batch), with the model that was patched"
            )
        if outside := self._outside():
            raise TokenRangeError(f"{self!r} was left: {outside}")
        for site, count in self._counts.items():
            if not count():
                raise HookError(
                    f"{site} was never patched in {self._forward.number} forwards of {name}: its module "
                    "didn't run, or no chosen token passed it"
                )
