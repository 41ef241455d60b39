"""What was found of a case, as columns of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np

from moetrace.engines.job import Job
from moetrace.engines.outcome import LayerRouting, Outcome, Values

P = TypeVar("P")
ROUTING = tuple(f.name for f in fields(LayerRouting))
BY_PATCH = ("patched", "direct", "direct_linear")
PRESENT = "present"


class Form(Protocol[P]):
    """How a case's part becomes a row and is read back, the same to the last bit."""

    def columns(self, parts: Sequence[P]) -> dict[str, Any]:
        """Columns with one row for each part."""

    def read(self, row: Mapping[Any, Any]) -> P:
        """The part of a row."""


@dataclass(frozen=True)
class OutcomeForm:
    """Of an :class:`Outcome` of one case. ``further``: metrics beside the logit difference."""

    patches: int
    draws: int
    further: int

    @classmethod
    def of(cls, job: Job) -> OutcomeForm:
        """That of a job's outcomes."""
        return cls(len(job.patches), job.draws, len(job.metrics) - 1)

    def columns(self, parts: Sequence[Outcome]) -> dict[str, Any]:
        """See :class:`Form`."""
        columns: dict[str, Any] = {
            "clean": [float(part.clean[0]) for part in parts],
            "noised": [part.noised[0].tolist() for part in parts],
            **{
                name: [getattr(part, name)[0].ravel().tolist() for part in parts]
                for name in (*BY_PATCH, PRESENT)
            },
        }
        for where in parts[0].routing:
            layer, place = where
            for name in ROUTING:
                column = [getattr(part.routing[where], name)[0].ravel().tolist() for part in parts]
                columns[f"routing.{layer}.{place}.{name}"] = column
        return columns | _columns_of_metrics(parts)

    def read(self, row: Mapping[Any, Any]) -> Outcome:
        """See :class:`Form`."""
        patched, direct, linear = (
            np.array(row[name], dtype=float).reshape(1, self.patches, self.draws) for name in BY_PATCH
        )
        return Outcome(
            np.array([row["clean"]]),
            np.array([row["noised"]], dtype=float),
            patched,
            direct,
            linear,
            np.array(row[PRESENT], dtype=bool).reshape(1, self.patches),
            self._routing(row),
            tuple(self._values(row, place) for place in range(self.further)),
        )

    def _values(self, row: Mapping[Any, Any], metric: int) -> Values:
        """One case's further metric from its columns."""
        head, swept = f"metric.{metric}.", {}
        for name, own in row.items():
            if str(name).startswith(f"{head}swept."):
                layer, place = map(int, str(name).split(".")[-2:])
                swept[layer, place] = _draws(own, self.draws)
        patched = np.array(row[f"{head}patched"], dtype=float).reshape(1, self.patches, self.draws)
        noised = np.array([row[f"{head}noised"]], dtype=float)
        return Values(np.array([row[f"{head}clean"]]), noised, patched, swept)

    def _routing(self, row: Mapping[Any, Any]) -> dict[tuple[int, int], LayerRouting]:
        """One case's routing from its columns."""
        names = [str(name).split(".") for name in row if str(name).startswith("routing.")]
        found = {}
        for layer, place in sorted({(int(name[1]), int(name[2])) for name in names}):
            own = (_draws(row[f"routing.{layer}.{place}.{name}"], self.draws) for name in ROUTING)
            found[layer, place] = LayerRouting(*own)
        return found


def _columns_of_metrics(parts: Sequence[Outcome]) -> dict[str, Any]:
    """Columns of the metrics beside the logit difference."""
    columns: dict[str, Any] = {}
    for metric, first in enumerate(parts[0].others):
        values, head = [part.others[metric] for part in parts], f"metric.{metric}."
        columns[f"{head}clean"] = [float(own.clean[0]) for own in values]
        columns[f"{head}noised"] = [own.noised[0].tolist() for own in values]
        columns[f"{head}patched"] = [own.patched[0].ravel().tolist() for own in values]
        for where in first.swept:
            name = ".".join(map(str, where))
            columns[f"{head}swept.{name}"] = [own.swept[where][0].ravel().tolist() for own in values]
    return columns


def _draws(values: Any, draws: int) -> np.ndarray:
    """One case's flat values as (1, draws, n); n may be 0."""
    flat = np.asarray(values)
    if flat.dtype == object:  # numbers of which none is finite come back as nothing at all
        flat = flat.astype(float)
    return flat.reshape(1, draws, flat.size // draws)
