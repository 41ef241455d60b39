"""What a screening found of a case, as columns of a run folder: estimates of clean-active experts alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moetrace.engines.gradients import Estimates


@dataclass(frozen=True)
class EstimateForm:
    """Of :class:`Estimates` of one case. ``experts``: how many each screened layer has; ``screened``: metrics
    with estimates; ``draws``: of the corruption."""

    experts: Mapping[int, int]
    screened: int
    draws: int

    def columns(self, parts: Sequence[Estimates]) -> dict[str, Any]:
        """See :class:`moetrace.trace.parts.Form`."""
        columns: dict[str, Any] = {
            "clean": [part.clean.ravel().tolist() for part in parts],
            "noised": [part.noised.ravel().tolist() for part in parts],
            "tokens": [next(iter(part.clean_active.values())).shape[1] for part in parts],
        }
        for layer in self.experts:
            active = [part.clean_active[layer][0] for part in parts]
            columns[f"active.{layer}"] = [np.flatnonzero(own).tolist() for own in active]
            columns[f"estimate.{layer}"] = [
                part.estimates[layer][:, 0][..., own].ravel().tolist()
                for part, own in zip(parts, active, strict=True)
            ]
        return columns

    def read(self, row: Mapping[Any, Any]) -> Estimates:
        """See :class:`moetrace.trace.parts.Form`."""
        clean = np.array(row["clean"], dtype=float)[:, None]
        noised = np.array(row["noised"], dtype=float).reshape(len(clean), 1, self.draws)
        estimates, active = {}, {}
        for layer, count in self.experts.items():
            shape = (int(row["tokens"]), count)
            own = np.zeros(shape, bool)
            own.ravel()[np.asarray(row[f"active.{layer}"], dtype=np.int64)] = True
            values = np.zeros((self.screened, self.draws, *shape))
            found = np.asarray(row[f"estimate.{layer}"], dtype=float)
            values[..., own] = found.reshape(self.screened, self.draws, -1)
            estimates[layer], active[layer] = values[:, None], own[None]
        return Estimates(clean, noised, estimates, active)
