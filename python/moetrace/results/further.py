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
    def _toward_recall(self) -> int:
        """1, or -1 where a smaller value of the metric is nearer to the clean run (kl, rank)."""
        known = METRICS.get(self.metric)
        return -1 if known is not None and not known.upward else 1

    def normalised(self, **options: Any) -> pd.DataFrame:
        """How much of what the corruption took is given back: (patched - noised) / (clean - noised).

        >>> layers.normalised(cluster="relation_id")

        The ratio of means over cases, 1 where all comes back, with its bootstrap interval, cases resampled
        with both: ratio, ci_low, ci_high and n for each site. The mean of single cases' ratios has no use,
        since some cases lose next to nothing. It means the same in every metric. ``options``: ci, confidence,
        n_resamples, seed, and cluster="relation_id". StatisticsError where the mean drop is zero.
        """
        cluster = as_choice(options.pop("cluster", None), "cluster", (None, "relation_id"))
        labels = None if cluster is None else self._cases[cluster].to_numpy()
        taken = drop(self._cases.clean.to_numpy()[:, None], self._noised_of_sites())
        taken = np.broadcast_to(taken, self.effects.shape)
        found = ratio_of_means(self.effects, taken, cluster=labels, **options)
        table = found.frame()[["estimate", "ci_low", "ci_high"]].rename(columns={"estimate": "ratio"})
        return pd.concat([self._sites.copy(), table.assign(n=len(self._cases))], axis=1)

    def _noised_of_sites(self) -> npt.NDArray[np.float64]:
        """The noised run that each site's rescue is against: (cases, sites) or (cases, 1)."""
        return np.asarray(self._cases.noised)[:, None]

    def variance_components(self) -> pd.DataFrame:
        """Variance of the rescue between cases and within them, between draws of the corruption.

        >>> mt.trace_layers(model, cases, noise=mt.SubjectNoise(draws=8)).variance_components()

        One row for each site: mean, between, within, icc, draws_share, standard_error (see
        :func:`moetrace.effects.variance_components`), n and draws. ArgumentError for a trace of one draw.
        """
        if self.by_draw is None:
            raise ArgumentError(
                "this trace has one draw of the corruption for each case; expected several, as with "
                "noise=mt.SubjectNoise(draws=8)"
            )
        found = pd.DataFrame(asdict(variance_components(self.by_draw)))
        found = found.assign(n=len(self._cases), draws=self.by_draw.shape[2])
        return pd.concat([self._sites.copy(), found], axis=1)

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
