"""Subject noise: the corruption of the noised run (section 3.2, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from moetrace.arguments import as_count, as_integer, as_list, as_number, refuse_type
from moetrace.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case
    from moetrace.corruptions.embedding import Embedding

MOST_DRAWS = 4096  # of a case: each is a noised run and as many patched ones


@dataclass(frozen=True)
class SubjectNoise:
    """Gaussian noise on the embeddings of a case's subject tokens (equation 2).

    >>> mt.trace_layers(model, cases, noise=mt.SubjectNoise(scale=3.0, seed=0))

    ``scale``: standard deviation of the noise in units of the standard deviation of the embedding matrix.
    ``seed``: the draw of a case is seeded with ``seed + case_id`` (Table 2), on the CPU in float32, and
    depends on the case alone: not on batch, order, device or dtype.
    ``draws``: how many draws of one generator each case gets; logit differences are averaged over them.
    """

    replaces: ClassVar[bool] = False
    scale: float = 3.0
    seed: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_number(self.scale, "noise scale", 0))
        object.__setattr__(self, "seed", as_integer(self.seed, "noise seed"))
        object.__setattr__(self, "draws", as_count(self.draws, "noise draws", 1, MOST_DRAWS))

    def sample(self, case: Case, width: int) -> torch.Tensor:
        """Standard normal draws of one case: float32 (draws, subject tokens, width), before any scale."""
        import torch

        start, stop = case.subject
        generator = torch.Generator(device="cpu").manual_seed(self.seed + case.case_id)
        # One call for each draw: the first then equals the only one of a trace with a single draw.
        return torch.stack([torch.randn(stop - start, width, generator=generator) for _ in range(self.draws)])

    def measured(self, embedding: Embedding) -> SubjectNoise:
        """Measure the standard deviation that scales are relative to."""
        embedding.moments  # noqa: B018
        return self

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (draws, subject tokens, width): what is added to the embeddings (equation 2)."""
        return self.sample(case, embedding.width) * (self.scale * embedding.std)

    def check(self, cases: Sequence[Case]) -> None:
        """See :func:`check_seeds`."""
        check_seeds(self.seed, cases)

    def first_draw(self) -> SubjectNoise:
        """Its first draw alone, which is the same."""
        return replace(self, draws=1)

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Scale, seed and draws, and what the scale is relative to."""
        return _facts(self, embedding)


@dataclass(frozen=True)
class NoiseScales:
    """One draw of each case at several scales (Table 13): the scales are branches of the same tree."""

    replaces: ClassVar[bool] = False
    scales: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        given = as_list(self.scales, "scales", "a list of noise scales")
        if not given:
            raise ArgumentError("scales is empty; expected at least one noise scale")
        checked = tuple(SubjectNoise(scale, self.seed).scale for scale in given)
        names = [f"{scale:g}" for scale in checked]  # as columns of the result are named
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ArgumentError(
                f"scales has {twice[0]} twice (to 6 digits, as tables name them); expected each scale once"
            )
        object.__setattr__(self, "scales", checked)

    @property
    def draws(self) -> int:
        """Noised branches: one for each scale."""
        return len(self.scales)

    @property
    def scale(self) -> list[float]:
        """The scales, as a record of the call holds them."""
        return list(self.scales)

    def measured(self, embedding: Embedding) -> NoiseScales:
        """Measure the standard deviation that scales are relative to."""
        embedding.moments  # noqa: B018
        return self

    def values(self, case: Case, embedding: Embedding) -> torch.Tensor:
        """float32 (scales, subject tokens, width): the case's first draw at every scale."""
        import torch

        draw = SubjectNoise(1.0, self.seed).sample(case, embedding.width)[0]
        return torch.stack([draw * (scale * embedding.std) for scale in self.scales])

    def check(self, cases: Sequence[Case]) -> None:
        """See :func:`check_seeds`."""
        check_seeds(self.seed, cases)

    def first_draw(self) -> NoiseScales:
        """Its first scale alone."""
        return replace(self, scales=self.scales[:1])

    def facts(self, embedding: Embedding | None = None) -> dict[str, Any]:
        """Scales, seed and draws, and what the scales are relative to."""
        return _facts(self, embedding)


def _facts(noise: SubjectNoise | NoiseScales, embedding: Embedding | None) -> dict[str, Any]:
    measured = {} if embedding is None else {"embedding_std": embedding.std}
    return {"noise": {"scale": noise.scale, "seed": noise.seed, "draws": noise.draws, **measured}}


Noise = SubjectNoise | NoiseScales
NoiseLike = SubjectNoise | float | None


def as_noise(noise: Any) -> Noise:
    """The noise that a user names: None is the paper's, a number its scale (0 is no noise at all).

    >>> as_noise(1.5)
    SubjectNoise(scale=1.5, seed=0, draws=1)
    """
    if noise is None:
        return SubjectNoise()
    if isinstance(noise, SubjectNoise | NoiseScales):
        return noise
    return SubjectNoise(as_number(noise, "noise", 0))


def as_subject_noise(noise: Any) -> SubjectNoise:
    """The same of one scale. ArgumentTypeError for noise of several."""
    chosen = as_noise(noise)
    if not isinstance(chosen, SubjectNoise):
        refuse_type(noise, "noise", "a SubjectNoise or its scale")
    return chosen


def check_seeds(seed: int, cases: Sequence[Case]) -> None:
    """Raise ArgumentError where ``seed + case_id`` is no seed that a generator takes."""
    for case in cases:
        if not 0 <= seed + case.case_id < 2**63:
            raise ArgumentError(
                f"case {case.case_id} with noise seed {seed} gives the seed "
                f"{seed + case.case_id}; expected 0 or more and below 2**63"
            )
