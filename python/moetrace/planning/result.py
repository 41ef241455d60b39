"""What a plan found, as a small frozen result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_choice
from moetrace.progress import clock
from moetrace.results.display import result_html
from moetrace.results.further import read_only
from moetrace.trace.memory import shown_bytes

_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


@dataclass(frozen=True, eq=False)
class Plan:
    """What a trace, or the whole protocol, will cost; see :func:`moetrace.plan`.

    >>> found = mt.plan(model, cases)
    >>> found.seconds, found.peak_memory, found.frame()

    Attributes:
        model, what: of what.
        tokens: of the prompts, each case once.
        rows: token rows, summed over layers; ``rows_by_layer``: int64 (layers,).
        flops: floating-point operations of the matrix products, two for each multiply-add.
        bytes_read: from disk: layers once for each pass over a streamed checkpoint, and what is loaded once.
        peak_memory: bytes of resident memory, the process itself and the weights included.
        seconds: NaN where nothing was timed.
        engine: that will serve, as far as it shows without the weights.
        batch_tokens: token rows of a batch.
        notes: what was assumed, a sentence each.
    """

    model: str
    what: str
    tokens: int
    rows: int
    rows_by_layer: npt.NDArray[np.int64]
    flops: float
    bytes_read: int
    peak_memory: int
    seconds: float
    engine: str
    batch_tokens: int
    notes: tuple[str, ...]
    stages: pd.DataFrame
    layers: pd.DataFrame

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows_by_layer", read_only(self.rows_by_layer))

    def frame(self, by: str = "stage") -> pd.DataFrame:
        """A row for each stage, or for each layer.

        ``by``: "stage" has columns stage, cases, forwards, tokens, rows, flops, bytes_read, seconds; "layer"
        has layer, routed, parameters, active (entries of matrices that a row meets), bytes, rows, flops.
        """
        chosen = as_choice(by, "by", ("stage", "layer"))
        return (self.stages if chosen == "stage" else self.layers).copy()

    def json(self) -> dict[str, Any]:
        """Everything as JSON values; what wasn't timed is None."""
        return {
            "model": self.model,
            "what": self.what,
            "tokens": self.tokens,
            "rows": self.rows,
            "rows_by_layer": self.rows_by_layer.tolist(),
            "flops": self.flops,
            "bytes_read": self.bytes_read,
            "peak_memory": self.peak_memory,
            "seconds": None if math.isnan(self.seconds) else self.seconds,
            "engine": self.engine,
            "batch_tokens": self.batch_tokens,
            "stages": [
                {name: None if value != value else value for name, value in row.items()}
                for row in self.stages.to_dict("records")
            ],
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The table of stages and what is known beside it, as lines."""
        table = _readable(self.stages).to_string(index=False)
        return "\n".join([self._title(), "", table, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def _title(self) -> str:
        return (
            f"{self.what} of {self.model}: {_time(self.seconds)}, {shown_bytes(self.peak_memory)} of memory, "
            f"{_flops(self.flops)}, {self.rows:,} token rows over {len(self.layers)} layers, "
            f"{shown_bytes(self.bytes_read)} read"
        )

    def __repr__(self) -> str:
        return f"Plan({self._title()})"

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return result_html(self._title(), _readable(self.stages), notes=self.notes)


def _readable(stages: pd.DataFrame) -> pd.DataFrame:
    """A table of stages with units, and all of them together."""
    table = stages.copy()
    if len(table) > 1:
        table.loc[len(table)] = {"stage": "all", **stages.drop(columns="stage").sum(skipna=False)}
    whole = {name: table[name].astype(int) for name in ("cases", "forwards", "tokens", "rows")}
    table = table.assign(**{name: values.map("{:,}".format) for name, values in whole.items()})
    table["flops"] = table.flops.map(_flops)
    table["bytes_read"] = table.bytes_read.map(shown_bytes)
    table["seconds"] = table.seconds.map(_time)
    return table.rename(columns={"bytes_read": "read", "seconds": "time"})


def _flops(count: float) -> str:
    size, unit = next(((size, unit) for size, unit in _UNITS if count >= size), (1.0, "FLOP"))
    return f"{count / size:.3g} {unit}"


def _time(seconds: float) -> str:
    """A time; of less than ten seconds with a digit behind the point."""
    if math.isnan(seconds):
        return "not timed"
    return f"{seconds:.1f} s" if seconds < 10 else f"{clock(seconds)}"
