"""What a trace of a planted model must find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moetrace.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Truth:
    """What a trace of a planted model must find, in the order of its cases; logits, float64.

    >>> planted = plant("single")
    >>> experts = mt.trace_experts(planted.model, planted.cases, layer=planted.layer)
    >>> abs(experts.effects - planted.truth.experts[:, planted.layer]).max() < 1e-4
    True

    With n cases, L layers and E experts; "the layer" is the planted one. Averaged over the noise's draws.

    Attributes:
        clean, noised: (n,) logit differences (equation 1).
        layers: (n, L) rescue of each block's clean output (equation 4).
        experts: (n, L, E) rescue of each patch vector (equation 6); 0 where not clean-active.
        clean_active, noised_active: bool (n, E) routing of the layer.
        clean_weight, noised_weight: (n, E) routing weights as applied.
        delta_norm: (n, E) norms of the patch vectors of all experts that either run routes to.
        linear: (n, E) what an expert's patch vector rescues whatever is patched beside it.
        together: (n, 3) what the pair rescues beyond ``linear``: its first expert alone, its second, both;
            zero in all kinds but "pair".
        shapley: (n, E) Shapley values of the clean-routed experts, which are their Banzhaf values, too.
        interactions: (n, E, E) their pairwise interaction indices, Shapley's and Banzhaf's alike.
        specificity: (n,) of the first carrier against all other clean-active experts (equation 13; equation 7
            with as many controls as there are others).
        control: int (n,) clean-active expert of closest routing weight to the first carrier's (equation 8).
        equal_norm: (n, 2) rescue of the first carrier and the control at equal norm (equation 10).
        carriers: the experts that carry the fact.
    """

    clean: np.ndarray
    noised: np.ndarray
    layers: np.ndarray
    experts: np.ndarray
    clean_active: np.ndarray
    noised_active: np.ndarray
    clean_weight: np.ndarray
    noised_weight: np.ndarray
    delta_norm: np.ndarray
    linear: np.ndarray
    together: np.ndarray
    shapley: np.ndarray
    interactions: np.ndarray
    specificity: np.ndarray
    control: np.ndarray
    equal_norm: np.ndarray
    carriers: tuple[int, ...]

    def rescue(self, experts: Iterable[int]) -> np.ndarray:
        """(n,): rescue of these experts' patch vectors together (equations 14 and 15).

        >>> planted.truth.rescue(planted.experts)

        ArgumentError for an expert that the layer doesn't have.
        """
        chosen = sorted(set(experts))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < self.linear.shape[1]:
            raise ArgumentError(f"experts are {chosen}; expected 0 to {self.linear.shape[1] - 1}")
        first, second = (expert in chosen for expert in (self.carriers * 2)[:2])
        found: np.ndarray = self.linear[:, chosen].sum(axis=1)
        if first or second:
            found = found + self.together[:, 2 if first and second else int(second)]
        return found
