"""What the routers sent the patched token to, for every case of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class LayerRouting:
    """One layer's routing of the patched token: arrays (cases, draws, 2k).

    Places 0 to k-1 are the clean-routed experts in the router's order, places k to 2k-1 the noised-routed
    ones, ``valid`` only where the clean run doesn't route to them. Weights are as applied, 0 where not
    routed.
    ``norm``: of the patch vector delta (equation 6). ``clean_logit``, ``noised_logit``: router logits
    (cases, draws, experts), as the router gives them; no experts where its output isn't recognised.
    """

    expert: np.ndarray
    valid: np.ndarray
    noised_active: np.ndarray
    clean_weight: np.ndarray
    noised_weight: np.ndarray
    norm: np.ndarray
    clean_logit: np.ndarray
    noised_logit: np.ndarray

    @property
    def top_k(self) -> int:
        """Experts that each run routes to."""
        return int(self.expert.shape[-1] // 2)

    def select(self, index: np.ndarray) -> LayerRouting:
        """Some of the cases."""
        return LayerRouting(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def stack(parts: Sequence[LayerRouting]) -> LayerRouting:
        """Batches one after another."""
        names = [f.name for f in fields(LayerRouting)]
        return LayerRouting(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    @staticmethod
    def join_draws(parts: Sequence[LayerRouting]) -> LayerRouting:
        """Draws of the same cases beside each other."""
        names = [f.name for f in fields(LayerRouting)]
        return LayerRouting(*(np.concatenate([getattr(p, name) for p in parts], axis=1) for name in names))
