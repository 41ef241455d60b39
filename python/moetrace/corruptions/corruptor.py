"""What makes the corrupted runs of a case: for any model, and in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

from moetrace.cases.forced import asked_of
from moetrace.corruptions.embedding import Embedding

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case


class Corruption(Protocol):
    """What a user names: values for the embeddings of a case's subject, in any model."""

    @property
    def draws(self) -> int:
        """Corrupted runs of a case."""

    @property
    def replaces(self) -> bool:
        """Whether the values take the place of the subject's embeddings; else they are added."""

    def measured(self, embedding: Embedding) -> Self:
        """The same, with what it needs to know of a model: called once for a job, before any pass."""

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (draws, subject tokens, width)."""

    def check(self, cases: Sequence[Case]) -> None:
        """Raise CaseError or ArgumentError where it can't be applied to one of the cases; called when it is
        measured."""

    def first_draw(self) -> Self:
        """The same with its first corrupted run alone."""

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """What tells it from others, as JSON values; with an embedding also what was measured there."""


@dataclass(frozen=True)
class Corruptor:
    """A corruption in one model, as engines take it."""

    corruption: Corruption
    embedding: Embedding

    @property
    def draws(self) -> int:
        """Corrupted runs of a case."""
        return self.corruption.draws

    @property
    def replaces(self) -> bool:
        """Whether the values take the place of the subject's embeddings; else they are added."""
        return self.corruption.replaces

    def values(self, case: Case) -> torch.Tensor:
        """float32 (draws, subject tokens, width)."""
        return self.corruption.values(asked_of(case), self.embedding)

    def first_draw(self) -> Corruptor:
        """The same with its first corrupted run alone."""
        return replace(self, corruption=self.corruption.first_draw())
