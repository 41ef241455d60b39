"""A planted model whose map of layers and tokens is known: written at the subject, moved, read at the end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from moetrace.arguments import as_choice, as_count, as_seed
from moetrace.cases import CaseSet
from moetrace.corruptions import NoiseLike, SubjectNoise, as_subject_noise
from moetrace.engines.places import as_positions, is_map, places_of
from moetrace.errors import ArgumentError
from moetrace.planted.design import FAMILIES, GAIN, Design, Role
from moetrace.planted.moved import ROUTES, gain_of, moved, strength_of, written
from moetrace.planted.moved_necessity import PositionNecessity, necessity_of_positions
from moetrace.planted.signal import HEIGHT, PAIR, SUBJECT, Prompts, make_prompts
from moetrace.planted.weights import OPEN, build_model
from moetrace.results.expert_name import Expert

BASE = 0.1  # share that the last token brings along, so that select_cases keeps the longest prompts, too
READS = 0.6  # share of the signal that the first layer behind the move reads; later ones share the rest
BESIDE = -0.05  # cosine of the subject's earlier tokens: the clean run doesn't route them to the writer
UNIT = 3  # of the writer, beside those that every planted expert has
MOST_CASES, MOST_LAYERS = 10_000, 256


@dataclass(frozen=True, eq=False)
class PositionTruth:
    """What traces of the model must find, in the order of its cases; logits, float64, means over draws.

    >>> planted.truth.layers_at("subject_last"), planted.truth.experts_at("last")

    Attributes:
        clean, noised: (n,) logit differences (equation 1).
        layers: (n, L, T) rescue of each block's clean output at each token by itself; NaN behind a prompt's
            end. T: tokens of the longest prompt.
        experts: (n, L, T, E) the same of each patch vector; 0 where the clean run doesn't route to it.
    """

    clean: np.ndarray
    noised: np.ndarray
    layers: np.ndarray
    experts: np.ndarray
    cases: CaseSet = field(repr=False)
    _active: np.ndarray = field(repr=False)  # bool (n, L, T, E), of those that write anything
    _swaps: np.ndarray = field(repr=False)  # as experts, also of those that the clean run doesn't route to

    def layers_at(self, position: Any) -> np.ndarray:
        """(n, L): rescue of each block at one ``position`` of :func:`moetrace.trace_layers`, but "all".

        Of several tokens together ("subject", or a function's) it is the sum of theirs.
        """
        return self._at(self.layers, position)

    def experts_at(self, position: Any) -> np.ndarray:
        """(n, L, E): the same of the patch vectors of experts that are clean-active at one of the tokens."""
        return np.where(self._at(self._active, position) > 0, self._at(self._swaps, position), 0.0)

    def _at(self, values: np.ndarray, position: Any) -> np.ndarray:
        given = as_positions(position)
        if is_map(given):
            raise ArgumentError("position is 'all' or a list; expected one, or .layers and .experts of all")
        (place,) = places_of(given, self.cases)
        rows = zip(values, self.cases, strict=True)
        return np.stack([own[:, list(place.find(case))].sum(axis=1) for own, case in rows])


@dataclass(frozen=True, eq=False)
class PlantedPositions:
    """A model with a known map of layers and tokens, cases for it, and the answer.

    Attributes:
        family: as given. cases: a CaseSet; all pass :func:`moetrace.select_cases`.
        model: a transformers model on the CPU, float32, in evaluation mode.
        writer: the expert that writes at the subject's last token. moves: the layer whose attention brings
        it to the last token. reader: the expert of that layer that reads most of it there.
        truth: a :class:`PositionTruth` under the default noise.
    """

    family: str
    model: Any = field(repr=False)
    cases: CaseSet = field(repr=False)
    writer: Expert
    moves: int
    reader: Expert
    truth: PositionTruth = field(repr=False)
    design: Design = field(repr=False)
    prompts: Prompts = field(repr=False)

    def truth_under(self, noise: NoiseLike) -> PositionTruth:
        """The answer under another noise.

        >>> planted.truth_under(mt.SubjectNoise(scale=1.0)).layers
        """
        return _truth(self.design, self.prompts, self.moves, as_subject_noise(noise))

    @cached_property
    def necessity(self) -> PositionNecessity:
        """The answer of a knock-out, and of noised values in the clean run under the default noise."""
        return necessity_of_positions(self.design, self.prompts, self.moves)

    @property
    def direct_layers(self) -> np.ndarray:
        """float64 (n, L, T): what of ``truth.layers`` goes straight to the logits: all of it at the last
        token, nothing at others."""
        found = self.truth.layers.copy()
        for own, case in zip(found, self.cases, strict=True):
            own[:, : len(case.input_ids) - 1] = 0.0
        return found


def plant_positions(
    family: str = "qwen3_moe", *, n: int = 12, layers: int = 5, layer: int = 1, moves: int = 3, seed: int = 0
) -> PlantedPositions:
    """Make a small MoE model that writes a fact at the subject's last token and moves it to the last token.

    >>> planted = plant_positions()
    >>> found = mt.trace_layers(planted.model, planted.cases, position="subject_last")
    >>> abs(found.effects - planted.truth.layers_at("subject_last")).max() < 1e-4
    True

    One expert of ``layer`` reads the subject coordinate of a token with embedding x (noised: with its draw,
    equation 2) and writes w to another coordinate p. With s and c the subject and constant coordinates of
    x / |x|, r the softmax weight of the writer (its logit: 40 s, and a multiple of c as every expert's) and
    a of 25 clean |x|,

        w = r a s silu(40 s) / 40,  m = (x_p + w) / |x with x_p + w in place of x_p|

    Uniform attention in layer ``moves``, and in no other, gives the last token z = 5.5 / T * sum of m over
    the subject's tokens, T tokens in the prompt; experts of that layer and of later ones read shares of it
    there, which sum to 1: 0.6 the ``reader``, the rest in equal parts. So

        clean, noised = 5 * (0.1 + z)
        Rescue = 27.5 / T * (m~ with the clean w - m~)   in ``layer``, at a token of the subject
        Rescue = share * 5 * (z_clean - z_noised)        from ``moves`` on, at the last token

    (m~: in the noised run), and 0 at every other token and layer: before ``moves`` nothing else writes, and
    behind it nothing reads tokens but the last. Only the last token of the subject has a subject coordinate
    to speak of. What a block rescues at an earlier one takes back what noise made the writer write there; the
    writer by itself does so with the last one ("subject") alone, where the clean run routes to it.

    ``layers``: at least ``moves`` + 1; ``moves``: at least ``layer`` + 1. ``family``, ``n`` and ``seed`` as
    of :func:`plant`. Errors: ArgumentError.
    """
    as_choice(family, "family", tuple(FAMILIES))
    layers, layer = as_count(layers, "layers", 2, MOST_LAYERS), as_count(layer, "layer", 0, MOST_LAYERS)
    moves = as_count(moves, "moves", 1, MOST_LAYERS)
    n, seed = as_count(n, "n", 1, MOST_CASES), as_seed(seed)
    if not layer < moves < layers:
        raise ArgumentError(f"moves is {moves}; expected a layer behind layer {layer}, of {layers} layers")
    design, prompts = _design(family, layer, layers, moves, seed), _prompts(n, seed)
    model = build_model(design, prompts, moves, PAIR)
    _set_writer(model.model.layers, design, prompts, moves)
    writer, reader = Expert(layer, design.experts[0]), Expert(moves, design.experts[1])
    truth = _truth(design, prompts, moves, SubjectNoise())
    return PlantedPositions(family, model, prompts.cases, writer, moves, reader, truth, design, prompts)


def _design(family: str, layer: int, layers: int, moves: int, seed: int) -> Design:
    """Roles at the last token: nothing before the move, a share of the signal from it on."""
    size = FAMILIES[family]
    order = np.random.default_rng(seed).permuted(np.tile(np.arange(size.experts), (layers, 1)), axis=1)
    behind = layers - moves - 1
    roles = []
    for index, numbers in enumerate(order.tolist()):
        own = [Role(e, w) for e, w in zip(numbers, size.weights, strict=False)]
        share = READS if index == moves else (1.0 - READS) / max(1, behind)
        if index >= moves:
            own[0] = replace(own[0], share=share if behind else 1.0)
        roles.append(tuple(own))
    named = (roles[layer][1].expert, roles[moves][0].expert)
    return Design("positions", size, layer, named, tuple(roles))


def _prompts(n: int, seed: int) -> Prompts:
    """As every planted model's, but of the subject's tokens the last alone has the subject coordinate."""
    prompts = make_prompts(n, BASE, seed)
    rows = prompts.embedding.copy()
    for case in prompts.cases:
        start, stop = case.subject
        earlier = list(case.input_ids[start : stop - 1])
        rows[earlier, SUBJECT] = BESIDE * np.linalg.norm(rows[earlier], axis=1)
    return replace(prompts, embedding=rows.astype(np.float32).astype(np.float64))


def _set_writer(layers: Any, design: Design, prompts: Prompts, moves: int) -> None:
    """Beside the roles: the one expert that writes anything before the move."""
    writer, block = design.experts[0], layers[design.layer].mlp
    for layer in layers[:moves]:
        layer.mlp.experts.down_proj.zero_()
    block.gate.weight[writer, SUBJECT] = ROUTES / HEIGHT
    gate, up = block.experts.gate_up_proj[writer].chunk(2)
    gate[UNIT, SUBJECT], up[UNIT, SUBJECT] = OPEN / HEIGHT, 1.0 / HEIGHT
    block.experts.down_proj[writer, PAIR, UNIT] = strength_of(prompts) / OPEN


def _truth(design: Design, prompts: Prompts, moves: int, noise: SubjectNoise) -> PositionTruth:
    cases, strength = prompts.cases, strength_of(prompts)
    longest = max(len(case.input_ids) for case in cases)
    swaps = np.zeros((len(cases), len(design.roles), longest, design.family.experts))
    active = np.zeros(swaps.shape, np.bool_)
    clean, noised = np.zeros((2, len(cases)))
    pairs = zip(cases, prompts.subjects(), prompts.subjects(noise), strict=True)
    for at, (case, x, other) in enumerate(pairs):
        tokens, subject = len(case.input_ids), slice(*case.subject)
        gain = gain_of(tokens)
        added, routed = written(design, x, strength)
        start = moved(other, written(design, other, strength)[0])
        ends = [gain * own.sum(axis=1).mean() for own in (moved(x, added), start)]
        clean[at], noised[at] = (GAIN * BASE + end for end in ends)
        writer = at, design.layer, subject, design.experts[0]
        swaps[writer] = gain * (moved(other, added) - start).mean(axis=0)
        active[writer] = routed[0]
        for index in range(moves, len(design.roles)):
            for role in design.roles[index]:
                swaps[at, index, tokens - 1, role.expert] = role.share * (ends[0] - ends[1])
                active[at, index, tokens - 1, role.expert] = True
        swaps[at, :, tokens:] = np.nan
    experts = np.where(active | np.isnan(swaps), swaps, 0.0)
    return PositionTruth(clean, noised, swaps.sum(axis=-1), experts, cases, active, swaps)
