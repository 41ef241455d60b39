"""What every engine is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from moetrace.engines.patches import Patch
from moetrace.engines.routing import LayerRouting
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import Readout
from moetrace.noise import Noise, SubjectNoise, embedding_std

if TYPE_CHECKING:
    from moetrace.cases import Case

Position = str | int


@dataclass(frozen=True)
class Job:
    """One trace, but for its cases: what to patch, where, and with which noise.

    ``position``: "last", "subject_last", or a token index (negative from the end).
    """

    anatomy: Anatomy
    patches: tuple[Patch, ...]
    noise: Noise
    noise_std: float
    readout: Readout
    position: Position = "last"

    def patch_position(self, case: Case) -> int:
        """Index of the patched token of a case. ArgumentError where the prompt has no such token."""
        length = len(case.input_ids)
        if self.position == "last":
            return length - 1
        if self.position == "subject_last":
            return case.subject[1] - 1
        if isinstance(self.position, bool) or not isinstance(self.position, int):
            raise ArgumentError(
                f"position is {self.position!r}; expected 'last', 'subject_last' or a token index"
            )
        index = self.position + length if self.position < 0 else self.position
        if not 0 <= index < length:
            raise ArgumentError(
                f"position {self.position} is outside the prompt of case {case.case_id}, which has "
                f"{length} tokens"
            )
        return index

    def noise_vectors(self, case: Case) -> torch.Tensor:
        """float32 (draws, subject tokens, width): what is added to the embeddings (equation 2)."""
        return self.noise.vectors(case, self.anatomy.hidden_size, self.noise_std)


def make_job(
    anatomy: Anatomy, patches: Sequence[Patch], noise: Noise | None, position: Position = "last"
) -> Job:
    """A job with the noise scale of the model. Call it with the model in eval mode."""
    noise = noise or SubjectNoise()
    device = embedding_device(anatomy)
    std = embedding_std(anatomy.embedding, anatomy.vocab_size, device)
    return Job(anatomy, tuple(patches), noise, std, Readout(anatomy), position)


def embedding_device(anatomy: Anatomy) -> torch.device:
    """Where input ids go."""
    weight = getattr(anatomy.embedding, "weight", None)
    if isinstance(weight, torch.Tensor) and not weight.is_meta:
        return weight.device
    return torch.device(getattr(anatomy.model, "device", "cpu"))


@dataclass(frozen=True)
class Outcome:
    """What a batch gave, in the order of its cases. Logit differences (true minus foil, equation 1), float64.

    ``clean`` (cases,), ``noised`` (cases, draws), ``patched`` (cases, patches, draws); ``routing``: of each
    layer with expert patches.
    """

    clean: np.ndarray
    noised: np.ndarray
    patched: np.ndarray
    routing: Mapping[int, LayerRouting] = field(default_factory=dict)

    def select(self, index: np.ndarray) -> Outcome:
        """Some of the cases."""
        routing = {layer: found.select(index) for layer, found in self.routing.items()}
        return Outcome(self.clean[index], self.noised[index], self.patched[index], routing)

    def case(self, index: int) -> Outcome:
        """One case, as a batch of its own."""
        return self.select(np.array([index]))

    def finite(self) -> np.ndarray:
        """bool (cases,): whether every logit difference of a case is finite."""
        good = np.isfinite(self.clean) & np.isfinite(self.noised).all(axis=1)
        found: np.ndarray = good & np.isfinite(self.patched).all(axis=(1, 2))
        return found

    @staticmethod
    def stack(parts: Sequence[Outcome]) -> Outcome:
        """Batches one after another."""
        return Outcome(
            np.concatenate([part.clean for part in parts]),
            np.concatenate([part.noised for part in parts]),
            np.concatenate([part.patched for part in parts]),
            {layer: LayerRouting.stack([p.routing[layer] for p in parts]) for layer in parts[0].routing},
        )

    @staticmethod
    def join_patches(parts: Sequence[Outcome]) -> Outcome:
        """Passes over the same cases with other patches, in order; what they share is the first one's."""
        first = parts[0]
        routing = {layer: found for part in reversed(parts) for layer, found in part.routing.items()}
        patched = np.concatenate([part.patched for part in parts], axis=1)
        return Outcome(first.clean, first.noised, patched, dict(sorted(routing.items())))


class Engine(Protocol):
    """Cuts cases into batches and runs one of them."""

    name: str

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """Indices of the cases of each batch, within the engine's budget."""

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace one batch. The model must be prepared (eval mode, no gradients)."""
