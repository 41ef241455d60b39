"""What the patched runs of a case write, for the reference engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.ablation import Ablated, Token, clean_of, delta, patch_vectors, union_of
from moetrace.engines.job import Job, Origin
from moetrace.models.anatomy import expert_count

if TYPE_CHECKING:
    from moetrace.cases import Case


@dataclass(frozen=True)
class Watched:
    """One run of one sequence: of each patched layer what its block gives (tokens, width), and what it routes
    patched tokens to; its metrics.
    """

    blocks: dict[int, torch.Tensor]
    experts: dict[int, dict[int, Ablated]]
    values: np.ndarray


@dataclass(frozen=True)
class Written:
    """A patched run: what its block gives at some positions of one layer instead of what it would."""

    layer: int
    values: dict[int, torch.Tensor]
    place: int
    origin: Origin
    expert: int | None = None  # of a sweep


def tokens_of(clean: Watched, noised: Watched, layer: int, positions: Sequence[int]) -> list[Token]:
    """What the runs route tokens to in a layer."""
    return [Token(clean.experts[layer][at], noised.experts[layer][at]) for at in positions]


def patched_runs(job: Job, case: Case, clean: Watched, noised: Watched) -> list[Written]:
    """All patched runs of one draw: the patches', then the sweeps' that are to be made."""
    places = job.tokens_of(case)
    found = []
    for patch in job.patches:
        tokens = places[patch.place]
        origin, other = (clean, noised) if patch.origin is Origin.NOISE else (noised, clean)
        source = other if patch.kind is _core.PatchKind.BLOCK else origin
        values = {at: source.blocks[patch.layer][at] for at in tokens}
        if patch.kind is _core.PatchKind.EXPERTS and tokens:
            sign = -1.0 if patch.origin is Origin.NOISE else 1.0
            most, experts = sizes(job, patch.layer, patch.place)
            vectors = patch_vectors(patch, tokens_of(clean, noised, patch.layer, tokens), most, experts)
            for at, vector in zip(tokens, vectors, strict=True):
                values[at] = values[at] + sign * vector
        found.append(Written(patch.layer, values, patch.place, patch.origin))
    for sweep in job.sweeps:
        tokens = places[sweep.place]
        own = tokens_of(clean, noised, sweep.layer, tokens)
        origin = clean if sweep.origin is Origin.NOISE else noised
        sign = -1.0 if sweep.origin is Origin.NOISE else 1.0
        for expert in union_of(own) if sweep.of_union else clean_of(own):
            values = {
                at: origin.blocks[sweep.layer][at] + sign * delta(expert, token.clean, token.noised)
                for at, token in zip(tokens, own, strict=True)
            }
            found.append(Written(sweep.layer, values, sweep.place, sweep.origin, expert))
    return found


def sizes(job: Job, layer: int, place: int) -> tuple[int, int]:
    """Tokens of a place in any case, at most, and experts of a layer."""
    return job.places[place].most, expert_count(job.anatomy, layer)
