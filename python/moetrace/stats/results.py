"""What the statistics return: small frozen results that read well and turn into a table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Value = float | npt.NDArray[np.float64]
Count = int | npt.NDArray[np.int64]
_ROWS = 20  # of a table in a notebook


class _Result:
    """Scalars where a vector was given, arrays with an entry for each column where a matrix was."""

    _per_column: tuple[str, ...] = ()

    def frame(self) -> pd.DataFrame:
        """One row for each hypothesis, one column for each field that differs between them."""
        import pandas as pd

        values = {name: getattr(self, name) for name in self._per_column}
        return pd.DataFrame(
            {name: np.atleast_1d(value) for name, value in values.items() if value is not None}
        )

    def _settings(self) -> str:
        names = [field.name for field in fields(self) if field.name not in self._per_column]  # type: ignore[arg-type]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def __repr__(self) -> str:
        name = type(self).__name__
        if np.ndim(getattr(self, self._per_column[0])):
            table = self.frame()
            return f"{name}({len(table)} columns, {self._settings()})\n{table}"
        shown = ", ".join(
            f"{field}={_short(value)}"
            for field in self._per_column
            if (value := getattr(self, field)) is not None
        )
        return f"{name}({shown}, {self._settings()})"

    def _repr_html_(self) -> str:
        """The first rows, and with what they were made: correction, confidence, statistic."""
        table = self.frame()
        more = f"; the first {_ROWS} of {len(table)} rows" if len(table) > _ROWS else ""
        heading = escape(f"{type(self).__name__} ({self._settings()}{more})")
        shown = table.head(_ROWS).to_html(index=False, float_format="%.4g", border=0)
        return f"<p><b>{heading}</b></p>\n{shown}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class BootstrapResult(_Result):
    """A statistic with its bootstrap interval."""

    estimate: Value
    ci_low: Value
    ci_high: Value
    standard_error: Value
    n: Count
    statistic: str
    ci: str
    confidence: float
    n_resamples: int
    seed: int
    n_clusters: int | None = None
    two_stage: bool = False

    _per_column = ("estimate", "ci_low", "ci_high", "standard_error", "n")


@dataclass(frozen=True, eq=False, repr=False)
class SignFlipResult(_Result):
    """Two-sided p-values of the hypothesis that effects are symmetric around zero.

    ``exact`` says that every assignment of signs was visited; ``n_flips`` is then their number.
    ``observed`` is the statistic of the test: the mean, or t.
    """

    estimate: Value
    observed: Value
    p_value: Value
    p_adjusted: Value | None
    n: Count
    exact: bool
    n_flips: int
    statistic: str
    correction: str | None
    seed: int
    n_clusters: int | None = None

    _per_column = ("estimate", "observed", "p_value", "p_adjusted", "n")


@dataclass(frozen=True, eq=False, repr=False)
class AdjustResult(_Result):
    """P-values adjusted for their number."""

    p_value: Value
    p_adjusted: Value
    method: str
    n: int

    _per_column = ("p_value", "p_adjusted")


@dataclass(frozen=True, eq=False, repr=False)
class RankResult(_Result):
    """Rank of the selected candidate among the active ones of each case (Table 10).

    NaN where a case could not be ranked. ``percentile`` is 1 for the best and 0 for the worst candidate.
    """

    rank: npt.NDArray[np.float64]
    percentile: npt.NDArray[np.float64]
    candidates: npt.NDArray[np.int64]
    tied: npt.NDArray[np.int64]
    n: int
    n_ranked: int
    top_1: int
    top_2: int
    n_tied: int
    mean_rank: float
    mean_percentile: float
    ties: str

    _per_column = ("rank", "percentile", "candidates", "tied")


def unwrap(values: npt.NDArray[Any], scalar: bool) -> Any:
    """The only entry where a vector was given; else a read-only array."""
    if scalar:
        return values[0].item()
    values = np.asarray(values)
    values.flags.writeable = False
    return values
