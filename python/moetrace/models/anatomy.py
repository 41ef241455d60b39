"""Where a language model keeps its layers, blocks, experts, embedding and head.

Found by structure and attribute names, not by a list of models; what isn't recognised is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from moetrace._native import _core
from moetrace.arguments import as_integer, as_list, is_integer, shown
from moetrace.errors import (
    ArgumentTypeError,
    EncoderDecoderError,
    LayerRangeError,
    LayerTypeError,
    LayoutError,
    ModelError,
    TokenMixingError,
)
from moetrace.models.layout import expert_layout
from moetrace.models.positions import position_limit
from moetrace.models.refusals import refuse_absent_weights, refuse_encoders
from moetrace.models.wrappers import unwrap
from moetrace.weights import source_of
from moetrace.weights.stored import execution_devices, has_other_forward, offloaded_names
from moetrace.weights.tensors import NUMBERS
from moetrace.weights.walk import walk

LAYER_LISTS = ("layers", "h", "blocks", "block", "decoder_layers")
# longcat_flash has one layer for every two that it counts in the first.
LAYER_COUNTS = ("num_hidden_layers", "num_layers")
BLOCKS = ("block_sparse_moe", "mlp", "feed_forward", "ffn", "moe", "mixer", "shared_mlp", "mlp_block")
EXPERTS = "experts"
ROUTERS = ("gate", "router", "router_gate", "wg")
# longcat_flash: total_experts of the module counts the identity experts too.
EXPERT_COUNTS = ("total_experts", "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LayerSite:
    """The block of one decoder layer: what a layer patch overwrites.

    ``layer``: index among the decoder layers; ``path``: dotted name inside the model; ``sparse``: whether
    it is a Mixture-of-Experts block; ``experts``: the experts module inside it, None if there is none;
    ``router``: in the block or beside its experts, None where no usual name has one; ``apart``: its weights
    come from elsewhere, and are there when a pass enters the layer.
    """

    layer: int
    path: str
    block: nn.Module
    sparse: bool
    experts: nn.Module | None
    router: nn.Module | None = None
    apart: bool = False

    @property
    def expert_layout(self) -> _core.ExpertLayout | None:
        """How the experts' weights lie, where the compiled routines read them."""
        return None if self.experts is None else expert_layout(self.experts)

    @property
    def _in_memory(self) -> bool:
        assert self.experts is not None
        return not any(weight.is_meta for weight in self.experts.parameters())

    @property
    def fusible(self) -> bool:
        """Whether they may compute the module's output too, in a layout that is known: its user has no hooks
        on it and gave it no forward of its own, and its block runs on one device."""
        module = self.experts
        if module is None or module._forward_hooks or module._forward_pre_hooks:
            return False
        if self.expert_layout is None or not (self.apart or self._in_memory):
            return False
        return not has_other_forward(module) and len(execution_devices(self.block)) < 2


@dataclass(frozen=True)
class Anatomy:
    """What a trace needs to know of a model."""

    model: nn.Module
    config: Any
    layers: tuple[nn.Module, ...]
    sites: tuple[LayerSite | None, ...]
    embedding: nn.Module
    head: nn.Module
    vocab_size: int
    hidden_size: int
    wrapped: tuple[str, ...] = ()  # what was around the model, the innermost last

    @property
    def positions(self) -> int | None:
        """Tokens of the longest prompt that the model has positions for; None where it doesn't say."""
        return position_limit(self.config)

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Layers with routed experts."""
        return tuple(site.layer for site in self.sites if site is not None and site.sparse)

    @property
    def element_size(self) -> int:
        """Bytes of a number of the hidden states: codes of quantised weights have fewer."""
        weights = (weight for weight in self.model.parameters() if weight.dtype in NUMBERS)
        return next((weight.element_size() for weight in weights), 4)

    def default_layers(self) -> tuple[int, ...]:
        """Every layer with routed experts; every layer with a block in a model without any."""
        return self.sparse_layers or tuple(site.layer for site in self.sites if site is not None)

    def site(self, layer: int) -> LayerSite:
        """The block of a layer. LayerRangeError where there is none."""
        self._check_layer(layer)
        found = self.sites[layer]
        if found is None:
            raise LayerRangeError(
                f"layer {layer} of {type(self.model).__name__} has no MLP or MoE block to patch; layers "
                f"with one: {[s.layer for s in self.sites if s is not None]}"
            )
        return found

    def experts(self, layer: int) -> nn.Module:
        """The experts module of a layer. LayerRangeError where the layer has none."""
        found = self.site(layer)
        if found.experts is None:
            name, others = type(self.model).__name__, [s.layer for s in self.sites if s and s.experts]
            if found.sparse:
                parts = ", ".join(name for name, _ in found.block.named_children())
                raise LayerRangeError(
                    f"layer {layer} of {name} has experts in a layout that can't be traced one by one: "
                    f"expected a module '{EXPERTS}' in {found.path} that is called with each row's experts "
                    f"and weights, found {parts}; layers with such experts: {others}; trace_layers serves "
                    "the model"
                )
            raise LayerRangeError(
                f"layer {layer} of {name} is dense ({found.path}); layers with experts: {others}"
            )
        return found.experts

    def resolve_layers(self, layers: int | Sequence[int] | None) -> tuple[int, ...]:
        """Check and complete a user's ``layers``: None is every default layer; no layer twice."""
        if layers is None:
            return self.default_layers()
        wanted = self.check_layers(layers)
        for layer in wanted:
            self.site(layer)
        return wanted

    def check_layers(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        """Numbers of layers that the model has, none twice. LayerRangeError, LayerTypeError."""
        expected = "a layer's number, a list of numbers, or None for all"
        try:
            given = [layers] if is_integer(layers) else as_list(layers, "layers", expected)
            wanted = [as_integer(layer, "layers", expected) for layer in given]
        except ArgumentTypeError as failure:
            raise LayerTypeError(str(failure)) from None
        if not wanted:
            raise LayerRangeError("layers is empty; expected at least one layer, or None for all")
        if len(set(wanted)) != len(wanted):
            twice = sorted({x for x in wanted if wanted.count(x) > 1})
            raise LayerRangeError(f"layers repeats {shown(twice)}; expected each layer once")
        for layer in wanted:
            self._check_layer(layer)
        return tuple(wanted)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < len(self.layers):
            raise LayerRangeError(
                f"layer {shown(layer)} is out of range: {type(self.model).__name__} has layers 0 to "
                f"{len(self.layers) - 1}"
            )


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder (a multimodal model has one inside its own)."""
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(
            f"{type(model).__name__} has no config; expected a transformers model such as "
            "AutoModelForCausalLM gives"
        )
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def find_anatomy(model: Any) -> Anatomy:
    """Look a model over. Raises a ModelError that says what was found and what was expected.

    The model inside torch.compile, DistributedDataParallel or PEFT is what is traced.
    """
    found = look_over(model)
    refuse_absent_weights(found.model)
    return found


def look_over(model: Any) -> Anatomy:
    """:func:`find_anatomy` for a model whose weights needn't be there: nothing is run on it."""
    model, wrapped = unwrap(model)
    config = text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise EncoderDecoderError(
            f"{type(model).__name__} is an encoder-decoder model; expected a decoder-only language model, "
            "since the protocol patches the final token of one causal sequence"
        )
    refuse_encoders(model, config)
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    layers = _find_layers(model, config, embedding)
    names = walk(model)
    found = [_find_site(index, layer, names) for index, layer in enumerate(layers)]
    sites = tuple(None if site is None else replace(site, apart=_is_apart(model, site)) for site in found)
    _refuse_unknown_experts(model, config, layers, sites)
    if embedding is None:
        raise LayoutError(f"{type(model).__name__} has no input embedding (get_input_embeddings gave None)")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise LayoutError(
            f"{type(model).__name__} has no language-model head (get_output_embeddings gave None); expected "
            "a model such as AutoModelForCausalLM gives, not a bare decoder"
        )
    return Anatomy(
        model=model,
        config=config,
        layers=layers,
        sites=sites,
        embedding=embedding,
        head=head,
        vocab_size=int(getattr(config, "vocab_size", 0) or embedding.num_embeddings),
        hidden_size=int(config.hidden_size),
        wrapped=wrapped,
    )


def decoder_layers(model: Any) -> tuple[nn.Module, ...]:
    """The decoder layers of a language model, in order. ModelError where they aren't found."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return _find_layers(model, text_config(model), embedding)


def _is_apart(model: nn.Module, site: LayerSite) -> bool:
    """Whether the weights of a block come when a pass enters its layer."""
    return source_of(model) is not None or any(map(offloaded_names, site.block.modules()))


def _find_layers(model: nn.Module, config: Any, embedding: nn.Module | None) -> tuple[nn.Module, ...]:
    """The list of decoder layers: as long as the config says, under one of the usual names.

    The list beside the embedding goes first: a vision tower may have as many layers under the same name.
    """
    counts = [x for x in (getattr(config, name, None) for name in LAYER_COUNTS) if isinstance(x, int)]
    names = walk(model)

    def owner(module: nn.Module) -> str:
        return names[module].rpartition(".")[0]

    lists = [
        module
        for module, name in names.items()
        if isinstance(module, nn.ModuleList) and len(module) and name.rpartition(".")[2] in LAYER_LISTS
    ]
    home = owner(embedding) if embedding is not None and embedding in names else None
    for module in sorted(lists, key=lambda module: owner(module) != home):
        for count in counts or [len(module)]:
            if len(module) >= count:
                return tuple(module)[:count]
    found = ", ".join(f"{names[module]} ({len(module)})" for module in lists)
    expected = " or ".join(map(str, dict.fromkeys(counts))) or "any length"
    raise LayoutError(
        f"no decoder layers were found in {type(model).__name__}: expected a ModuleList of {expected} named "
        f"one of {', '.join(LAYER_LISTS)}; found {found or 'none of these names'}"
    )


def _find_site(number: int, layer: nn.Module, names: dict[nn.Module, str]) -> LayerSite | None:
    children = dict(layer.named_children())
    if EXPERTS in children:  # gemma4: experts and router sit in the layer itself, beside a dense MLP
        experts = children[EXPERTS]
        return LayerSite(number, names[experts], experts, True, experts, _find_router(experts, layer))
    for name in BLOCKS:
        block = children.get(name)
        if block is None:
            continue
        # ernie4_5_vl keeps experts for text and experts for images in one block.
        inner = dict(block.named_children()).get("text_moe", block)
        if name == "mixer" and not _is_sparse(inner):
            continue  # nemotron_h calls its attention and state-space mixers so too
        router = _find_router(inner, block, layer)
        return LayerSite(number, names[block], block, _is_sparse(inner), _experts_of(inner), router)
    return None


def _find_router(*owners: nn.Module) -> nn.Module | None:
    """The first router that is found directly in one of them."""
    for owner in owners:
        children = dict(owner.named_children())
        for name in ROUTERS:
            if name in children:
                return children[name]
    return None


def _experts_of(block: nn.Module) -> nn.Module | None:
    return dict(block.named_children()).get(EXPERTS)


def _is_sparse(block: nn.Module) -> bool:
    children = dict(block.named_children())
    return EXPERTS in children or any(name in children for name in ROUTERS)


def _refuse_unknown_experts(
    model: nn.Module, config: Any, layers: tuple[nn.Module, ...], sites: tuple[LayerSite | None, ...]
) -> None:
    for layer in layers:
        for module in walk(layer):
            if type(module).__name__.endswith("CDMoE"):
                raise TokenMixingError(
                    f"{type(model).__name__}: the router of {type(module).__name__} views its output across "
                    "the batch, so a token's experts depend on other tokens, later ones included; patching "
                    "one token is not defined there, and the model can't be traced; expected a router of "
                    "each token by itself (without experts, is_moe=False, it is traced as a dense model)"
                )
    # A dense Doge keeps a number of experts that it doesn't have.
    names = EXPERT_COUNTS if getattr(config, "is_moe", True) else ()
    counts = {name: getattr(config, name, None) for name in names}
    claimed = {name: value for name, value in counts.items() if isinstance(value, int) and value > 1}
    if all(site is None for site in sites):
        found = sorted({name for layer in layers for name, _ in layer.named_children()})
        raise LayoutError(
            f"no MLP or MoE block was found in the layers of {type(model).__name__}: expected a child named "
            f"one of {', '.join(BLOCKS)}; found {', '.join(found)}"
        )
    if claimed and not any(site is not None and site.sparse for site in sites):
        site = next(site for site in sites if site is not None)
        found = sorted(name for name, _ in site.block.named_children())
        raise LayoutError(
            f"the config of {type(model).__name__} speaks of experts ({claimed}), but no block has them in a "
            f"known layout: expected a child '{EXPERTS}' or a router named one of {', '.join(ROUTERS)} in "
            f"{site.path}; found {', '.join(found) or 'no children'}"
        )


def expert_count(anatomy: Anatomy, layer: int) -> int:
    """Routed experts of a layer."""
    module = anatomy.experts(layer)
    for owner in (module, anatomy.config):
        for name in EXPERT_COUNTS:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 1:
                return value
    raise LayoutError(f"neither the experts of layer {layer} nor the config say how many there are")
