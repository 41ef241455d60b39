"""Metrics: what a run gives, read off the logits of its final token (equation 1 is the paper's)."""

from moetrace.metrics.metric import (
    LOGIT_DIFF,
    METRICS,
    PAPER,
    SUMS,
    Asked,
    Metric,
    MetricLike,
    Reading,
    as_metrics,
    check_foils,
    check_single,
)

__all__ = [
    "LOGIT_DIFF",
    "METRICS",
    "PAPER",
    "SUMS",
    "Asked",
    "Metric",
    "MetricLike",
    "Reading",
    "as_metrics",
    "check_foils",
    "check_single",
]
