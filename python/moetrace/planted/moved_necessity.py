"""What a planted map of tokens loses without its experts, and what noised values do to its clean run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moetrace.cases import CaseSet
from moetrace.corruptions import SubjectNoise
from moetrace.engines.places import ALL, all_together, as_positions, places_of
from moetrace.errors import ArgumentError
from moetrace.planted.design import Design
from moetrace.planted.moved import gain_of, moved, strength_of, written
from moetrace.planted.signal import Prompts


@dataclass(frozen=True, eq=False)
class PositionNecessity:
    """What knock-outs of the model must find, and traces with ``mode="noise"``; logits, float64.

    >>> planted = plant_positions()
    >>> found = mt.trace_knockout(planted.model, planted.cases, position="all")
    >>> abs(found.effects.reshape(12, 5, -1) - planted.necessity.zero_at("all")).max() < 1e-4
    True

    With the symbols of :func:`plant_positions`, m and z of the clean run, the effects are

        27.5 / T * (m without w - m)         the writer off, at a token of the subject
        27.5 / T * (m with the noised w - m) its noised output in the clean run, or its block's
        - share * 5 * z                      an expert that reads off, at the last token
        - share * 5 * (z - z_noised)         its noised output, or its block's

    and 0 everywhere else. What several tokens lose together is the sum of theirs.

    Attributes:
        zero: (n, L, T, E) effect of each expert switched off at each token; NaN behind a prompt's end.
        noised_layers: (n, L, T) of each block's noised output, mean over draws.
        noised_experts: (n, L, T, E) of each expert's; 0 where the clean run doesn't route to it.
    """

    zero: np.ndarray
    noised_layers: np.ndarray
    noised_experts: np.ndarray
    cases: CaseSet = field(repr=False)
    _active: np.ndarray = field(repr=False)
    _swaps: np.ndarray = field(repr=False)

    def zero_at(self, position: Any) -> np.ndarray:
        """(n, L, E) at one ``position`` of :func:`moetrace.trace_knockout`; of several tokens together the
        sum, "all" for every token."""
        return self._at(self.zero, position)

    def noised_layers_at(self, position: Any) -> np.ndarray:
        """(n, L) at one ``position`` of a trace with ``mode="noise"``, but "all"."""
        return self._at(self.noised_layers, position, together=False)

    def noised_experts_at(self, position: Any) -> np.ndarray:
        """(n, L, E) the same, of experts that are clean-active at one of the tokens."""
        active = self._at(self._active, position, together=False) > 0
        return np.where(active, self._at(self._swaps, position, together=False), 0.0)

    def _at(self, values: np.ndarray, position: Any, together: bool = True) -> np.ndarray:
        given = as_positions(position)
        if isinstance(given, list) or (given == ALL and not together):
            raise ArgumentError("position is 'all' or a list; expected one, or the arrays of all tokens")
        place = all_together(self.cases) if given == ALL else places_of(given, self.cases)[0]
        rows = zip(values, self.cases, strict=True)
        return np.stack([own[:, list(place.find(case))].sum(axis=1) for own, case in rows])


def necessity_of_positions(design: Design, prompts: Prompts, moves: int) -> PositionNecessity:
    """The closed form, under the default noise."""
    cases, strength = prompts.cases, strength_of(prompts)
    longest = max(len(case.input_ids) for case in cases)
    zero = np.zeros((len(cases), len(design.roles), longest, design.family.experts))
    swaps, active = zero.copy(), np.zeros(zero.shape, np.bool_)
    triples = zip(cases, prompts.subjects(), prompts.subjects(SubjectNoise()), strict=True)
    for at, (case, x, other) in enumerate(triples):
        tokens, gain = len(case.input_ids), gain_of(len(case.input_ids))
        added, routed = written(design, x, strength)
        noised, _ = written(design, other, strength)
        start = moved(x, added)
        writer = at, design.layer, slice(*case.subject), design.experts[0]
        zero[writer] = gain * (moved(x, 0.0 * added) - start)[0]
        swaps[writer] = gain * (moved(x, noised) - start).mean(axis=0)
        active[writer] = routed[0]
        end = gain * start.sum(axis=1).mean()
        corrupted = gain * moved(other, noised).sum(axis=1).mean()
        for index in range(moves, len(design.roles)):
            for role in design.roles[index]:
                reader = at, index, tokens - 1, role.expert
                zero[reader], swaps[reader] = -role.share * end, -role.share * (end - corrupted)
                active[reader] = True
        for values in (zero, swaps):
            values[at, :, tokens:] = np.nan
    experts = np.where(active | np.isnan(swaps), swaps, 0.0)
    return PositionNecessity(zero, swaps.sum(axis=-1), experts, cases, active, swaps)
