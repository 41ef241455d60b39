"""Later routers held to what they chose in the noised run, for the reference engine.

A patch changes what later layers see, and so whom their routers choose. With fixed routing the index and the
weights of every later layer's experts are the noised run's, at the patched token and behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from moetrace.engines.job import Job
from moetrace.models.experts import routed_call, with_weights

Hooks = list[tuple[Any, Any]]


class FixedRouting:
    """Of one case: keeps a noised run's routing, and gives it to sequences of other runs."""

    def __init__(self, job: Job, tokens: int, position: int) -> None:
        self._job, self._tokens, self._position = job, tokens, position
        fixed = [patch.layer for patch in job.patches if patch.fixed_routing]
        self._layers = [
            site.layer
            for site in job.anatomy.sites
            if site is not None and site.experts is not None and fixed and site.layer > min(fixed)
        ]
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def noised_hooks(self) -> Hooks:
        """Experts modules, and what keeps the routing of a forward of the noised run before each."""
        return [(self._job.anatomy.experts(layer), partial(self._keep, layer)) for layer in self._layers]

    def forget(self) -> None:
        """The noised run is run again."""
        self._kept.clear()

    def patched_hooks(self, runs: Sequence[int | None], noised: int | None = None) -> Hooks:
        """The same of a forward whose sequence i is a run patched in layer ``runs[i]`` and then fixed;
        None for one that is free. ``noised``: the noised run's sequence, where it is in the same forward.
        """
        found = []
        for layer in self._layers:
            sequences = [i for i, patched in enumerate(runs) if patched is not None and patched < layer]
            if sequences:
                hook = partial(self._give, layer, sequences, noised)
                found.append((self._job.anatomy.experts(layer), hook))
        return found

    def _keep(self, layer: int, module: Any, args: Any, kwargs: Any) -> None:
        if layer not in self._kept:  # an ablation calls the block again
            _, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
            self._kept[layer] = (index[self._position :].clone(), weights[self._position :].clone())

    def _give(
        self, layer: int, sequences: Sequence[int], noised: int | None, module: Any, args: Any, kwargs: Any
    ) -> Any:
        _, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
        shape = (-1, self._tokens, index.shape[-1])
        index, weights = index.reshape(shape).clone(), weights.reshape(shape).clone()
        if noised is None:
            own_index, own_weights = self._kept[layer]
        else:
            own_index, own_weights = index[noised, self._position :], weights[noised, self._position :]
        for sequence in sequences:
            index[sequence, self._position :] = own_index.to(index.device)
            weights[sequence, self._position :] = own_weights.to(weights.device)
        return with_weights(args, kwargs, weights.flatten(0, 1), index.flatten(0, 1))
