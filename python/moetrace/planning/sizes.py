"""Parameters of a model by layer and kind, and what a token row costs in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from moetrace.models.anatomy import BLOCKS, EXPERT_COUNTS, Anatomy, expert_count
from moetrace.models.experts import top_k_of

KINDS = ("attention", "router", "experts", "shared", "dense")


@dataclass(frozen=True)
class LayerSize:
    """One decoder layer.

    ``attention``, ``router``, ``experts`` (all of them), ``shared`` (experts of every token), ``dense``:
    entries of its matrices; vectors (norms, biases) count in ``parameters`` and ``bytes`` alone. ``active``:
    entries that a token row is multiplied with. ``score_width``: products of each pair of row and key, over
    all heads.
    """

    attention: int
    router: int
    experts: int
    shared: int
    dense: int
    active: int
    parameters: int
    bytes: int
    score_width: int

    def flops(self, rows: int, keys: int) -> int:
        """Of ``rows`` token rows that each meet ``keys`` keys: two for each entry and each score product."""
        return 2 * rows * (self.active + keys * self.score_width)


@dataclass(frozen=True)
class ModelSize:
    """A model: its layers, and beside them embedding, head and the rest, in bytes of weights."""

    layers: tuple[LayerSize, ...]
    embedding: int
    head: int
    rest: int
    head_entries: int

    @property
    def layer_bytes(self) -> int:
        """Weights of all layers."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        """All weights; a head that is tied to the embedding counts once."""
        return self.layer_bytes + self.embedding + self.head + self.rest


def size_of(anatomy: Anatomy) -> ModelSize:
    """Count a model's parameters; they needn't be in memory."""
    layers = tuple(_layer_size(anatomy, index) for index in range(len(anatomy.layers)))
    seen = {id(weight) for layer in anatomy.layers for weight in layer.parameters()}
    embedding = _take(anatomy.embedding, seen)
    head = _take(anatomy.head, seen)
    entries = sum(weight.numel() for weight in anatomy.head.parameters() if weight.dim() > 1)
    return ModelSize(layers, embedding, head, _take(anatomy.model, seen), entries)


def _take(module: nn.Module, seen: set[int]) -> int:
    """Bytes of the module's weights that nobody has counted yet."""
    own = [weight for weight in module.parameters() if id(weight) not in seen]
    seen |= {id(weight) for weight in own}
    return sum(weight.numel() * weight.element_size() for weight in own)


def _layer_size(anatomy: Anatomy, index: int) -> LayerSize:
    entries = dict.fromkeys(KINDS, 0)
    weights = list(anatomy.layers[index].parameters())
    for kind, weight in _matrices(anatomy, index):
        entries[kind] += weight.numel()
    share = 0.0
    if entries["experts"]:
        site = anatomy.sites[index]
        known = site is not None and site.experts is not None
        count = expert_count(anatomy, index) if known else _stated_count(anatomy.config)
        share = min(1.0, top_k_of(anatomy.config) / max(1, count))
    active = sum(entries.values()) - entries["experts"] + round(share * entries["experts"])
    return LayerSize(
        **entries,
        active=active,
        parameters=sum(weight.numel() for weight in weights),
        bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        score_width=_score_width(anatomy, index),
    )


def _matrices(anatomy: Anatomy, index: int) -> Iterator[tuple[str, nn.Parameter]]:
    """Every matrix of a layer with what it is for."""
    layer, site = anatomy.layers[index], anatomy.sites[index]
    experts = set() if site is None or site.experts is None else set(map(id, site.experts.parameters()))
    router = set() if site is None or site.router is None else set(map(id, site.router.parameters()))
    block = set() if site is None else set(map(id, site.block.parameters()))
    count = _stated_count(anatomy.config)
    for name, weight in layer.named_parameters():
        # Biases of fused experts have two axes; a text's tokens don't meet experts for images (ernie4_5_vl).
        if weight.dim() < 2 or name.endswith("bias") or "vision" in name:
            continue
        if id(weight) in experts or (weight.dim() == 3 and weight.shape[0] == count):  # jetmoe has no module
            yield "experts", weight
        elif id(weight) in router:
            yield "router", weight
        elif "shared" in name:
            yield "shared", weight
        elif id(weight) in block or name.partition(".")[0] in BLOCKS:
            yield "dense", weight
        else:
            yield "attention", weight


def _stated_count(config: Any) -> int:
    """Routed experts of a layer, as the config says; 0 where it doesn't."""
    values = (getattr(config, name, None) for name in EXPERT_COUNTS)
    return next((value for value in values if isinstance(value, int) and value > 1), 0)


def _score_width(anatomy: Anatomy, index: int) -> int:
    """Products for each pair of row and key: queries with keys, and weights with values, in every head."""
    names = (name.lower() for name, _ in anatomy.layers[index].named_children())
    if not any("attn" in name or "attention" in name for name in names):
        return 0  # a state-space mixer
    config = getattr(anatomy.config, "per_layer_config", None)
    config = anatomy.config if config is None else config[index]  # gemma4: widths differ between layers
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    if not heads:
        return 0
    width = int(getattr(config, "head_dim", 0) or config.hidden_size // heads)
    latent = getattr(config, "qk_nope_head_dim", None), getattr(config, "qk_rope_head_dim", None)
    key = sum(latent) if all(isinstance(part, int) for part in latent) else width  # type: ignore[arg-type]
    value = int(getattr(config, "v_head_dim", 0) or width)
    return heads * (int(key) + value)
