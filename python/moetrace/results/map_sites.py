"""What maps over positions share: their sites, their rows, and what one position of them is."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moetrace.arguments import nearest, shown
from moetrace.errors import ArgumentError
from moetrace.results.base import TraceResult


def with_positions(rows: pd.DataFrame, tokens: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Rows of all cases and sites with the token's index behind the position."""
    rows = rows.copy()
    rows.insert(rows.columns.get_loc("position") + 1, "token", tokens.ravel())
    return rows


def map_from_rows(
    rows: pd.DataFrame, columns: Sequence[str], names: Sequence[str], cases: int
) -> tuple[pd.DataFrame, npt.NDArray[np.int64], dict[str, np.ndarray]]:
    """Sites, tokens and the named values of what a map saved."""
    width = len(rows) // max(1, cases)
    sites = rows[list(columns)].iloc[:width].reset_index(drop=True)
    values = {name: rows[name].to_numpy().reshape(cases, width) for name in names if name in rows}
    return sites, rows.token.to_numpy().reshape(cases, width), values


def at_position(
    trace: Any, position: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Any], pd.DataFrame]:
    """Of one position its columns, the cases that have it, the provenance and the table of these cases."""
    names = trace.positions
    matches = [name for name in names if type(name) is type(position) or isinstance(position, np.integer)]
    if position not in matches:
        near = nearest(position, [name for name in names if isinstance(name, str)])
        of_all = trace.provenance.get("position") == "all"
        roles = "; .roles() has them by the token's role" if of_all else ""
        raise ArgumentError(
            f"position {shown(position)} wasn't traced by that name{near}; expected one of {shown(names)}"
            + roles
        )
    columns = np.flatnonzero((trace.sites.position == position).to_numpy())
    there = np.flatnonzero((trace.tokens[:, columns] >= 0).all(axis=1))
    cases = trace.cases.iloc[there].drop(columns=["subject_start", "subject_stop", "input_ids"])
    facts = {
        **trace.provenance,
        "position": position.item() if isinstance(position, np.integer) else position,
    }
    facts["case_ids"] = cases.case_id.tolist()
    return columns, there, facts, cases.reset_index(drop=True)


def of_all(trace: TraceResult) -> None:
    """ArgumentError unless a map is of every token by itself."""
    if trace.provenance.get("position") != "all":
        raise ArgumentError(
            f"the trace is of position {shown(trace.provenance.get('position'))}; roles are of every token: "
            "trace with position='all'"
        )


def widened(parts: Sequence[Any]) -> list[Any]:
    """Maps of every token by itself on the sites of the longest prompt; other traces as they are."""
    maps = [part for part in parts if hasattr(part, "tokens") and part.provenance.get("position") == "all"]
    if len(maps) < len(parts):
        return list(parts)
    longest = max(maps, key=lambda part: int(part.sites.position.max())).sites
    return [part if len(part.sites) == len(longest) else _on(part, longest) for part in parts]


def _on(part: Any, sites: pd.DataFrame) -> Any:
    """A map on more sites, which its cases don't have."""
    keys = list(part.site_columns)
    place = {site: at for at, site in enumerate(sites[keys].itertuples(index=False, name=None))}
    columns = [place.get(site, -1) for site in part.sites[keys].itertuples(index=False, name=None)]
    if -1 in columns:
        return part  # of other layers: concat says so
    measured = {}
    for name, values in part._measured().items():
        nothing = -1 if name == "tokens" else part.nothing.get(name, part.nothing[""])
        wide = np.full((len(part), len(sites)), nothing, dtype=values.dtype)
        wide[:, columns] = values
        measured[name] = wide
    found = copy(part)
    found._sites = sites
    draws = None
    if part.by_draw is not None:
        draws = np.full((len(part), len(sites), part.by_draw.shape[2]), np.nan)
        draws[:, columns] = part.by_draw
    return found._rebuilt(part._cases, measured, part.failed, part.provenance).with_draws(draws)
