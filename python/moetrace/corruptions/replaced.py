"""Corruptions that put other embeddings in the place of the subject's: the mean, zero, a user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from moetrace.arguments import shown
from moetrace.errors import CorruptionError
from moetrace.functions import call_for_case, function_digest, function_name

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case
    from moetrace.corruptions.embedding import Embedding


class Replacement:
    """What the corruptions of this file share: one draw, for any case."""

    replaces: ClassVar[bool] = True
    draws: ClassVar[int] = 1

    def measured(self, embedding: Embedding) -> Self:
        """The same: nothing needs to be known beforehand."""
        return self

    def check(self, cases: Sequence[Case]) -> None:
        """Every case can be corrupted."""

    def first_draw(self) -> Self:
        """The same: there is one draw."""
        return self


@dataclass(frozen=True)
class MeanEmbedding(Replacement):
    """Every subject token's embedding becomes the mean over the vocabulary.

    >>> mt.trace_layers(model, cases, corruption=mt.MeanEmbedding())

    The mean is of what the embedding module puts out for all of its tokens, float32 (width,). It has no seed
    and one draw: the corrupted run says that there is a subject, and not which.
    """

    def measured(self, embedding: Embedding) -> MeanEmbedding:
        """Take the mean over the vocabulary."""
        embedding.moments  # noqa: B018
        return self

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (1, subject tokens, width)."""
        tokens = case.subject[1] - case.subject[0]
        return embedding.moments.mean.expand(1, tokens, -1).clone()

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Its name."""
        return {"corruption": {"name": "mean_embedding", "draws": 1}}


@dataclass(frozen=True)
class ZeroEmbedding(Replacement):
    """Every subject token's embedding becomes zero.

    >>> mt.trace_layers(model, cases, corruption=mt.ZeroEmbedding())

    It has no seed and one draw. Zero is a vector that no token has: :class:`MeanEmbedding` stays nearer to
    what the model knows.
    """

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (1, subject tokens, width)."""
        import torch

        return torch.zeros(1, case.subject[1] - case.subject[0], embedding.width)

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Its name."""
        return {"corruption": {"name": "zero_embedding", "draws": 1}}


@dataclass(frozen=True)
class CorruptionFunction(Replacement):
    """A user's function as a corruption.

    >>> mt.trace_layers(model, cases, corruption=lambda case, embeddings: embeddings.flip(0))

    ``function``: called with the case and the embeddings of its subject, float32 (tokens, width) on the CPU;
    what it returns, of the same shape (a tensor or an array), takes their place. It should depend on its
    arguments alone, since it may be called more than once for a case.
    """

    function: Callable[[Case, torch.Tensor], Any]

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (1, subject tokens, width). CorruptionError where the function gives something else."""
        import torch

        start, stop = case.subject
        given = embedding.rows(case.input_ids[start:stop])
        expected = f"a tensor or an array of shape {tuple(given.shape)} of finite numbers"
        name = f"the corruption function {function_name(self.function)!r}"
        wanted = "a function of (case, embeddings (tokens, width)) that gives embeddings"
        arguments = (case, given.clone())
        found = call_for_case(self.function, arguments, case.case_id, CorruptionError, name, wanted)
        try:
            own = torch.as_tensor(found).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise CorruptionError(
                f"{name} returned {shown(found)} ({type(found).__name__}) for case {case.case_id}; expected "
                f"{expected}"
            ) from None
        if own.shape != given.shape or not bool(torch.isfinite(own).all()):
            what = f"shape {tuple(own.shape)}" if own.shape != given.shape else "NaN or infinite values"
            raise CorruptionError(f"{name} returned {what} for case {case.case_id}; expected {expected}")
        return own[None]

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Its name and a digest of its code."""
        own = {"name": function_name(self.function), "code": function_digest(self.function), "draws": 1}
        return {"corruption": own}
