"""What every engine gives back of a batch of cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from moetrace.engines.job import Job


@dataclass(frozen=True)
class LayerRouting:
    """What the routers sent a place's token to in one layer, and what a sweep of its experts gave.

    ``routed``, ``valid``: (cases, draws, 2k), the routing union in the router's order: k clean-routed
    experts, then k noised-routed ones, valid only where the clean run doesn't route to them. All others
    (cases, draws, experts): who is clean-active, noised-active and patched by itself; weights as applied, 0
    where not routed; the norm of the patch vector delta (equation 6) at the block's output; the logit
    difference of the run that patches the expert, and what of its rescue goes straight to the logits, NaN
    where there is none; router logits as the router gives them, with no experts where its output isn't
    recognised.

    Of a place with several tokens in any case: who is active at any of them, sums of weights, the norm of the
    patch vectors over all of them, logits of the last; ``routed``: min(k x tokens, experts) clean-routed
    experts of any of them, then as many that only the noised run routes to. A case without the place has
    nobody active and logits of NaN.
    """

    routed: np.ndarray
    valid: np.ndarray
    clean_active: np.ndarray
    noised_active: np.ndarray
    patched_active: np.ndarray
    clean_weight: np.ndarray
    noised_weight: np.ndarray
    delta_norm: np.ndarray
    patched: np.ndarray
    direct: np.ndarray
    direct_linear: np.ndarray
    clean_logit: np.ndarray
    noised_logit: np.ndarray

    @property
    def top_k(self) -> int:
        """Experts that each run routes to."""
        return int(self.routed.shape[-1] // 2)

    def select(self, index: np.ndarray) -> LayerRouting:
        """Some of the cases."""
        return LayerRouting(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[LayerRouting], axis: int = 0) -> LayerRouting:
        """Batches one after another (axis 0), or draws of the same cases beside each other (1)."""
        names = [f.name for f in fields(LayerRouting)]
        return LayerRouting(*(_joined([getattr(p, n) for p in parts], axis) for n in names))


def _joined(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Tables one after another. Those of a batch in which no case has the place have no slots: they get
    some."""
    width = max(part.shape[-1] for part in parts)
    dtype = next(part.dtype for part in parts if part.shape[-1] == width)
    whole = []
    for part in parts:
        fill = np.full((*part.shape[:-1], width - part.shape[-1]), _NOTHING[dtype.kind], dtype)
        whole.append(np.concatenate([part.astype(dtype, copy=False), fill], axis=-1))
    found: np.ndarray = np.concatenate(whole, axis=axis)
    return found


_NOTHING = {"b": False, "i": 0, "f": np.nan}


@dataclass(frozen=True)
class Values:
    """One metric of a batch, as of :class:`Outcome`.

    ``swept``: (cases, draws, experts) of each layer and place with expert patches.
    """

    clean: np.ndarray
    noised: np.ndarray
    patched: np.ndarray
    swept: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def select(self, index: np.ndarray) -> Values:
        """Some of the cases."""
        swept = {place: own[index] for place, own in self.swept.items()}
        return Values(self.clean[index], self.noised[index], self.patched[index], swept)

    @staticmethod
    def stack(parts: Sequence[Values]) -> Values:
        """Batches one after another."""
        swept = {place: _joined([p.swept[place] for p in parts], 0) for place in parts[0].swept}
        return Values(
            np.concatenate([part.clean for part in parts]),
            np.concatenate([part.noised for part in parts]),
            np.concatenate([part.patched for part in parts]),
            swept,
        )


@dataclass(frozen=True)
class Outcome:
    """What a batch gave, in the order of its cases. Logit differences (true minus foil, equation 1), float64.

    ``clean`` (cases,), ``noised`` (cases, draws), ``patched`` (cases, patches, draws); ``routing``: by layer
    and place with expert patches; ``direct``, ``direct_linear``: (cases, patches, draws), what of a patch's
    rescue goes straight to the logits (see :mod:`moetrace.models.ending`), NaN where it wasn't measured;
    ``present`` (cases, patches): whether the case has the place of the patch: where not, its figures are NaN;
    ``others``: of each further metric of the job.
    """

    clean: np.ndarray
    noised: np.ndarray
    patched: np.ndarray
    direct: np.ndarray
    direct_linear: np.ndarray
    present: np.ndarray
    routing: Mapping[tuple[int, int], LayerRouting] = field(default_factory=dict)
    others: tuple[Values, ...] = ()

    def base(self, job: Job) -> np.ndarray:
        """The run that patched runs leave from: logit differences (cases, draws)."""
        return np.broadcast_to(self.clean[:, None], self.noised.shape) if job.from_clean else self.noised

    @staticmethod
    def plain(values: Sequence[Values]) -> Outcome:
        """Of each metric, without routing and direct effects."""
        first, *others = values
        unknown, present = np.full(first.patched.shape, np.nan), np.ones(first.patched.shape[:2], dtype=bool)
        return Outcome(
            first.clean, first.noised, first.patched, unknown, unknown, present, others=tuple(others)
        )

    @property
    def metrics(self) -> tuple[Values, ...]:
        """Of each metric of the job."""
        swept = {place: own.patched for place, own in self.routing.items()}
        return (Values(self.clean, self.noised, self.patched, swept), *self.others)

    def of_metric(self, place: int) -> Outcome:
        """The same with another metric in the place of the logit difference, and no direct effects."""
        if not place:
            return replace(self, others=())
        own, unknown = self.others[place - 1], np.full(self.patched.shape, np.nan)
        routing = {}
        for where, found in self.routing.items():
            none = np.full(found.direct.shape, np.nan)
            routing[where] = replace(found, patched=own.swept[where], direct=none, direct_linear=none)
        return Outcome(own.clean, own.noised, own.patched, unknown, unknown, self.present, routing)

    def select(self, index: np.ndarray) -> Outcome:
        """Some of the cases."""
        routing = {place: found.select(index) for place, found in self.routing.items()}
        others = tuple(own.select(index) for own in self.others)
        return Outcome(
            **{name: getattr(self, name)[index] for name in OUTCOME}, routing=routing, others=others
        )

    def case(self, index: int) -> Outcome:
        """One case, as a batch of its own."""
        return self.select(np.array([index]))

    def finite(self) -> np.ndarray:
        """bool (cases,): whether every value of a case is finite."""
        good = np.ones(len(self.clean), dtype=bool)
        for values in self.metrics:
            good &= np.isfinite(values.clean) & np.isfinite(values.noised).all(axis=1)
            good &= (np.isfinite(values.patched) | ~self.present[..., None]).all(axis=(1, 2))
            for place, own in self.routing.items():
                good &= (np.isfinite(values.swept[place]) | ~own.patched_active).all(axis=(1, 2))
        return good

    @staticmethod
    def stack(parts: Sequence[Outcome]) -> Outcome:
        """Batches one after another."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTCOME}
        routing = {place: LayerRouting.join([p.routing[place] for p in parts]) for place in parts[0].routing}
        others = tuple(Values.stack(own) for own in zip(*(part.others for part in parts), strict=True))
        return Outcome(**arrays, routing=routing, others=others)


# The arrays that aren't by layer.
OUTCOME = ("clean", "noised", "patched", "direct", "direct_linear", "present")
