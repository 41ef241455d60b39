"""Where a language model ends: the final norm and the read-out behind the last layer's residual stream.

What a patch gives straight to the logits is its change of that stream, through the norm and the read-out,
as if every later layer wrote what it wrote before (direct logit attribution).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from moetrace.models.readout import Readout
from moetrace.weights.tensors import is_plain

_ROWS = 1024  # rows that go through the norm at once
_FITS = 1e-4  # by how much of its size a norm's output may differ from the form that is linearised


@dataclass(frozen=True)
class Ending:
    """What stands behind the last layer, as found by measuring.

    ``fault``: why there are no direct effects, None where there are. ``linear_fault``: the same for linear
    ones.
    """

    norm: nn.Module | None = None
    readout: Readout | None = None
    fault: str | None = None
    linear_fault: str | None = None

    def effects(
        self, noised: torch.Tensor, deltas: torch.Tensor, tokens: torch.Tensor, differences: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Direct effects, exact and linear: float64 (cases, runs, draws) each, in logits.

        ``noised``: (cases, draws, width), what enters the final norm at the noised run's final token;
        ``deltas``: (cases, runs, draws, width), by how much each run's patch changes it; ``tokens``: int64
        (cases, 2), true and foil; ``differences``: (cases, draws), the noised run's logit difference as the
        model gave it. A case where norm and read-out give another difference has NaN.
        """
        assert self.readout is not None
        cases, _, draws, width = deltas.shape
        tokens, noised = tokens.to(noised.device), noised.unsqueeze(1)
        deltas = deltas.to(noised.device)
        wide = noised.dtype if noised.dtype is torch.float64 else torch.float32
        start = self.normed(noised.to(wide)).reshape(cases, draws, width)
        before = self.readout(start, tokens)
        base = contrast(before)
        found = []
        for part in torch.split(deltas, max(1, _ROWS // (cases * draws)), dim=1):
            moved = self.normed(noised.to(wide) + part.to(wide))
            after = self.readout(moved.reshape(cases, -1, width), tokens)
            found.append(contrast(after).reshape(cases, -1, draws) - base.unsqueeze(1))
        direct = torch.cat(found, dim=1)
        linear = self._linear(noised.squeeze(1), start, deltas, tokens)
        # Rounding of what the norm gives, and of the logits.
        lengths = self.readout.rows(tokens).norm(dim=2).amax(dim=1, keepdim=True) * start.norm(dim=2).to(base)
        size = 4 * lengths + 64 * before.abs().amax(dim=2).clamp(min=1.0)
        apart = (base - differences.to(base)).abs() > torch.finfo(noised.dtype).eps * size
        unknown = apart.unsqueeze(1)
        return (
            direct.masked_fill(unknown, torch.nan),
            linear.masked_fill(unknown.to(linear.device), torch.nan),
        )

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the final norm makes of rows, in their precision if it can."""
        assert self.norm is not None
        held = dict(self.norm.named_parameters())
        found: torch.Tensor
        if all(is_plain(weight) and not weight.is_meta for weight in held.values()):
            wide = {name: weight.to(hidden.dtype) for name, weight in held.items()}
            found = torch.func.functional_call(self.norm, wide, (hidden,))
            return found
        try:  # weights that only the module's own forward brings into memory
            found = self.norm(hidden)
        except RuntimeError:  # a layer norm takes their precision alone
            found = self.norm(hidden.to(next(iter(held.values())).dtype)).to(hidden.dtype)
        return found

    def form_of(self, hidden: torch.Tensor) -> tuple[torch.Tensor, bool, torch.Tensor] | None:
        """A norm as gain * x / scale + bias, x centred or not, from what it makes of rows (n, width).

        The gain (width), whether it centres, and the scale (n) at each row: NaN where the form doesn't fit
        the row. None where it doesn't fit a drawn row whose mean is far from 0, which tells forms apart.
        """
        wide = hidden if hidden.dtype is torch.float64 else hidden.float()
        drawn = torch.randn(wide.shape[1], generator=torch.Generator().manual_seed(0)).to(wide) + 1.0
        wide = torch.cat([wide, drawn[None]])
        given, found = wide.to(torch.float64), self.normed(wide).to(torch.float64)
        bias = getattr(self.norm, "bias", None)
        if isinstance(bias, torch.Tensor):
            found = found - bias.to(found)
        for gain, centred in self._forms(given):
            expected = gain * (given - given.mean(dim=1, keepdim=True) if centred else given)
            scale = (expected**2).sum(dim=1) / (expected * found).sum(dim=1)
            off = (found - expected / scale.unsqueeze(1)).norm(dim=1)
            fits = off <= _FITS * found.norm(dim=1)
            if bool(fits[-1]):
                return gain, centred, scale.masked_fill(~fits, torch.nan)[:-1]
        return None

    def _forms(self, like: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool]]:
        weight = getattr(self.norm, "weight", None)
        gains = [torch.ones(like.shape[-1], dtype=like.dtype, device=like.device)]
        if is_plain(weight) and weight.shape == gains[0].shape and not weight.is_meta:
            gains = [weight.to(like), 1.0 + weight.to(like), *gains]  # Gemma keeps what is added to 1
        for gain in gains:
            yield gain, False
            yield gain, True

    def _linear(
        self,
        noised: torch.Tensor,
        start: torch.Tensor,
        deltas: torch.Tensor,
        tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Linear in the deltas: the norm's scale and the slope of a soft cap are those of the noised run."""
        assert self.readout is not None
        cases, runs, draws, width = deltas.shape
        form = None if self.linear_fault else self.form_of(noised.reshape(-1, width))
        if form is None:
            return torch.full((cases, runs, draws), torch.nan, dtype=torch.float64, device=deltas.device)
        gain, centred, scale = form
        slopes, rows = self.readout.slopes(start, tokens).to(gain), self.readout.rows(tokens).to(gain)
        direction = slopes[..., :1] * rows[:, None, 0] - slopes[..., 1:] * rows[:, None, 1]
        direction = direction * gain / scale.reshape(cases, draws, 1)
        if centred:
            direction = direction - direction.mean(dim=2, keepdim=True)
        return torch.einsum("crdw,cdw->crd", deltas.to(direction), direction)


def contrast(logits: torch.Tensor) -> torch.Tensor:
    """True minus foil (equation 1) of logits (..., 2)."""
    return logits[..., 0] - logits[..., 1]
