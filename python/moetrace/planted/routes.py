"""A planted model whose paths are known: what an expert writes itself, by a router, and by another expert."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moetrace.arguments import as_choice, as_count, as_seed
from moetrace.cases import CaseSet
from moetrace.corruptions import NoiseLike, SubjectNoise, as_subject_noise
from moetrace.errors import ArgumentError
from moetrace.planted.closed_form import read
from moetrace.planted.design import BASE, FAMILIES, GAIN, SLOPE, SWITCH, Design, Role
from moetrace.planted.signal import Prompts, make_prompts
from moetrace.planted.weights import EPS, build_model
from moetrace.results.expert_name import Expert
from moetrace.results.path_ends import PathEnd

SHARE, STEP, READS, REST = 0.3, 0.4, 3.0, 0.2  # of the carrier, the switched expert, the reader, other layers
MOST_CASES, MOST_LAYERS = 10_000, 256


@dataclass(frozen=True, eq=False)
class RouteTruth:
    """What traces of the model must find, in the order of its cases; logits, float64, means over draws.

    Attributes:
        clean, noised: (n,) logit differences (equation 1).
        experts: (n, layers, experts) rescue of each patch vector (equation 6).
        experts_direct: the same, what goes straight to the logits.
        experts_routing: the same, what later routers carry: rescue minus that with their choice fixed.
        layers, layers_direct, layers_routing: (n, layers), of each block's clean output (equation 4).
    """

    clean: np.ndarray
    noised: np.ndarray
    experts: np.ndarray
    experts_direct: np.ndarray
    experts_routing: np.ndarray
    layers: np.ndarray
    layers_direct: np.ndarray
    layers_routing: np.ndarray
    _paths: dict[tuple[PathEnd, PathEnd], np.ndarray] = field(repr=False)

    def path(self, sender: Any, receiver: Any) -> np.ndarray:
        """(n,): effect of a path, by ends as :func:`moetrace.trace_paths` takes them.

        >>> planted.truth.path(planted.carrier, f"L{planted.layer + 1:02d}.router")

        ArgumentError for ends that aren't in the model, or not in this order.
        """
        ends = PathEnd.of(sender), PathEnd.of(receiver)
        _, layers, experts = self.experts.shape
        for end in ends:
            if end.layer >= layers or end.expert >= experts:
                raise ArgumentError(f"{end} isn't in the model of {layers} layers of {experts} experts")
        if ends[0].layer >= ends[1].layer or ends[0].kind == "router":
            raise ArgumentError(f"no path leads from {ends[0]} to {ends[1]}; expected a later receiver")
        found = self._paths.get(ends)
        return np.zeros(len(self.clean)) if found is None else found.copy()


@dataclass(frozen=True, eq=False)
class PlantedRoutes:
    """A model with known paths, cases for it, and the answer.

    Attributes:
        family: as given. cases: a CaseSet. model: a transformers model on the CPU, float32, evaluation mode.
        layer: of the ``carrier``. switched: the expert that the next layer's router takes up when the carrier
        is restored. reader: the expert of the layer after it that reads what the carrier writes.
        truth: a :class:`RouteTruth` under the default noise.
    """

    family: str
    model: Any = field(repr=False)
    cases: CaseSet = field(repr=False)
    layer: int
    carrier: Expert
    switched: Expert
    reader: Expert
    truth: RouteTruth = field(repr=False)
    design: Design = field(repr=False)
    prompts: Prompts = field(repr=False)

    def truth_under(self, noise: NoiseLike) -> RouteTruth:
        """The answer under another noise, which must leave less than 0.6 of the signal."""
        return _truth(self.design, self.prompts, as_subject_noise(noise))


def plant_routes(
    family: str = "qwen3_moe", *, n: int = 12, layers: int = 5, layer: int = 1, seed: int = 0
) -> PlantedRoutes:
    """Make a small MoE model in which one expert acts in three ways, each by a known amount.

    >>> planted = plant_routes()
    >>> router = f"L{planted.layer + 1:02d}.router"
    >>> found = mt.trace_paths(planted.model, planted.cases, [(planted.carrier, router)])
    >>> abs(found.effects[:, 0] - planted.truth.path(planted.carrier, router)).max() < 1e-4
    True

    The carrier in ``layer`` writes 0.3 z to the logit coordinate and z to another, p; z is the fact's signal
    (see :func:`plant`), and c and v are its clean and noised value.

    - Directly it gives 5 * 0.3 * (c - v).
    - The next layer's router takes one expert up where p > 0.6 and another one else. The first writes 0.4 at
      its nominal weight: s(p) = 0.4 e^{5 (p - 1)} / (1 - w + w e^{5 (p - 1)}) above 0.6, with w its nominal
      weight, and 0 below. That path gives 5 * (s(c) - s(v)), all of it by routing.
    - In the layer after it an expert reads p and writes 3 max(p - 0.88, 0): 15 * (max(c - 0.88, 0) -
      max(v - 0.88, 0)), none of it by routing.

    The three sum to the carrier's rescue, and all other paths carry nothing. Shares of 0.2 z are written by
    experts of the other layers. ``layers``: at least ``layer`` + 3. Errors: ArgumentError.
    """
    as_choice(family, "family", tuple(FAMILIES))
    layers, layer = as_count(layers, "layers", 3, MOST_LAYERS), as_count(layer, "layer", 0, MOST_LAYERS)
    n, seed = as_count(n, "n", 1, MOST_CASES), as_seed(seed)
    if layer + 3 > layers:
        raise ArgumentError(f"layer is {layer} of {layers}; expected two layers behind it")
    design = _design(family, layer, layers, seed)
    prompts = make_prompts(n, BASE, seed)
    carrier, switched, reader = (Expert(layer + at, expert) for at, expert in enumerate(design.experts))
    return PlantedRoutes(
        family, build_model(design, prompts), prompts.cases, layer, carrier, switched, reader,
        _truth(design, prompts, SubjectNoise()), design, prompts,
    )  # fmt: skip


def _design(family: str, layer: int, layers: int, seed: int) -> Design:
    """Roles of every layer; ``experts``: the carrier, the switched one and the reader, of three layers."""
    size = FAMILIES[family]
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(size.experts), (layers, 1)), axis=1)
    numbers = order.tolist()
    roles = [
        [Role(e, w, scratch=0.3) for e, w in zip(numbers[index], size.weights, strict=False)]
        for index in range(layers)
    ]
    others = [index for index in range(layers) if not layer <= index <= layer + 2]
    for index in others:
        roles[index][0] = replace(roles[index][0], share=REST / len(others))
    carrier = roles[layer][1] = replace(roles[layer][1], share=SHARE, half=1.0)
    # The lowest weight: what isn't taken up lies below all that are always routed.
    switched = roles[layer + 1][-1] = replace(roles[layer + 1][-1], step=STEP, scratch=0.0, when="pair")
    other = replace(switched, expert=numbers[layer + 1][size.top_k], step=0.0, when="no_pair")
    roles[layer + 1].append(other)
    reader = roles[layer + 2][0] = replace(roles[layer + 2][0], reads=READS)
    named = (carrier.expert, switched.expert, reader.expert)
    return Design("routes", size, layer, named, tuple(tuple(line) for line in roles))


def _switch(weight: float, p: np.ndarray) -> np.ndarray:
    """What the switched expert writes: its step times its softmax weight over its nominal one."""
    strength = np.where(p > SWITCH, np.exp(SLOPE * (p - 1.0)), 0.0)
    other = np.where(p > SWITCH, 0.0, np.exp(SLOPE * (SWITCH - 1.0)))
    found: np.ndarray = STEP * strength / (1.0 - weight + weight * (strength + other))
    return found


def _truth(design: Design, prompts: Prompts, noise: SubjectNoise) -> RouteTruth:
    clean = prompts.signal(EPS)[0]
    parts = [_draw(design, clean, noised) for noised in prompts.signal(EPS, noise)]
    arrays = {name: np.mean([part[0][name] for part in parts], axis=0) for name in parts[0][0]}
    paths = {ends: np.mean([part[1][ends] for part in parts], axis=0) for ends in parts[0][1]}
    return RouteTruth(**arrays, _paths=paths)


def _draw(
    design: Design, clean: np.ndarray, noised: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[tuple[PathEnd, PathEnd], np.ndarray]]:
    """Arrays of a :class:`RouteTruth` and its paths, for one draw."""
    layer, (carrier, switched, reader) = design.layer, design.experts
    weight = design.family.weights[-1]
    shares = sum(role.share for roles in design.roles for role in roles)

    def difference(z: np.ndarray) -> np.ndarray:
        found: np.ndarray = GAIN * (BASE + shares * z + _switch(weight, z) + READS * read(z))
        return found

    drop = GAIN * (clean - noised)
    by_router = GAIN * (_switch(weight, clean) - _switch(weight, noised))
    by_reader = GAIN * READS * (read(clean) - read(noised))
    direct = np.zeros((len(clean), len(design.roles), design.family.experts))
    for index, roles in enumerate(design.roles):
        for role in roles:
            direct[:, index, role.expert] = role.share * drop
    direct[:, layer + 1, switched] = by_router
    direct[:, layer + 2, reader] = by_reader
    routing = np.zeros_like(direct)
    routing[:, layer, carrier] = by_router
    rescue = direct + routing
    rescue[:, layer, carrier] += by_reader
    arrays = {
        "clean": difference(clean), "noised": difference(noised),
        "experts": rescue, "experts_direct": direct, "experts_routing": routing,
        "layers": rescue.sum(axis=2), "layers_direct": direct.sum(axis=2),
        "layers_routing": routing.sum(axis=2),
    }  # fmt: skip
    senders = (PathEnd(layer, "block"), PathEnd(layer, "expert", carrier))
    routed = (PathEnd(layer + 1, "block"), PathEnd(layer + 1, "router"))
    reading = (PathEnd(layer + 2, "block"), PathEnd(layer + 2, "expert", reader))
    paths = {(sender, end): by_router for sender in senders for end in routed}
    paths |= {(sender, end): by_reader for sender in senders for end in reading}
    return arrays, paths
