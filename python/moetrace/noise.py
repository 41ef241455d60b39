"""Subject noise: the corruption of the noised run (section 3.2, equation 2)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetrace.arguments import as_count, as_integer, as_list, as_number
from moetrace.errors import ArgumentError, ModelError

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case

MOST_DRAWS = 4096  # of a case: each is a noised run and as many patched ones
_CHUNK = 512  # rows of the embedding looked at together: pages that are new each time are slow


@dataclass(frozen=True)
class SubjectNoise:
    """Gaussian noise on the embeddings of a case's subject tokens (equation 2).

    >>> mt.trace_layers(model, cases, noise=mt.SubjectNoise(scale=3.0, seed=0))

    ``scale``: standard deviation of the noise in units of the standard deviation of the embedding matrix.
    ``seed``: the draw of a case is seeded with ``seed + case_id`` (Table 2), on the CPU in float32, and
    depends on the case alone: not on batch, order, device or dtype.
    ``draws``: how many draws of one generator each case gets; logit differences are averaged over them.
    """

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

    def vectors(self, case: Case, width: int, std: float) -> torch.Tensor:
        """float32 (draws, subject tokens, width): what is added to the embeddings (equation 2)."""
        return self.sample(case, width) * (self.scale * std)


@dataclass(frozen=True)
class NoiseScales:
    """One draw of each case at several scales (Table 13): the scales are branches of the same tree."""

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

    def vectors(self, case: Case, width: int, std: float) -> torch.Tensor:
        """float32 (scales, subject tokens, width): the case's first draw at every scale."""
        import torch

        draw = SubjectNoise(1.0, self.seed).sample(case, width)[0]
        return torch.stack([draw * (scale * std) for scale in self.scales])


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


def check_seeds(noise: Noise, cases: Sequence[Case]) -> None:
    """Raise ArgumentError where ``seed + case_id`` is no seed that a generator takes."""
    for case in cases:
        if not 0 <= noise.seed + case.case_id < 2**63:
            raise ArgumentError(
                f"case {case.case_id} with noise seed {noise.seed} gives the seed "
                f"{noise.seed + case.case_id}; expected 0 or more and below 2**63"
            )


_known_std: weakref.WeakKeyDictionary[torch.nn.Module, tuple[tuple[float, ...], float]]
_known_std = weakref.WeakKeyDictionary()


def embedding_std(embedding: torch.nn.Module, vocab_size: int, device: torch.device) -> float:
    """Standard deviation over all entries of what the embedding module puts out for the vocabulary.

    For a plain ``nn.Embedding`` this is the (unbiased) standard deviation of its weight. A module that
    scales inside (Gemma) gives that of its scaled output, so that the noise is relative to what it noises.
    """
    import torch

    key = _state(embedding)
    known = _known_std.get(embedding)
    if known is not None and key and known[0] == key:
        return known[1]
    count, mean, squares = 0, 0.0, 0.0
    with torch.no_grad():
        for begin in range(0, vocab_size, _CHUNK):
            ids = torch.arange(begin, min(begin + _CHUNK, vocab_size), device=device).unsqueeze(0)
            values = embedding(ids).to(torch.float64)
            # Chan's update of mean and squared deviations: no cancellation, one chunk in memory.
            chunk_mean = values.mean().item()
            chunk_squares = (values - chunk_mean).square_().sum().item()
            total = count + values.numel()
            squares += chunk_squares + (chunk_mean - mean) ** 2 * count * values.numel() / total
            mean += (chunk_mean - mean) * values.numel() / total
            count = total
    std = math.sqrt(squares / (count - 1))
    if not math.isfinite(std):
        raise ModelError(
            "the embedding puts out NaN or infinite values for some token, so the scale of the noise (3.0 x "
            "the standard deviation of the embedding matrix) is undefined; repair the checkpoint"
        )
    _known_std[embedding] = (key, std)
    return std


def _state(embedding: torch.nn.Module) -> tuple[int, ...]:
    """What a standard deviation is true for; empty where it must be measured every time.

    The sum is over the bits of all entries, for an edit through ``.data`` raises no version. Hooks may change
    what the module puts out.
    """
    import torch

    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.is_floating_point():
        return ()
    if type(weight) not in (torch.Tensor, torch.nn.Parameter) or type(weight.data) is not torch.Tensor:
        return ()  # of codes and scales the module alone knows the values
    entries = weight.detach()
    wide = entries.is_contiguous() and entries.shape[-1] * entries.element_size() % 8 == 0
    sizes = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = entries.view(torch.int64 if wide else sizes[entries.element_size()])
    return (
        weight.data_ptr(),
        0 if weight.is_inference() else weight._version,
        int(bits.sum()),  # of all entries
        id(vars(embedding).get("forward")),
        *embedding._forward_hooks,
        *embedding._forward_pre_hooks,
    )
