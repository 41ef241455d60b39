"""What a model's embedding puts out: the size that noise is relative to, and the rows of tokens."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from moetrace.errors import ModelError

if TYPE_CHECKING:
    import torch

_CHUNK = 512  # rows of the embedding looked at together: pages that are new each time are slow


@dataclass(frozen=True)
class Moments:
    """Over the vocabulary: the mean row, float32 (width,), and the standard deviation of all entries."""

    mean: torch.Tensor
    std: float


class Embedding:
    """A model's embedding module, as corruptions see it; measured where they ask.

    ``module``: what is called; ``vocab_size``: ids that it takes; ``width``: of a row; ``device``: where ids
    go; ``name``: the model's name or folder.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        vocab_size: int,
        width: int,
        device: torch.device | str,
        name: str = "",
    ) -> None:
        self.module, self.vocab_size, self.width = module, vocab_size, width
        self.device, self.name = device, name

    @cached_property
    def moments(self) -> Moments:
        """See :func:`embedding_moments`."""
        import torch

        return embedding_moments(self.module, self.vocab_size, torch.device(self.device))

    @property
    def std(self) -> float:
        """Standard deviation of all entries of what the module puts out for the vocabulary."""
        return self.moments.std

    def rows(self, tokens: Sequence[int]) -> torch.Tensor:
        """What the module puts out for token ids: float32 (tokens, width), on the CPU."""
        import torch

        with torch.no_grad():
            found: torch.Tensor = self.module(torch.tensor([list(tokens)], device=self.device))
        return found[0].to("cpu", torch.float32)


_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[tuple[float, ...], Moments]]
_known = weakref.WeakKeyDictionary()


def embedding_std(embedding: torch.nn.Module, vocab_size: int, device: torch.device) -> float:
    """Standard deviation over all entries of what the embedding module puts out for the vocabulary."""
    return embedding_moments(embedding, vocab_size, device).std


def embedding_moments(embedding: torch.nn.Module, vocab_size: int, device: torch.device) -> Moments:
    """Mean row and standard deviation of what the embedding module puts out for the vocabulary.

    For a plain ``nn.Embedding`` the latter is the (unbiased) standard deviation of its weight. A module that
    scales inside (Gemma) gives that of its scaled output, so that the noise is relative to what it noises.
    """
    import torch

    key = _state(embedding)
    known = _known.get(embedding)
    if known is not None and key and known[0] == key:
        return known[1]
    count, mean, squares = 0, 0.0, 0.0
    total_row = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for begin in range(0, vocab_size, _CHUNK):
            ids = torch.arange(begin, min(begin + _CHUNK, vocab_size), device=device).unsqueeze(0)
            values = embedding(ids).to(torch.float64)
            total_row = total_row + values.sum(dim=(0, 1)).to("cpu")
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
    found = Moments((total_row / vocab_size).float(), std)
    _known[embedding] = (key, found)
    return found


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
