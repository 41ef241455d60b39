"""Later routers held to what they chose in the run that a patch leaves from, for the reference engine.

A patch changes what later layers see, and so whom their routers choose. With fixed routing the index and the
weights of every later layer's experts are those of the unpatched run, from the first patched token on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from moetrace.engines.job import Job
from moetrace.models.experts import routed_call, with_weights

Hooks = list[tuple[Any, Any]]
Routes = dict[int, tuple[torch.Tensor, torch.Tensor]]  # of a run of one sequence: index and weights by layer


@dataclass(frozen=True)
class Held:
    """A patched run that is held: its layer, its first patched token, and which sequence of the same forward
    has the routing that it is held to (None: it is given)."""

    layer: int
    first: int
    source: int | None = None


def held_layers(job: Job) -> list[int]:
    """Layers behind the lowest patch with fixed routing that have experts."""
    fixed = [patch.layer for patch in job.patches if patch.fixed_routing]
    known = [site.layer for site in job.anatomy.sites if site is not None and site.experts is not None]
    return [layer for layer in known if fixed and layer > min(fixed)]


class RoutingTap:
    """Keeps the routing of a forward of one sequence, in the layers where some patch needs it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.routes: Routes = {}

    def hooks(self) -> Hooks:
        """Experts modules, and what to hang before each."""
        return [
            (self._job.anatomy.experts(layer), partial(self._keep, layer)) for layer in held_layers(self._job)
        ]

    def _keep(self, layer: int, module: Any, args: Any, kwargs: Any) -> None:
        if layer not in self.routes:  # an ablation calls the block again
            _, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
            self.routes[layer] = (index.clone(), weights.clone())


def held_hooks(job: Job, tokens: int, runs: Sequence[Held | None], routes: Mapping[int, Any]) -> Hooks:
    """What to hang before experts of a forward whose sequence i is ``runs[i]``; None for one that is free.

    ``routes``: of the run that they are held to, where it isn't in the same forward.
    """
    found = []
    for layer in held_layers(job):
        own = {i: run for i, run in enumerate(runs) if run is not None and run.layer < layer}
        if own:
            hook = partial(_give, layer, tokens, own, routes.get(layer))
            found.append((job.anatomy.experts(layer), hook))
    return found


def _give(
    layer: int, tokens: int, runs: Mapping[int, Held], routes: Any, module: Any, args: Any, kwargs: Any
) -> Any:
    _, index, weights = routed_call(module, args, kwargs, f"layer {layer}")
    shape = (-1, tokens, index.shape[-1])
    given = index.reshape(shape), weights.reshape(shape)
    index, weights = given[0].clone(), given[1].clone()
    for sequence, run in runs.items():
        held = routes if run.source is None else [value[run.source] for value in given]
        index[sequence, run.first :] = held[0][run.first :].to(index.device)
        weights[sequence, run.first :] = held[1][run.first :].to(weights.device)
    return with_weights(args, kwargs, weights.flatten(0, 1), index.flatten(0, 1))
