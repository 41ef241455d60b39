"""Uniform noise: the same interventions with a bounded draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from moetrace.arguments import as_count, as_integer, as_number
from moetrace.corruptions.noise import MOST_DRAWS, check_seeds

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case
    from moetrace.corruptions.embedding import Embedding


@dataclass(frozen=True)
class UniformNoise:
    """Noise on a case's subject tokens that is uniform between -scale and +scale.

    >>> mt.trace_layers(model, cases, corruption=mt.UniformNoise(scale=3.0, seed=0, draws=1))

    ``scale``: half the interval's width, in units of the standard deviation of the embedding matrix (as in
    the uniform noise of Meng et al. 2022); the noise's own standard deviation is ``scale / sqrt(3)`` of them.
    ``seed`` and ``draws``: as of :class:`SubjectNoise`; a case's draw depends on ``seed + case_id`` alone.
    """

    replaces: ClassVar[bool] = False
    scale: float = 3.0
    seed: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_number(self.scale, "noise scale", 0))
        object.__setattr__(self, "seed", as_integer(self.seed, "noise seed"))
        object.__setattr__(self, "draws", as_count(self.draws, "noise draws", 1, MOST_DRAWS))

    def measured(self, embedding: Embedding) -> UniformNoise:
        """Measure the standard deviation that the scale is relative to."""
        embedding.moments  # noqa: B018
        return self

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (draws, subject tokens, width): what is added to the embeddings."""
        import torch

        start, stop = case.subject
        generator = torch.Generator(device="cpu").manual_seed(self.seed + case.case_id)
        drawn = [torch.rand(stop - start, embedding.width, generator=generator) for _ in range(self.draws)]
        return (2.0 * torch.stack(drawn) - 1.0) * (self.scale * embedding.std)

    def check(self, cases: Sequence[Case]) -> None:
        """See :func:`check_seeds`."""
        check_seeds(self.seed, cases)

    def first_draw(self) -> UniformNoise:
        """Its first draw alone, which is the same."""
        return replace(self, draws=1)

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Scale, seed and draws, and what the scale is relative to."""
        own = {"name": "uniform_noise", "scale": self.scale, "seed": self.seed, "draws": self.draws}
        return {"corruption": own | ({} if embedding is None else {"embedding_std": embedding.std})}
