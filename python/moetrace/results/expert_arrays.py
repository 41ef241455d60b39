"""What was measured for every case and expert, and what the routers said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.cases import case_keys
from moetrace.errors import ArgumentError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

LOGITS = ("clean_logit", "noised_logit")
STRAIGHT = ("direct", "direct_linear")


@dataclass(frozen=True, eq=False)
class ExpertArrays:
    """One array for each measurement, all of shape (cases, sites); sites are the experts of all layers.

    >>> experts.arrays.delta_norm[experts.arrays.clean_active].mean()

    Attributes:
        clean_active: bool; the router of the clean run selects the expert at the patched position.
        noised_active: bool; the same of the noised run.
        clean_weight: routing weight as the block applies it in the clean run; 0 where not routed.
        noised_weight: the same of the noised run.
        delta_norm: Euclidean norm of delta_e (equation 6); 0 where nothing was patched.
        patched: logit difference of the patched run; that of the noised run where nothing was patched.
        rescue: patched minus noised, logits (equation 4); exactly 0 where nothing was patched.
        patched_active: bool, where a patch ran. None: at the clean-active experts. Given when experts of
            the noised routing were patched too; it then covers the clean-active ones.
        direct: what of the rescue goes straight to the logits (see :class:`LayerTrace`, with delta_e as it
            changes the layer's output), logits; 0 where nothing was patched, NaN where the model doesn't
            allow it. None in a result of an earlier version.
        direct_linear: the same with the final norm's scale as in the noised run: it adds up over experts.
        clean_logit: router logit of the clean run, as the router gives it, of every expert, routed or not.
            None where the router's output isn't recognised.
        noised_logit: the same of the noised run.

    Raises:
        ArgumentError: shapes differ, or a rescue or direct effect isn't 0 where nothing was patched.
    """

    clean_active: Bools
    noised_active: Bools
    clean_weight: Floats
    noised_weight: Floats
    delta_norm: Floats
    patched: Floats
    rescue: Floats
    patched_active: Bools | None = None
    direct: Floats | None = None
    direct_linear: Floats | None = None
    clean_logit: Floats | None = None
    noised_logit: Floats | None = None

    def __post_init__(self) -> None:
        for name in self.names():
            dtype = np.bool_ if name.endswith("_active") else np.float64
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        shapes = {name: getattr(self, name).shape for name in self.names()}
        if len(set(shapes.values())) > 1 or len(self.rescue.shape) != 2:
            raise ArgumentError(f"expert arrays have shapes {shapes}; expected (cases, sites) of all")
        if self.patched_active is not None and (self.clean_active & ~self.patched_active).any():
            raise ArgumentError("clean-active experts lack a patch; expected patched_active to cover them")
        for name in ("rescue", *STRAIGHT):
            values = getattr(self, name)
            stray = 0 if values is None else int(((values != 0) & ~self.was_patched).sum())
            if stray:
                what = "rescues" if name == "rescue" else f"{name} effects"
                raise ArgumentError(
                    f"{stray} {what} aren't 0 where nothing was patched; expected exactly 0 there"
                )

    def names(self) -> Iterator[str]:
        """Names of the arrays that are there."""
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    @property
    def was_patched(self) -> Bools:
        """bool (cases, sites): where a patch ran."""
        return self.clean_active if self.patched_active is None else self.patched_active

    @property
    def indirect(self) -> Floats | None:
        """Rescue minus direct, what later layers make of a patch; None where ``direct`` is."""
        return None if self.direct is None else self.rescue - self.direct

    @property
    def effects(self) -> Floats:
        """Rescue as the paper counts it: exactly 0 for an expert that isn't clean-active."""
        return np.where(self.clean_active, self.rescue, 0.0)

    @classmethod
    def from_rows(cls, rows: pd.DataFrame, shape: tuple[int, int]) -> ExpertArrays:
        """From tidy rows, case by case in the order of the sites."""
        names = [field.name for field in fields(cls) if field.name in rows]
        return cls(**{name: rows[name].to_numpy().reshape(shape) for name in names})


def expert_rows(cases: pd.DataFrame, sites: pd.DataFrame, arrays: ExpertArrays) -> pd.DataFrame:
    """Tidy rows of the arrays but the router logits, one for each case and expert."""
    n, m = arrays.rescue.shape
    last = ("patched", "rescue", "direct", "indirect", "direct_linear")
    table = {name: np.repeat(cases[name].to_numpy(), m) for name in case_keys(cases)}
    table |= {name: np.tile(sites[name].to_numpy(), n) for name in ("layer", "expert")}
    table |= {name: getattr(arrays, name).ravel() for name in arrays.names() if name not in (*last, *LOGITS)}
    table |= {name: np.repeat(cases[name].to_numpy(), m) for name in ("clean", "noised")}
    values = {name: getattr(arrays, name) for name in last}
    return pd.DataFrame(table | {name: own.ravel() for name, own in values.items() if own is not None})


def active_per_layer(arrays: ExpertArrays, sites: pd.DataFrame) -> int:
    """The router's top-k: the most experts of a layer that are clean-active in a case; 0 without cases."""
    counts = pd.DataFrame(arrays.clean_active.T).groupby(sites.layer.to_numpy()).sum().to_numpy()
    return int(counts.max(initial=0))


def softmax_by_layer(logits: Floats, sites: pd.DataFrame) -> Floats:
    """Softmax of logits (cases, sites) within each layer."""
    found = np.empty_like(logits)
    for columns in sites.groupby("layer").indices.values():
        shifted = np.exp(logits[:, columns] - logits[:, columns].max(axis=1, keepdims=True))
        found[:, columns] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def routing_table(rows: pd.DataFrame, arrays: ExpertArrays, sites: pd.DataFrame) -> pd.DataFrame:
    """Routing columns of tidy rows, with logits and probabilities of both runs where they are known."""
    table = rows.loc[:, "case_id":"noised_weight"]
    for run in ("clean", "noised"):
        logits = getattr(arrays, f"{run}_logit")
        if logits is not None:
            table[f"{run}_logit"] = logits.ravel()
            table[f"{run}_probability"] = softmax_by_layer(logits, sites).ravel()
    return table


def close_calls(arrays: ExpertArrays, sites: pd.DataFrame, limit: float) -> int:
    """Clean routings of a case and layer whose weakest routed and strongest unrouted logit are that close."""
    logits, count = arrays.clean_logit, 0
    if logits is None:
        return 0
    for columns in sites.groupby("layer").indices.values():
        active = arrays.clean_active[:, columns]
        weakest = np.where(active, logits[:, columns], np.inf).min(axis=1)
        strongest = np.where(active, -np.inf, logits[:, columns]).max(axis=1)
        count += int((np.abs(weakest - strongest) < limit).sum())
    return count
