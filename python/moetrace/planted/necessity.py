"""What a planted model loses without its experts, and what noised values do to its clean run.

The closed form of :mod:`closed_form` for the other direction: sums, products and one threshold of the clean
run's signal. No model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moetrace.errors import ArgumentError
from moetrace.planted.closed_form import Draw, Run, read, run_of
from moetrace.planted.design import BASE, GAIN, SLOPE, SWITCH, Design

Instead = Literal["zero", "mean"]


@dataclass(frozen=True, eq=False)
class Necessity:
    """What a knock-out of a planted model must find, in the order of its cases; logits, float64.

    >>> planted = plant("single")
    >>> found = mt.trace_knockout(planted.model, planted.cases, layers=planted.layer)
    >>> abs(found.effects - planted.necessity.zero[:, planted.layer]).max() < 1e-4
    True

    With n cases, L layers and E experts, at the final token.

    Attributes:
        zero, mean, reroute: (n, L, E) effect (ablated minus clean) of switching each expert off, its mean
            over the cases that route to it; 0 where the clean run doesn't route to it.
        noised_layers: (n, L) effect of each block's noised output in the clean run, mean over draws.
        noised_experts: (n, L, E) the same of each clean-active expert's contribution.
        active: bool (n, L, E) whom the clean run routes to.
    """

    zero: np.ndarray
    mean: np.ndarray
    reroute: np.ndarray
    noised_layers: np.ndarray
    noised_experts: np.ndarray
    active: np.ndarray
    parts: Parts

    def together(self, experts: Iterable[tuple[int, int]], instead: Instead = "zero") -> np.ndarray:
        """(n,): effect of switching several experts (layer, expert) off together.

        >>> planted.necessity.together([(planted.layer, e) for e in planted.experts])
        """
        _, layers, width = self.active.shape
        off = np.zeros((layers, width), np.bool_)
        for layer, expert in experts:
            if not (0 <= layer < layers and 0 <= expert < width):
                raise ArgumentError(f"({layer}, {expert}) is none of {width} experts of {layers} layers")
            off[layer, expert] = True
        found: np.ndarray = self.parts.difference(off, instead) - self.parts.difference(off & False, instead)
        return found


@dataclass(frozen=True, eq=False)
class Parts:
    """What every expert writes at the final token of the clean run: to the logit coordinate by itself, to the
    pair's, and its gain on what the pair's readers read. (L, n, E), the last (L, E)."""

    design: Design
    logit: np.ndarray
    pair: np.ndarray
    reads: np.ndarray
    active: np.ndarray

    def difference(self, off: np.ndarray, instead: Instead = "zero") -> np.ndarray:
        """(n,): equation 1 with experts off, bool (L, E)."""
        gone = off[:, None] & self.active
        pair = np.where(gone, _mean(self.pair, self.active) if instead == "mean" else 0.0, self.pair)
        reading = read(pair.sum(axis=(0, 2)))[None, :, None] * self.reads[:, None]
        writes = np.where(gone, 0.0, self.logit + reading)
        if instead == "mean":  # of all that an expert writes in its reference cases
            clean = read(self.pair.sum(axis=(0, 2)))[None, :, None] * self.reads[:, None]
            writes = np.where(gone, _mean(self.logit + clean, self.active), writes)
        found: np.ndarray = GAIN * (BASE + writes.sum(axis=(0, 2)))
        return found


def _mean(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    """(L, 1, E): mean over the cases that route to an expert."""
    count = np.maximum(1, active.sum(axis=1, keepdims=True))
    found: np.ndarray = np.where(active, values, 0.0).sum(axis=1, keepdims=True) / count
    return found


def necessity_of(design: Design, relation: np.ndarray, clean: np.ndarray, noised: np.ndarray) -> Necessity:
    """From the signals at the final token, ``clean`` (1, n) and ``noised`` (draws, n)."""
    z = clean[0]
    parts = parts_of(design, z, relation)
    layers, experts = parts.reads.shape
    none = np.zeros((layers, experts), np.bool_)
    start = parts.difference(none)
    shape = (len(z), layers, experts)
    zero, mean, reroute = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    active = parts.active.transpose(1, 0, 2)
    for layer, expert in np.argwhere(active.any(axis=0)).tolist():
        off = none.copy()
        off[layer, expert] = True
        own = active[:, layer, expert]
        zero[:, layer, expert] = parts.difference(off) - start
        mean[:, layer, expert] = parts.difference(off, "mean") - start
        other = parts_of(design, z, relation, (layer, expert)).difference(none) - start
        reroute[:, layer, expert] = np.where(own, other, 0.0)
    draws = [_noised(design, run_of(design, z, relation), run_of(design, one, relation)) for one in noised]
    of_layers, of_experts = (np.mean(values, axis=0) for values in zip(*draws, strict=True))
    return Necessity(zero, mean, reroute, of_layers, of_experts, active, parts)


def parts_of(
    design: Design, z: np.ndarray, relation: np.ndarray, masked: tuple[int, int] | None = None
) -> Parts:
    """Of the run with signals ``z`` (n,), one expert's router logit at minus infinity."""
    layers, experts = len(design.roles), design.family.experts
    logit, pair, weight = np.zeros((3, layers, len(z), experts))
    reads = np.zeros((layers, experts))
    for layer, roles in enumerate(design.roles):
        banned = masked[1] if masked is not None and masked[0] == layer else None
        weight[layer] = routed(design, layer, z, relation, banned)
        for role in roles:
            applied = weight[layer, :, role.expert] / role.weight
            logit[layer, :, role.expert] = applied * (role.share * z + role.step)
            pair[layer, :, role.expert] = applied * role.half * z
            reads[layer, role.expert] = role.reads
        if banned is not None and design.read_out(layer):
            # What a reader writes grows with its weight, as all it writes does.
            rest = 1.0 - sum(role.weight for role in roles if role.expert == banned)
            reads[layer] = np.where(np.arange(experts) == banned, 0.0, reads[layer] / rest)
    return Parts(design, logit, pair, reads, weight > 0)


def routed(
    design: Design, layer: int, z: np.ndarray, relation: np.ndarray, banned: int | None = None
) -> np.ndarray:
    """(n, E): routing weights, the softmax over the top k of the logits of the experts that have a role."""
    logits = np.full((len(z), design.family.experts), -np.inf)
    when = {
        "always": np.zeros_like(z),
        "signal": SLOPE * (z - 1.0),
        "no_signal": np.full_like(z, SLOPE * (SWITCH - 1.0)),
        "0": np.where(relation == 0, 0.0, -np.inf),
        "1": np.where(relation == 1, 0.0, -np.inf),
    }
    for role in design.roles[layer]:
        if role.expert != banned:
            logits[:, role.expert] = np.log(role.weight) + when[role.when]
    least = np.sort(logits, axis=1)[:, -design.family.top_k][:, None]
    weight = np.exp(np.where(logits >= least, logits, -np.inf))
    found: np.ndarray = weight / weight.sum(axis=1, keepdims=True)
    return found


def _noised(design: Design, clean: Run, noised: Run) -> tuple[np.ndarray, np.ndarray]:
    """One draw's :attr:`Necessity.noised_layers` and ``noised_experts``."""
    there = Draw(design, clean, noised)
    back = Draw(design, noised, clean)  # the same steps in the other direction, from the clean run
    layers = -there.layers()
    layers[:, design.layer] = back.linear.sum(axis=1) + back.beyond(back.step.sum(axis=1))
    experts = -there.experts(np.zeros_like(there.linear))
    singles = back.linear + np.stack([back.beyond(step) for step in back.step.T], axis=1)
    experts[:, design.layer] = np.where(there.active, singles, 0.0)
    return layers, experts
