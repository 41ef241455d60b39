"""What every trace gives: tidy rows, an effects matrix, a summary, a numerical floor, files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_choice
from moetrace.cases import CaseSet, case_keys
from moetrace.errors import ArgumentError, FewClustersWarning, NoCasesError
from moetrace.results.further import FurtherFigures, read_only
from moetrace.results.positions import positions_of
from moetrace.results.saved import Saved, write_saved
from moetrace.stats import sign_flip, summary_table
from moetrace.stats.flips import FlipStatistic

INTERVALS = ("percentile", "bca", "basic")
CORRECTIONS = (None, "max_t", "max_t_single", "holm", "bh")
STATISTICS = (None, "mean", "t")
_LEFT_OUT = ("failed_case_ids", "inactive_case_ids")  # of a provenance: traced, and not among the rows


class TraceResult(FurtherFigures):
    """Rescue (equation 4) of every site in every case.

    ``effects``: float64 (cases, sites), in the unit of the metric (logits for the paper's). ``sites``: a
    table with one row for each column of effects. ``by_draw``: float64 (cases, sites, draws), the effects of
    each draw of the corruption, whose mean they are; None where there was one.
    """

    kind: ClassVar[str] = "trace"
    site_columns: ClassVar[tuple[str, ...]] = ("layer",)

    def __init__(
        self,
        cases: pd.DataFrame,
        sites: pd.DataFrame,
        patched: np.ndarray,
        effects: np.ndarray,
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> None:
        self._cases, self._sites, self._patched = cases, sites, read_only(patched)
        self.effects: npt.NDArray[np.float64] = read_only(effects)
        self.failed = failed
        self.provenance = provenance

    def __len__(self) -> int:
        return len(self._cases)

    def _refuse_no_cases(self) -> None:
        """NoCasesError where there is nothing to choose by."""
        if not len(self):
            raise NoCasesError(
                "the trace holds no cases, so that no site is better than another; expected one case or "
                "more: take a larger subset, or see .failed for what became of them"
            )

    @property
    def cases(self) -> pd.DataFrame:
        """One row for each case: case_id, relation_id, [true, foil,] clean, noised, null_rescue."""
        return self._cases.copy()

    @property
    def sites(self) -> pd.DataFrame:
        """One row for each column of ``effects``."""
        return self._sites.copy()

    def subset(self, case_ids: Iterable[int] | CaseSet) -> Self:
        """The same trace of some of its cases, in the order given: nothing is run again.

        >>> discovery, validation = usable.split(seed=0)
        >>> trace.subset(discovery).best

        ``case_ids``: ids, or a CaseSet. Those that fell out stay in ``.failed``. :func:`moetrace.concat`
        joins traces. Errors: CaseMismatchError for an id that wasn't traced, DuplicateCaseError for one that
        stands twice.
        """
        left_out = {int(case_id) for name in _LEFT_OUT for case_id in self.provenance.get(name, [])}
        positions, others = positions_of(case_ids, self._cases.case_id.tolist(), left_out)
        facts = dict(self.provenance)
        for name in _LEFT_OUT:
            if name in facts:
                facts[name] = [case_id for case_id in facts[name] if case_id in others]
        cases = self._cases.iloc[positions].reset_index(drop=True)
        facts["case_ids"] = cases.case_id.tolist()
        failed = self.failed[self.failed.case_id.isin(others)].reset_index(drop=True)
        measured = {name: values[positions] for name, values in self._measured().items()}
        own = self._rebuilt(cases, measured, failed, facts)
        return own.with_draws(None if self.by_draw is None else self.by_draw[positions])

    def _measured(self) -> dict[str, np.ndarray]:
        """Every array that has a row for each case."""
        return {"patched": self._patched, "effects": self.effects}

    def _rebuilt(
        self,
        cases: pd.DataFrame,
        measured: dict[str, np.ndarray],
        failed: pd.DataFrame,
        provenance: dict[str, Any],
    ) -> Self:
        """A result of the same sites with other cases; ``measured``: as :meth:`_measured`."""
        return type(self)(cases, self._sites, failed=failed, provenance=provenance, **measured)

    @property
    def noise_floor(self) -> float:
        """What numerics alone can give, in logits; a smaller effect means nothing.

        The largest of three measurements: the absolute rescue of a null patch (a row patched with its own
        value: every case in the lowest traced layer, and one case in every traced layer), and the difference
        between the engine and plain forwards, in the self-check of the model and on a case of this trace.
        """
        null = self._cases.null_rescue.abs().max()
        checks = (self.provenance.get(name, 0.0) for name in ("self_check", "null_floor"))
        measured = [float(null), *map(float, checks)]
        return max(value for value in measured if value == value)

    @property
    def rows(self) -> pd.DataFrame:
        """Tidy: one row for each case and site, with clean, noised, patched and rescue in logits.

        Where the cases have their objects as text, columns true and foil follow relation_id.
        """
        n, m = self.effects.shape
        keys = self._cases[case_keys(self._cases)]
        cases = keys.loc[keys.index.repeat(m)].reset_index(drop=True)
        sites = self._sites.iloc[np.tile(np.arange(m), n)].reset_index(drop=True)
        values = pd.DataFrame(
            {
                "clean": np.repeat(self._cases.clean.to_numpy(), m),
                "noised": np.repeat(self._cases.noised.to_numpy(), m),
                "patched": self._patched.ravel(),
                "rescue": self.effects.ravel(),
            }
        )
        return pd.concat([cases, sites, values], axis=1)

    def summary(
        self,
        by: str | None = None,
        ci: str = "percentile",
        n_resamples: int = 5000,
        n_flips: int = 10000,
        seed: int = 0,
        cluster: str | None = None,
        correction: str | None = None,
        confidence: float = 0.95,
        statistic: FlipStatistic | None = None,
    ) -> pd.DataFrame:
        """Mean rescue of every site with its interval and test (section 4.3, Table 2).

        >>> layers.summary(cluster="relation_id", correction="max_t")

        One row for each site: its columns, then mean, positive_fraction, ci_low, ci_high (bootstrap of the
        mean, ``n_resamples``), p_value, p_adjusted where there is a ``correction``, and n. The defaults are
        the paper's.

        p_value is the paper's two-sided sign-flip test of the mean (Table 2, ``n_flips``) for the site by
        itself, whatever the other arguments but ``cluster``. p_adjusted accounts for the number of sites:

        - ``correction``: "max_t", family-wise by the step-down maximum of the same flips; "max_t_single", by
          the single-step maximum, never smaller; "holm", family-wise; "bh", the false discovery rate.
        - ``statistic``: whose maximum. None is "t", the studentised mean, where there are several sites. With
          "mean" the sites of the widest spread set the maximum and hide weaker, steadier ones. It changes no
          p_value: no flip changes a case's square, so t and the mean order a site's flips alike.

        ``by="relation_id"``: the same for each relation, which comes first; a correction is then over the
        sites within each. ``cluster="relation_id"``: whole relations are resampled and flipped, so that no p
        is below 2^(1 - relations); fewer than ten are a FewClustersWarning. Both together are refused, since
        the cases of one relation are one cluster.
        """
        return summarise(
            self.effects, self._sites, self._cases, by, cluster, ci=ci, n_resamples=n_resamples,
            n_flips=n_flips, seed=seed, correction=correction, confidence=confidence, statistic=statistic,
        )  # fmt: skip

    def by(self, column: str = "relation_id") -> pd.DataFrame:
        """Mean rescue, positive fraction and n of each group of cases and site (Table 5)."""
        as_choice(column, "column", ("relation_id",))
        tables = []
        for group, index in self._cases.groupby(column, sort=True).indices.items():
            own = self.effects[index]
            table = self.sites.assign(
                mean=own.mean(axis=0), positive_fraction=(own > 0).mean(axis=0), n=len(own)
            )
            table.insert(0, column, group)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    @classmethod
    def from_files(
        cls, rows: pd.DataFrame, cases: pd.DataFrame, failed: pd.DataFrame, provenance: dict[str, Any]
    ) -> TraceResult:
        """A result from what :meth:`save` wrote."""
        sites = rows[list(cls.site_columns)].drop_duplicates().reset_index(drop=True)
        shape = (len(cases), len(sites))
        patched = rows.patched.to_numpy().reshape(shape)
        return cls(cases, sites, patched, rows.rescue.to_numpy().reshape(shape), failed, provenance)

    def _saved_rows(self) -> pd.DataFrame:
        """What ``rows.parquet`` holds but for single draws."""
        return self.rows

    def save(self, folder: str | Path) -> None:
        """Write the tables (Parquet) and ``meta.json`` into a folder; ``mt.load`` reads and verifies them.

        >>> layers.save("runs/layers")

        All of it is written, or nothing: a process that is killed leaves the result that was there.
        ``folder``: new, empty, or with a result or a run of the same kind. ArgumentError where it is no path;
        RunFolderError where it is a file, holds something else, or can't be written.
        """
        tables = {"rows": self.saved_rows(), "cases": self._cases, "failed": self.failed}
        write_saved(folder, Saved(self.kind, tables, self.provenance))


def summarise(
    effects: npt.NDArray[np.float64],
    sites: pd.DataFrame,
    cases: pd.DataFrame,
    by: str | None = None,
    cluster: str | None = None,
    *,
    ci: str = "percentile",
    correction: str | None = None,
    statistic: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """:meth:`TraceResult.summary` of any effects.

    >>> summarise(rows[["specificity"]].to_numpy(), pd.DataFrame({"quantity": ["specificity"]}), rows)

    ``effects``: (cases, columns). ``sites``: a row for each column. ``cases``: a row for each case, with
    relation_id. ``options``: n_resamples, n_flips, seed and confidence.
    """
    as_choice(ci, "ci", INTERVALS)
    as_choice(correction, "correction", CORRECTIONS)
    as_choice(statistic, "statistic", STATISTICS)
    as_choice(by, "by", (None, "relation_id"))
    as_choice(cluster, "cluster", (None, "relation_id"))
    if by is not None and by == cluster:
        raise ArgumentError(
            f"by and cluster are both {by!r}: all cases of one relation are one cluster, which has no spread "
            "to resample. Give by= for each relation by itself, its cases independent, or cluster= for all "
            "relations together"
        )
    options |= {"ci": ci, "correction": correction, "statistic": statistic}
    heads = sites.reset_index(drop=True)
    if by is None:
        labels = None if cluster is None else cases[cluster].to_numpy()
        return pd.concat([heads, summary_table(effects, cluster=labels, **options)], axis=1)
    tables = []
    for relation, index in cases.reset_index(drop=True).groupby(by, sort=True).indices.items():
        table = pd.concat([heads, summary_table(effects[index], **options)], axis=1)
        table.insert(0, by, relation)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise_first(
    effects: npt.NDArray[np.float64],
    sites: pd.DataFrame,
    cases: pd.DataFrame,
    limit: int,
    *,
    correction: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """:func:`summarise` of the first ``limit`` columns, whose p_adjusted is over all of them.

    For tables of the best ones: they were chosen among all, and that is what a correction must account for.
    """
    as_choice(correction, "correction", CORRECTIONS)
    table = summarise(effects[:, :limit], sites.iloc[:limit], cases, **options)
    if correction is not None:
        own = {name: options[name] for name in ("n_flips", "seed", "cluster", "statistic") if name in options}
        p = adjusted_p_values(effects, cases, correction=correction, **own)
        table.insert(len(table.columns) - 1, "p_adjusted", p[:limit])
    return table


def adjusted_p_values(
    effects: npt.NDArray[np.float64],
    cases: pd.DataFrame,
    cluster: str | None = None,
    correction: str | None = None,
    **options: Any,
) -> npt.NDArray[np.float64]:
    """The p-values of a summary without its intervals, adjusted where there is a correction.

    ``options``: n_flips, seed and statistic. NaN where there are fewer than two cases.
    """
    as_choice(correction, "correction", CORRECTIONS)
    as_choice(cluster, "cluster", (None, "relation_id"))
    if len(effects) < 2 or not effects.shape[1]:
        return np.full(effects.shape[1], np.nan)
    labels = None if cluster is None else cases[cluster].to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewClustersWarning)  # the summary beside it says so
        found = sign_flip(effects, cluster=labels, correction=correction, **options)  # type: ignore[arg-type]
    return np.asarray(found.p_value if correction is None else found.p_adjusted)
