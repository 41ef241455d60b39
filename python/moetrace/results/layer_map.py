"""The layer sweep at several positions: layer x position (section 3.3; Meng et al. 2022, figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import as_choice
from moetrace.results.display import sites_html
from moetrace.results.further import read_only
from moetrace.results.layers import LayerTrace, Sharpness
from moetrace.results.map_pictures import plot_case, plot_positions
from moetrace.results.map_sites import at_position, map_from_rows, of_all, with_positions
from moetrace.results.pictures import of_its_metric
from moetrace.results.roles import ROLES, by_role, roles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VALUES = ("patched", "rescue", "direct", "direct_linear")


class LayerMap(LayerTrace):
    """Rescue of the clean block output at each layer and position.

    >>> where = mt.trace_layers(model, cases, position="all")
    >>> where.plot(), where.roles().summary()                   # averaged by the token's role
    >>> where.plot(case=7, tokenizer=tokenizer)                 # one prompt, its tokens on the axis
    >>> named = mt.trace_layers(model, cases, position=["subject_last", "last"])
    >>> named.best, named.best_position, named.at("last").best

    A site is a layer and a position: an index for ``position="all"`` and lists of indices, else a name.
    ``effects``: float64 (cases, sites), logits; NaN where a prompt is too short to have the token, and such
    cases have no row in ``rows`` and don't count in ``summary`` (``n``). Tokens before the subject are the
    same in clean and noised run: of "all" their rescue is exactly 0, and nothing is run for them.
    ``tokens``: int64 (cases, sites), the token's index, the last one of a position with several; -1 where
    there is none. Direct effects are 0 but where the final token is among the patched ones: a patch before it
    reaches the logits through later layers alone.
    """

    site_columns: ClassVar[tuple[str, ...]] = ("layer", "position")
    nothing: ClassVar[dict[str, float]] = {"": np.nan}  # where there is no token

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
        tokens: np.ndarray,
        direct: np.ndarray | None = None,
        direct_linear: np.ndarray | None = None,
    ) -> None:
        super().__init__(cases, sites, patched, effects, failed, provenance, direct, direct_linear)
        self.tokens: npt.NDArray[np.int64] = read_only(np.asarray(tokens, dtype=np.int64))

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> LayerMap:
        """As :meth:`save` wrote it."""
        sites, tokens, values = map_from_rows(rows, cls.site_columns, _VALUES, len(cases))
        effects = values.pop("rescue")
        return cls(
            cases, sites, effects=effects, failed=failed, provenance=provenance, tokens=tokens, **values
        )

    def _measured(self) -> dict[str, np.ndarray]:
        return {**super()._measured(), "tokens": self.tokens}

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: as of a layer trace, with the position and the token's index; none where a case lacks it."""
        rows = self._saved_rows()
        return rows[rows.token >= 0].reset_index(drop=True)

    def _saved_rows(self) -> pd.DataFrame:
        return with_positions(super().rows, self.tokens)

    @property
    def cases(self) -> pd.DataFrame:
        """One row for each case: as of a layer trace, and subject_start, subject_stop and input_ids."""
        return super().cases

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers traced, in the order of the sites."""
        return tuple(int(layer) for layer in self._sites.layer.drop_duplicates())

    @property
    def positions(self) -> list[Any]:
        """The positions traced: indices, or names."""
        return list(self._sites.position.drop_duplicates().tolist())

    @property
    def best(self) -> int:
        """The layer of the highest mean rescue over layers and positions (for kl and rank, and with
        ``mode="noise"``, the lowest); of equal ones the lowest.

        Of positions that every case has alone: the mean of an index that only long prompts have is over
        other cases. Of ``position="all"`` and prompts of several lengths that leaves out the ends of the
        longer ones, final tokens among them: ``roles().best`` compares tokens of the same role.
        """
        return int(self._sites.layer.iloc[self._best])

    @property
    def best_position(self) -> Any:
        """The position of the same."""
        return self._sites.position.tolist()[self._best]

    @property
    def _best(self) -> int:
        self._refuse_no_cases()
        shared = (self.tokens >= 0).all(axis=0)
        means = np.where(shared, self._toward_recall * self._means(), np.nan)
        return int(np.flatnonzero(means == np.nanmax(means))[0])

    def _means(self) -> npt.NDArray[np.float64]:
        """Mean rescue of each site over the cases that have it; NaN where none has."""
        n = (~np.isnan(self.effects)).sum(axis=0)
        sums = np.nansum(self.effects, axis=0)
        return np.where(n > 0, sums / np.maximum(n, 1), np.nan)

    def at(self, position: Any) -> LayerTrace:
        """One position as a layer trace by itself, of the cases that have it.

        >>> named.at("subject_last").sharpness()

        ArgumentError for a position that wasn't traced.
        """
        columns, there, facts, cases = at_position(self, position)
        measured = {name: values[np.ix_(there, columns)] for name, values in super()._measured().items()}
        sites = self._sites.iloc[columns][["layer"]].reset_index(drop=True)
        found = LayerTrace(cases, sites, failed=self.failed, provenance=facts, **measured)
        return found.with_draws(None if self.by_draw is None else self.by_draw[np.ix_(there, columns)])

    def roles(self) -> LayerMap:
        """The same by the role of the token: of each case the mean over its tokens of a role.

        >>> where.roles().summary()

        Positions are then "prefix", "first subject", "middle subject", "last subject", "first after",
        "further" and "last token" (Meng et al. 2022, figure 1), those that occur; ``tokens`` are those
        of the first token of the role. ArgumentError unless the trace is of ``position="all"``.
        """
        of_all(self)
        layers = np.array(self.layers)
        groups = np.searchsorted(np.sort(layers), self._sites.layer)
        numbers = roles_of(self.tokens, self._cases)
        measured = {
            name: by_role(np.asarray(values, dtype=float), numbers, groups)
            for name, values in super()._measured().items()
        }
        firsts = np.full(measured["effects"].shape, -1, dtype=np.int64)
        for column in range(self.tokens.shape[1] - 1, -1, -1):  # the first overwrites those behind it
            known = np.flatnonzero(numbers[:, column] >= 0)
            firsts[known, groups[column] * len(ROLES) + numbers[known, column]] = self.tokens[known, column]
        pairs = [(layer, role) for layer in np.sort(layers).tolist() for role in ROLES]
        sites = pd.DataFrame(pairs, columns=["layer", "position"])
        some = np.flatnonzero((firsts >= 0).any(axis=0))
        found = LayerMap(
            self._cases,
            sites.iloc[some].reset_index(drop=True),
            failed=self.failed,
            provenance={**self.provenance, "position": "roles"},
            tokens=firsts[:, some],
            **{name: values[:, some] for name, values in measured.items()},
        )
        if self.by_draw is None:
            return found
        each = [by_role(own, numbers, groups)[:, some] for own in np.moveaxis(self.by_draw, 2, 0)]
        return found.with_draws(np.stack(each, axis=2))

    def sharpness(self) -> Sharpness:
        """Of the best position: top layer, next layer and their gap (Table 6)."""
        return self.at(self.best_position).sharpness()

    @of_its_metric
    def plot(  # type: ignore[override]
        self,
        ax: Axes | None = None,
        kind: str = "heatmap",
        case: int | None = None,
        tokenizer: Any = None,
        **summary: Any,
    ) -> Axes:
        """Layer x position, mean rescue; of ``position="all"`` averaged by the token's role.

        >>> where.plot()
        >>> where.plot(case=7, tokenizer=tokenizer)

        ``case``: one case by its id, its tokens on the axis: as text where a ``tokenizer`` is given, else by
        id; those of the subject have an asterisk. Dots: the test of a mean is below 0.05, corrected over all
        cells ("max_t" unless given). ``summary``: arguments of :meth:`summary`. ``kind``: "heatmap";
        :meth:`at` has curves. Needs matplotlib.
        """
        as_choice(kind, "kind", ("heatmap",))
        if case is not None:
            return plot_case(self, case, tokenizer, ax)
        shown = self.roles() if self.provenance.get("position") == "all" else self
        return plot_positions(shown, {"correction": "max_t", **summary}, ax)

    def __repr__(self) -> str:
        sites = f"{len(self)} cases x {len(self.layers)} layers x {len(self.positions)} positions"
        if not len(self):
            return f"LayerMap({sites})"
        return (
            f"LayerMap({sites}, best layer {self.best} at {self.best_position!r} with mean rescue "
            f"{self._means()[self._best]:+.3f}, numerical floor {self.noise_floor:.1e})"
        )

    def _repr_html_(self) -> str:
        return sites_html(self, "sites")
