"""Places in a model whose values are kept or replaced: what they are called, and which module has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from moetrace.arguments import as_count, nearest, refuse_type, shown
from moetrace.errors import ArgumentError, LayerRangeError, LayoutError
from moetrace.models.anatomy import EXPERT_COUNTS, Anatomy, LayerSite, expert_count
from moetrace.results.expert_name import Expert, ExpertRangeError

_MIXERS = (
    "self_attn", "attn", "attention", "self_attention", "linear_attn", "mamba", "conv", "short_conv",
    "token_mixer", "temporal_block", "mixer",
)  # fmt: skip
_SHARED = ("shared_expert", "shared_experts", "share_expert", "shared_mlp")
_TEXT = re.compile(r"([A-Za-z_]+)\.(\d{1,6})", re.ASCII)


@dataclass(frozen=True, order=True)
class Site:
    """A place in one decoder layer, counted from 0."""

    layer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_count(self.layer, "layer", 0))

    def __str__(self) -> str:
        return f"{self.word}.{self.layer}"

    @property
    def word(self) -> str:
        """The name of this kind of place."""
        return next(word for word, kind in SITES.items() if kind is type(self))


class Block(Site):
    """What a layer's MoE block (or MLP) gives, before it is added to the residual stream: (batch, n, width).

    >>> mt.patch(model, {mt.Block(3): mt.Ablate("zero")})
    """


class Residual(Site):
    """The residual stream as it leaves a layer: (batch, n, width).

    That is ``hidden_states[layer + 1]`` of transformers, but for a norm of theirs behind the last layer.

    >>> mt.patch(model, {mt.Residual(3): lambda h: h + 4.0 * direction})
    """


class Attention(Site):
    """What a layer's attention (or other token mixer) gives, before it is added: (batch, n, width).

    >>> mt.patch(model, {mt.Attention(3): mt.Ablate("mean")})
    """


class SharedExpert(Site):
    """What the experts that every token passes give, before a gate of theirs: (batch, n, width).

    >>> mt.patch(model, {mt.SharedExpert(3): mt.Ablate("zero")})

    In Gemma 4 the dense MLP beside the experts.
    """


class Router(Site):
    """A router's logits, before softmax, sigmoid or bias: (batch, n, experts).

    What follows them is the model's own.

    >>> mt.patch(model, {mt.Router(3): lambda logits: logits + bias})
    """


class Routing(Site):
    """What experts a layer calls, and their weights as applied: two (batch, n, k).

    >>> mt.patch(model, {mt.Routing(3): mt.Suppress([17])})
    >>> mt.patch(model, {mt.Routing(3): lambda experts, weights: (experts, weights.flip(-1))})
    """


SITES: dict[str, type[Site]] = {
    "block": Block, "residual": Residual, "attention": Attention, "shared_expert": SharedExpert,
    "router": Router, "routing": Routing,
}  # fmt: skip


def as_site(value: Any) -> Site | Expert:
    """A site from itself or its name ("block.3", "L03E017"). ArgumentError names the nearest."""
    if isinstance(value, Site | Expert):
        return value
    names = ", ".join(f"mt.{kind.__name__}(layer)" for kind in SITES.values())
    expected = f"a site: {names} or mt.Expert(layer, expert); as text 'block.3' or 'L03E017'"
    if not isinstance(value, str):
        refuse_type(value, "a site", expected)
    if value.startswith("L") and value[1:2].isdigit():
        return Expert.parse(value)
    found = _TEXT.fullmatch(value)
    word = found[1] if found else value.partition(".")[0]
    if found is None or word not in SITES:
        near = nearest(word.lower(), SITES).replace("'?)", f".{found[2] if found else '3'}'?)")
        raise ArgumentError(f"{shown(value)} is no site{near}; expected {expected}")
    return SITES[word](int(found[2]))


def check_site(anatomy: Anatomy, site: Site | Expert) -> None:
    """Refuse a site that the model hasn't. LayerRangeError, ExpertRangeError, LayoutError."""
    if isinstance(site, Expert):
        check_expert(anatomy, site.layer, site.expert)
    elif isinstance(site, Routing):
        anatomy.experts(site.layer)
    else:
        module_of(anatomy, site)


def check_expert(anatomy: Anatomy, layer: int, expert: int) -> None:
    """Refuse an expert that a layer hasn't. LayerRangeError, ExpertRangeError."""
    anatomy.experts(layer)
    count = expert_count(anatomy, layer)
    if not 0 <= expert < count:
        raise ExpertRangeError(
            f"expert {shown(expert)} is out of range: layer {layer} of {type(anatomy.model).__name__} has "
            f"experts 0 to {count - 1}"
        )


def module_of(anatomy: Anatomy, site: Site) -> nn.Module:
    """The module whose output a site is; of a router the module that it is in."""
    if not 0 <= site.layer < len(anatomy.layers):
        name, last = type(anatomy.model).__name__, len(anatomy.layers) - 1
        raise LayerRangeError(f"{site} is out of range: {name} has layers 0 to {last}")
    layer = anatomy.layers[site.layer]
    if isinstance(site, Residual):
        return layer
    if isinstance(site, Attention):
        return _mixer_of(anatomy, site.layer)
    own = anatomy.site(site.layer)
    if isinstance(site, SharedExpert):
        return _shared_of(anatomy, own)
    if isinstance(site, Router):
        if own.router is None:
            raise LayerRangeError(
                f"layer {site.layer} of {type(anatomy.model).__name__} has no router that is a module of its "
                f"own ({own.path}); layers with one: "
                f"{[s.layer for s in anatomy.sites if s is not None and s.router is not None]}"
            )
        return own.router
    return own.block


def router_width(anatomy: Anatomy, layer: int) -> int:
    """Logits of a layer's router."""
    site = anatomy.site(layer)
    if site.experts is not None:
        return expert_count(anatomy, layer)
    for name in EXPERT_COUNTS:
        value = getattr(anatomy.config, name, None)
        if isinstance(value, int) and value > 1:
            return value
    raise LayoutError(f"the config doesn't say how many experts layer {layer} has")


def _mixer_of(anatomy: Anatomy, number: int) -> nn.Module:
    """What mixes a layer's tokens. LayoutError where no usual name has it, or several do."""
    layer, site = anatomy.layers[number], anatomy.sites[number]
    block = None if site is None else site.block
    homes = [layer, *(child for child in layer.children() if child is not block)]
    found: list[tuple[str, nn.Module]] = []
    for home in homes:  # dbrx keeps its attention in a module with its norms
        found = [
            (name, child)
            for name, child in home.named_children()
            if name in _MIXERS and child is not block and not isinstance(child, nn.ModuleList)
        ]
        if found:
            break
    if len(found) == 1:
        return found[0][1]
    several = [name for name, child in layer.named_children() if isinstance(child, nn.ModuleList)]
    what = ", ".join(name for name, _ in found) or (
        f"lists {', '.join(several)}" if several else "none of them"
    )
    raise LayoutError(
        f"layer {number} of {type(anatomy.model).__name__}: expected one attention or other token mixer "
        f"named one of {', '.join(_MIXERS)}; found {what}. Residual({number}) and Block({number}) "
        "serve the layer"
    )


def _shared_of(anatomy: Anatomy, site: LayerSite) -> nn.Module:
    """The experts that every token passes. LayerRangeError where a layer has none."""
    layer = anatomy.layers[site.layer]
    for home in (site.block, layer):
        for name, child in home.named_children():
            if name in _SHARED:
                return child
    if site.block is site.experts and isinstance(getattr(layer, "mlp", None), nn.Module):
        return layer.get_submodule("mlp")
    children = ", ".join(name for name, _ in site.block.named_children())
    raise LayerRangeError(
        f"layer {site.layer} of {type(anatomy.model).__name__} has no shared expert: expected one of "
        f"{', '.join(_SHARED)} in {site.path}; found {children or 'no children'}"
    )
