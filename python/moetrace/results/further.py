"""What every trace gives beyond its rescues: normalised ones, and how far single draws can be trusted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from typing_extensions import Self

from moetrace.arguments import as_choice
from moetrace.effects import drop, ratio_of_means, variance_components
from moetrace.errors import ArgumentError
from moetrace.metrics import LOGIT_DIFF, METRICS

DRAW = "rescue_draw_"  # of saved rows: columns of single draws


class FurtherFigures:
    """A part of :class:`moetrace.results.base.TraceResult`."""

    effects: npt.NDArray[np.float64]
    provenance: dict[str, Any]
    by_draw: npt.NDArray[np.float64] | None = None
    _cases: pd.DataFrame
    _sites: pd.DataFrame

    def with_draws(self, effects: np.ndarray | None) -> Self:
        """This result, with the effects of each draw kept: (cases, sites, draws); one draw says no more."""
        many = effects is not None and effects.shape[2] > 1
        self.by_draw = read_only(effects) if effects is not None and many else None
        return self

    @property
    def metric(self) -> str:
        """Name of the metric that clean, noised, patched and rescue are values of."""
        return str(self.provenance.get("metric", LOGIT_DIFF.name))

    @property
    def unit(self) -> str:
        """The metric's unit; of a user's function its name."""
        known = METRICS.get(self.metric)
        return self.metric if known is None else known.unit

    @property
    def noises(self) -> bool:
        """Whether noised values were put into the clean run (``mode="noise"``)."""
        return self.provenance.get("mode") == "noise"

    @property
    def _toward_recall(self) -> int:
        """1, or -1 where a smaller value of the metric is nearer to the clean run (kl, rank); the other way
        round where noised values were put into the clean run, and the largest loss is what matters."""
        known = METRICS.get(self.metric)
        toward = -1 if known is not None and not known.upward else 1
        return -toward if self.noises else toward

    def normalised(self, **options: Any) -> pd.DataFrame:
        """How much of what the corruption took is given back: (patched - noised) / (clean - noised).

        Of noised values in the clean run: how much of it they take by themselves,
        (clean - patched) / (clean - noised).

        >>> layers.normalised(cluster="relation_id")

        The ratio of means over cases, 1 where all comes back, with its bootstrap interval, cases resampled
        with both: ratio, ci_low, ci_high and n for each site. The mean of single cases' ratios has no use,
        since some cases lose next to nothing. It means the same in every metric. NaN where a map over
        positions has one case alone. ``options``: ci, confidence, n_resamples, seed, and
        cluster="relation_id". StatisticsError where the mean drop is zero.
        """
        cluster = as_choice(options.pop("cluster", None), "cluster", (None, "relation_id"))
        labels = None if cluster is None else self._cases[cluster].to_numpy()
        taken = drop(self._cases.clean.to_numpy()[:, None], self._noised_of_sites())
        taken = np.broadcast_to(-taken if self.noises else taken, self.effects.shape)
        counts = self._there().sum(axis=0)
        many = np.flatnonzero(counts > 1) if len(self._cases) > 1 else np.arange(len(counts))
        found = ratio_of_means(self.effects[:, many], taken[:, many], cluster=labels, nan="omit", **options)
        table = found.frame()[["estimate", "ci_low", "ci_high"]].rename(columns={"estimate": "ratio"})
        table = table.set_axis(many).reindex(range(len(counts))).assign(n=counts)
        return pd.concat([self._sites.copy(), table], axis=1)

    def _there(self) -> npt.NDArray[np.bool_]:
        """(cases, sites): whether a case has the site at all; in a map over positions some are too short."""
        return ~np.isnan(self.effects)

    def _noised_of_sites(self) -> npt.NDArray[np.float64]:
        """The noised run that each site's rescue is against: (cases, sites) or (cases, 1)."""
        return np.asarray(self._cases.noised)[:, None]

    def variance_components(self) -> pd.DataFrame:
        """Variance of the rescue between cases and within them, between draws of the corruption.

        >>> mt.trace_layers(model, cases, noise=mt.SubjectNoise(draws=8)).variance_components()

        One row for each site: mean, between, within, icc, draws_share, standard_error (see
        :func:`moetrace.effects.variance_components`), n and draws. ArgumentError for a trace of one draw, and
        for a result that holds means over its draws alone.
        """
        if self.by_draw is None:
            raise ArgumentError(self._without_draws())
        there, parts = self._there(), []
        for who in np.unique(there, axis=1).T:  # sites that the same cases have
            columns = np.flatnonzero((there == who[:, None]).all(axis=0))
            own = pd.DataFrame(asdict(variance_components(self.by_draw[who][:, columns])), index=columns)
            parts.append(own.assign(n=int(who.sum()), draws=self.by_draw.shape[2]))
        found = pd.concat(parts).sort_index() if parts else pd.DataFrame()
        return pd.concat([self._sites.copy(), found], axis=1)

    def _without_draws(self) -> str:
        """Why there are no single draws, and what to do."""
        facts = self.provenance.get("corruption") or self.provenance.get("noise") or {}
        draws = facts.get("draws", 1) if isinstance(facts, dict) else 1
        if draws == 1:
            return (
                "this trace has one draw of the corruption for each case; expected several, as with "
                "noise=mt.SubjectNoise(draws=8)"
            )
        return (
            f"this {type(self).__name__} was traced with {draws} draws for each case and holds their means "
            "alone; trace_layers and trace_experts of the same cases keep single draws, and so do their maps"
        )

    def _saved_rows(self) -> pd.DataFrame:
        raise NotImplementedError

    def saved_rows(self) -> pd.DataFrame:
        """What ``rows.parquet`` holds: the rows, and the rescue of each draw where there are several."""
        draws = [] if self.by_draw is None else [*np.moveaxis(self.by_draw, 2, 0)]
        return self._saved_rows().assign(**{f"{DRAW}{at}": own.ravel() for at, own in enumerate(draws)})


def read_only(values: np.ndarray) -> np.ndarray:
    """The same values, not to be written to: figures and files must stay what was measured."""
    view = values.view()
    view.flags.writeable = False
    return view
