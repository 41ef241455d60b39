"""The planted truth from the signals of the two runs: sums, products and one threshold. No model is run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from moetrace.planted.design import BASE, GAIN, SLOPE, SWITCH, THRESHOLD, Design
from moetrace.planted.truth import Truth


@dataclass(frozen=True)
class Run:
    """The planted layer in one run: the signal (n,), and (n, experts) routing weights and writes.

    ``logit``, ``pair`` and ``scratch`` are what each expert adds to these coordinates (equation 5).
    """

    signal: np.ndarray
    weight: np.ndarray
    logit: np.ndarray
    pair: np.ndarray
    scratch: np.ndarray


def truth_of(design: Design, relation: np.ndarray, clean: np.ndarray, noised: np.ndarray) -> Truth:
    """From the signals at the final token, ``clean`` (1, n) and ``noised`` (draws, n); means over draws."""
    first = run_of(design, clean[0], relation)
    parts = [Draw(design, first, run_of(design, signal, relation)).truth() for signal in noised]
    merged: dict[str, Any] = {}
    for field in fields(Truth):
        values = [getattr(part, field.name) for part in parts]
        if field.name in ("carriers", "control"):  # of the clean run
            merged[field.name] = values[0]
        else:
            combine = np.any if values[0].dtype == bool else np.mean
            merged[field.name] = combine(values, axis=0)
    return Truth(**merged)


def run_of(design: Design, z: np.ndarray, relation: np.ndarray) -> Run:
    """Routing and writes of the planted layer at the signals ``z`` (n,)."""
    weight, logit, pair, scratch = np.zeros((4, len(z), design.family.experts))
    routed = {
        "always": np.ones_like(z),
        "signal": np.where(z > SWITCH, np.exp(SLOPE * (z - 1.0)), 0.0),
        "no_signal": np.where(z > SWITCH, 0.0, np.exp(SLOPE * (SWITCH - 1.0))),
        "0": (relation == 0).astype(float),
        "1": (relation == 1).astype(float),
    }
    roles = design.roles[design.layer]
    for role in roles:
        weight[:, role.expert] = role.weight * routed[role.when]
    weight /= weight.sum(axis=1, keepdims=True)
    for role in roles:
        applied = weight[:, role.expert] / role.weight
        logit[:, role.expert] = applied * (role.share * z + role.step)
        pair[:, role.expert] = applied * role.half * z
        scratch[:, role.expert] = applied * role.scratch * z
    return Run(z, weight, logit, pair, scratch)


def read(pair: np.ndarray) -> np.ndarray:
    """What the layers behind the planted one make of the pair coordinate, per unit of their gain."""
    found: np.ndarray = np.maximum(pair - THRESHOLD, 0.0)
    return found


class Draw:
    """A clean and a noised run. Logits; n cases, experts of the planted layer unless said otherwise."""

    def __init__(self, design: Design, clean: Run, noised: Run) -> None:
        self.design, self.clean, self.noised = design, clean, noised
        self.active = clean.weight > 0
        self.linear = GAIN * (clean.logit - noised.logit)
        self.step = clean.pair - noised.pair
        self.norm = np.sqrt((self.linear / GAIN) ** 2 + self.step**2 + (clean.scratch - noised.scratch) ** 2)
        self.read_gain = GAIN * sum(design.read_out(layer) for layer in range(len(design.roles)))

    def truth(self) -> Truth:
        """All of it, for this draw."""
        together = self.together()
        singles = self.singles(together)
        shapley, interactions = self.values(together)
        control = self.control()
        return Truth(
            clean=self.difference(self.clean),
            noised=self.difference(self.noised),
            layers=self.layers(),
            experts=self.experts(singles),
            clean_active=self.active,
            noised_active=self.noised.weight > 0,
            clean_weight=self.clean.weight,
            noised_weight=self.noised.weight,
            delta_norm=self.norm,
            linear=self.linear,
            together=together,
            shapley=shapley,
            interactions=interactions,
            specificity=self.specificity(singles),
            control=control,
            equal_norm=self.equal_norm(control),
            carriers=self.design.experts,
        )

    def elsewhere(self, layer: int) -> float:
        """Share that another layer carries."""
        return sum(role.share for role in self.design.roles[layer])

    def difference(self, run: Run) -> np.ndarray:
        """Equation 1: GAIN times what stands on the logit coordinate, and what is read off the pair's."""
        layers = range(len(self.design.roles))
        others = sum(self.elsewhere(layer) for layer in layers if layer != self.design.layer)
        found: np.ndarray = GAIN * (BASE + others * run.signal + run.logit.sum(axis=1))
        return found + self.read_gain * read(run.pair.sum(axis=1))

    def beyond(self, change: np.ndarray) -> np.ndarray:
        """What the readers add when the noised run's pair coordinate changes by so much."""
        before = self.noised.pair.sum(axis=1)
        found: np.ndarray = self.read_gain * (read(before + change) - read(before))
        return found

    def layers(self) -> np.ndarray:
        """(n, layers): equation 4. A later layer restores its own reading of the pair, not the others'."""
        drop = GAIN * (self.clean.signal - self.noised.signal)
        readings = read(self.clean.pair.sum(axis=1)) - read(self.noised.pair.sum(axis=1))
        found = []
        for layer in range(len(self.design.roles)):
            if layer == self.design.layer:
                found.append(self.linear.sum(axis=1) + self.beyond(self.step.sum(axis=1)))
            else:
                gain = GAIN * self.design.read_out(layer)
                found.append(self.elsewhere(layer) * drop + gain * readings)
        return np.stack(found, axis=1)

    def together(self) -> np.ndarray:
        """(n, 3): rescue beyond the linear part by the pair's first expert, its second, and both."""
        if self.design.kind != "pair":
            return np.zeros((len(self.linear), 3))
        first, second = (self.step[:, expert] for expert in self.design.experts)
        return np.stack([self.beyond(first), self.beyond(second), self.beyond(first + second)], axis=1)

    def singles(self, together: np.ndarray) -> np.ndarray:
        """(n, E): rescue of each patch vector alone; 0 where not clean-active."""
        found = np.where(self.active, self.linear, 0.0)
        if self.design.kind == "pair":
            found[:, self.design.experts] += together[:, :2]
        return found

    def experts(self, singles: np.ndarray) -> np.ndarray:
        """(n, layers, E): the singles, and what other layers' experts carry."""
        found = np.zeros((len(singles), len(self.design.roles), singles.shape[1]))
        drop = GAIN * (self.clean.signal - self.noised.signal)
        readings = read(self.clean.pair.sum(axis=1)) - read(self.noised.pair.sum(axis=1))
        for layer, roles in enumerate(self.design.roles):
            for role in roles:
                found[:, layer, role.expert] = role.share * drop + GAIN * role.reads * readings
        found[:, self.design.layer] = singles
        return found

    def values(self, together: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shapley values (n, E) and interactions (n, E, E).

        Linear parts are their own Shapley values. Of two players a and b that act on one another alone, a's
        is (v(a) + v(ab) - v(b)) / 2 and their interaction v(ab) - v(a) - v(b), as Banzhaf's are.
        """
        shapley = np.where(self.active, self.linear, 0.0)
        interactions = np.zeros((*shapley.shape, shapley.shape[1]))
        if self.design.kind == "pair":
            a, b = self.design.experts
            one, two, both = together.T
            shapley[:, a] += (one + both - two) / 2
            shapley[:, b] += (two + both - one) / 2
            interactions[:, a, b] = interactions[:, b, a] = both - one - two
        return shapley, interactions

    def specificity(self, singles: np.ndarray) -> np.ndarray:
        """(n,): equation 13 for the first carrier."""
        star = self.design.experts[0]
        others = self.active.copy()
        others[:, star] = False
        found: np.ndarray = singles[:, star] - (singles * others).sum(axis=1) / others.sum(axis=1)
        return found

    def control(self) -> np.ndarray:
        """(n,): equation 8; of equally close experts the lowest."""
        star = self.design.experts[0]
        distance = np.abs(self.clean.weight - self.clean.weight[:, [star]])
        distance = np.where(self.active, distance, np.inf)
        distance[:, star] = np.inf
        found: np.ndarray = distance.round(9).argmin(axis=1)
        return found

    def equal_norm(self, control: np.ndarray) -> np.ndarray:
        """(n, 2): equation 10, of the first carrier and its control."""
        every = np.arange(len(control))
        pair = np.stack([np.full_like(control, self.design.experts[0]), control], axis=1)
        norms = self.norm[every[:, None], pair]
        found = []
        for expert, factor in zip(pair.T, (norms.min(axis=1, keepdims=True) / norms).T, strict=True):
            found.append(factor * self.linear[every, expert] + self.beyond(factor * self.step[every, expert]))
        return np.stack(found, axis=1)
