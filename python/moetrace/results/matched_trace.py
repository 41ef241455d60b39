"""An expert against its gate-weight-matched control (appendix C)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd

from moetrace.results.trace_result import TraceResult

SITES = (("selected", "raw"), ("matched", "raw"), ("selected", "equal_norm"), ("matched", "equal_norm"))


class MatchedTrace(TraceResult):
    """Rescue of an expert and of its matched control, raw and at equal norm, on anchor-active cases.

    >>> pairs = mt.trace_matched(model, validation, "L44E069")
    >>> pairs.table()

    ``cases`` also has the control expert of each case, and weight and norm of both.
    """

    kind: ClassVar[str] = "matched"
    site_columns: ClassVar[tuple[str, ...]] = ("layer", "role", "scaling")

    @property
    def star(self) -> str:
        """The expert, as "L44E069"."""
        return str(self.provenance["star"])

    def table(self, **summary: Any) -> pd.DataFrame:
        """Selected rescue, matched control and specificity (equation 9), raw and equal-norm (Tables 9, 11).

        ``summary``: arguments of :meth:`summary` but ``by``, ``cluster`` and ``correction``.
        """
        from moetrace.stats import summary_table

        column = {site: index for index, site in enumerate(SITES)}
        values, names = [], []
        for scaling in ("raw", "equal_norm"):
            selected = self.effects[:, column["selected", scaling]]
            matched = self.effects[:, column["matched", scaling]]
            values += [selected, matched, selected - matched]
            names += [(quantity, scaling) for quantity in ("selected", "matched", "specificity")]
        options: dict[str, Any] = {
            "ci": "percentile",
            "n_resamples": 5000,
            "n_flips": 10000,
            "seed": 0,
        } | summary
        table = summary_table(np.stack(values, axis=1), **options)
        heads = pd.DataFrame(names, columns=["quantity", "scaling"])
        return pd.concat([heads, table.reset_index(drop=True)], axis=1)

    def __repr__(self) -> str:
        raw = self.effects[:, 0] - self.effects[:, 1]
        equal = self.effects[:, 2] - self.effects[:, 3]
        return (
            f"MatchedTrace({self.star} on {len(self)} active cases: specificity {raw.mean():+.3f} raw, "
            f"{equal.mean():+.3f} at equal norm)"
        )

    def _repr_html_(self) -> str:
        from moetrace.results.display import result_html

        return result_html(repr(self), self.table(), self.failed)
