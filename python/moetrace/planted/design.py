"""What is planted where: numbers only, from which the weights are set and the closed form is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moetrace.arguments import as_choice, as_list, as_number, shown
from moetrace.errors import ArgumentError

THRESHOLD = 0.88  # of the pair coordinate: above what one expert of the pair restores, below what both do
SWITCH = 0.6  # signal at which the router of "clean_only" changes its mind; the clean signal is near 1
SLOPE = 5.0  # of that router's logit
GAIN = 5.0  # logits that a share of 1 and a signal of 1 give
BASE = -0.2  # share that the final token brings along


@dataclass(frozen=True)
class Family:
    """Size of a planted model's router."""

    model_type: str
    experts: int
    top_k: int

    @property
    def weights(self) -> tuple[float, ...]:
        """Routing weights of the k routed experts, descending, of sum 1; no two equally close to a third."""
        powers = 1.5 ** np.arange(self.top_k, 0, -1)
        return tuple((powers / powers.sum()).tolist())


FAMILIES = {"qwen3_moe": Family("qwen3_moe", 16, 4), "mixtral": Family("mixtral", 8, 2)}


@dataclass(frozen=True)
class Role:
    """What an expert adds to the final token's residual when it is routed with its nominal ``weight``.

    With the fact's signal z: ``share`` * z + ``step`` + ``reads`` * max(pair - THRESHOLD, 0) to the logit
    coordinate, ``half`` * z to the pair coordinate, ``scratch`` * z to one that the contrast doesn't see.
    ``when``: "always" routed, on a "signal" above SWITCH, on "no_signal", on a "pair" coordinate above it, on
    "no_pair", or in relation "0" or "1".
    """

    expert: int
    weight: float
    share: float = 0.0
    step: float = 0.0
    reads: float = 0.0
    half: float = 0.0
    scratch: float = 0.0
    when: str = "always"


@dataclass(frozen=True)
class Design:
    """A model's roles by layer. ``experts``: those that carry the fact, all in ``layer``."""

    kind: str
    family: Family
    layer: int
    experts: tuple[int, ...]
    roles: tuple[tuple[Role, ...], ...]

    def read_out(self, layer: int) -> float:
        """Gain of the pair coordinate in a layer: 0 unless it has an expert that reads it."""
        return sum(role.reads for role in self.roles[layer])


def _single(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    roles[1] = replace(roles[1], share=shares[0])
    return [roles[1], roles[0], *roles[2:]]


def _decoy(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    # The decoy has the highest routing weight, too.
    roles[0] = replace(roles[0], share=0.0, scratch=20.0)
    return _single(roles, shares)


def _set(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    return [replace(role, share=share) for role, share in zip(roles, shares, strict=False)] + roles[
        len(shares) :
    ]


def _pair(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    return [replace(role, half=0.5, share=0.0) for role in roles[:2]] + roles[2:]


def _clean_only(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    carrier = replace(roles[1], step=shares[0], share=0.0, when="signal")
    return [carrier, roles[0], *roles[2:], replace(carrier, expert=-1, step=-0.1, when="no_signal")]


def _rare(roles: list[Role], shares: Sequence[float]) -> list[Role]:
    star = replace(roles[1], share=shares[0])
    common = replace(roles[0], share=0.0, when="0")
    # Over a quarter of the cases, so its mean is above the star's although its zero rows count.
    return [star, common, *roles[2:], replace(common, expert=-1, share=5 * shares[0], when="1")]


@dataclass(frozen=True)
class Kind:
    """How a kind distributes the shares over the routed experts of its layer, the carriers first."""

    place: Callable[[list[Role], Sequence[float]], list[Role]]
    share: tuple[float, ...]
    carriers: int
    readers: int = 0


KINDS = {
    "single": Kind(_single, (0.8,), 1),
    "pair": Kind(_pair, (0.8,), 2, readers=2),
    "set": Kind(_set, (0.5, 0.4, 0.15, -0.1), 0),
    "decoy": Kind(_decoy, (0.8,), 1),
    "clean_only": Kind(_clean_only, (0.8,), 1),
    "rare": Kind(_rare, (0.3,), 1),
}


def make_design(
    kind: str, family: str, layer: int, layers: int, shares: Sequence[float] | None, seed: int
) -> Design:
    """Roles of every layer. ArgumentError for unknown names and numbers out of range."""
    as_choice(kind, "kind", tuple(KINDS))
    as_choice(family, "family", tuple(FAMILIES))
    plan, size = KINDS[kind], FAMILIES[family]
    if not 0 <= layer < layers - plan.readers:
        raise ArgumentError(
            f"layer is {layer} of {layers}; expected 0 to {layers - plan.readers - 1}"
            + (f", since {plan.readers} later layers read what the pair writes" if plan.readers else "")
        )
    wanted = _shares(kind, plan, size, shares)
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(size.experts), (layers, 1)), axis=1)
    carriers = plan.carriers or len(wanted)
    companions = size.top_k - carriers - (kind in ("decoy", "rare"))
    rest = 1.0 - sum(wanted)
    # What the carriers leave is carried half by their companions, if there are any, half by other layers.
    beside = rest / 2 if companions else 0.0
    elsewhere = (rest - beside) / max(1, layers - 1)
    numbers = order.tolist()
    roles = [_background(numbers[index], size, elsewhere) for index in range(layers)]
    planted = [
        Role(expert, weight, share=beside / max(1, companions), scratch=0.1 * (place + 1))
        for place, (expert, weight) in enumerate(zip(numbers[layer], size.weights, strict=False))
    ]
    roles[layer] = [
        replace(role, expert=numbers[layer][size.top_k]) if role.expert < 0 else role
        for role in plan.place(planted, wanted)
    ]
    for index in range(layer + 1, layers) if plan.readers else ():
        # Several layers read the pair, each a part: no reader's block alone restores what the pair does.
        gain = wanted[0] / (1.0 - THRESHOLD) / (layers - layer - 1)
        roles[index][1] = replace(roles[index][1], reads=gain)
    named = tuple(role.expert for role in roles[layer][:carriers])
    return Design(kind, size, layer, named, tuple(tuple(line) for line in roles))


def _background(experts: Sequence[int], size: Family, share: float) -> list[Role]:
    """A layer that isn't the planted one: its first routed expert carries a little, all write scratch."""
    pairs = zip(experts, size.weights, strict=False)
    return [Role(e, w, share=0.0 if place else share, scratch=0.3) for place, (e, w) in enumerate(pairs)]


def _shares(kind: str, plan: Kind, size: Family, shares: Sequence[float] | None) -> tuple[float, ...]:
    if shares is None:
        return plan.share[: size.top_k]
    given = as_list(shares, "shares", "a list of numbers")
    found = tuple(as_number(share, "a share", -10, 10) for share in given)
    if kind == "set":
        fits = 1 <= len(found) <= size.top_k
        expected = f"1 to {size.top_k} shares, of the experts in the order of their routing weights"
    else:
        fits, expected = len(found) == 1, "one share"
    if not fits:
        raise ArgumentError(
            f"shares is {shown(given)}; kind {kind!r} expects {expected}, each within -10 to 10"
        )
    return found
