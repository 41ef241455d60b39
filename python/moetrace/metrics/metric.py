"""What is read off a run's final token: named metrics, and a user's function of logits.

Where objects have several tokens, metrics of an object are of its sum of log-probabilities under teacher
forcing: ln p(object | prompt) = sum of ln p(token i | prompt, tokens before i), each read in a run that goes
on with the object's own tokens. ``logit_diff`` is then the difference of the two sums: of single tokens the
same number, since the normaliser cancels (equation 1). Metrics of a distribution (``kl``, a user's function)
stay those of the token behind the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moetrace.arguments import as_choice, as_list, nearest, refuse_type, shown
from moetrace.errors import ArgumentError, MetricError, NoFoilError
from moetrace.functions import call_for_case, function_digest, function_name

if TYPE_CHECKING:
    import torch

    from moetrace.cases import Case


@dataclass(frozen=True)
class Reading:
    """Rows of one case that are read out, each the final token of a run.

    ``pair``: float64 (rows, 2), logits of the true and the foil object; where a case has no foil, of another
    token. ``whole``: (rows, vocabulary) float32 or float64, None unless a metric needs it. ``clean``: the
    clean run's, (vocabulary,), None unless a metric needs it. ``sums``: float64 (rows,), by object the sum of
    its tokens' log-probabilities under teacher forcing, where the run goes on with them.
    """

    case: Case
    pair: torch.Tensor
    whole: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> torch.Tensor:
        """Logits of the whole vocabulary, float64."""
        assert self.whole is not None
        return self.whole.double()


@dataclass(frozen=True)
class Metric:
    """One number of a run.

    ``unit``: of its values and rescues. ``whole``: needs the logits of the whole vocabulary; ``needs_foil``,
    ``needs_clean``: a foil object, the clean run's distribution. ``upward``: larger is nearer to recall.
    ``smooth``: a small change of logits changes it little, so that engines can be compared by it.
    ``of_sums``: the metric of the true object's and the foil's sums of log-probabilities, for objects of
    several tokens; None where it is of the distribution behind the prompt. ``single``: it is of single tokens
    alone.
    """

    name: str
    unit: str
    of: Callable[[Reading], torch.Tensor]
    whole: bool = True
    needs_foil: bool = False
    needs_clean: bool = False
    upward: bool = True
    smooth: bool = True
    code: str = ""  # of a user's function: a digest
    of_sums: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    single: bool = False

    def facts(self) -> str | dict[str, str]:
        """What tells it from others, as JSON values."""
        return {"name": self.name, "code": self.code} if self.code else self.name


def logit_diff(given: Reading) -> torch.Tensor:
    """Logit of the true object minus that of the foil (equation 1)."""
    return given.pair[:, 0] - given.pair[:, 1]


def prob_ratio(given: Reading) -> torch.Tensor:
    """Probability of the true object over that of the foil: the exponential of the logit difference."""
    return logit_diff(given).exp()


def logprob(given: Reading) -> torch.Tensor:
    """Natural logarithm of the true object's probability over the whole vocabulary."""
    logits = given.logits
    return logits[:, given.case.true_id] - logits.logsumexp(dim=1)


def prob(given: Reading) -> torch.Tensor:
    """Probability of the true object over the whole vocabulary."""
    return logprob(given).exp()


def kl(given: Reading) -> torch.Tensor:
    """Kullback-Leibler divergence D(clean || run) of the next token's distribution, in nats: 0 when clean."""
    assert given.clean is not None
    clean = given.clean.double().log_softmax(dim=0)
    return (clean.exp() * (clean - given.logits.log_softmax(dim=1))).sum(dim=1)


def rank(given: Reading) -> torch.Tensor:
    """One more than the tokens with a larger logit than the true object's: 1 is the prediction."""
    logits = given.logits
    return 1.0 + (logits > logits[:, given.case.true_id, None]).sum(dim=1).double()


def _sum_of(which: str) -> Callable[[Reading], torch.Tensor]:
    return lambda given: given.sums[which]


# What is read of objects of several tokens; metrics are made of both.
SUMS = tuple(Metric(f"{which} object", "nats", _sum_of(which)) for which in ("true", "foil"))

LOGIT_DIFF = Metric(
    "logit_diff",
    "logits",
    logit_diff,
    whole=False,
    needs_foil=True,
    of_sums=lambda true, foil: true - foil,
)
METRICS = {
    metric.name: metric
    for metric in (
        LOGIT_DIFF,
        Metric("logprob", "nats", logprob, of_sums=lambda true, _: true),
        Metric("prob", "probability", prob, of_sums=lambda true, _: np.exp(true)),
        Metric(
            "prob_ratio",
            "ratio of probabilities",
            prob_ratio,
            whole=False,
            needs_foil=True,
            of_sums=lambda true, foil: np.exp(true - foil),
        ),
        Metric("kl", "nats", kl, needs_clean=True, upward=False),
        Metric("rank", "ranks", rank, upward=False, smooth=False, single=True),
    )
}
EXPECTED = f"{', '.join(map(repr, METRICS))}, a function of (logits, case), or a list of them"
MetricLike = str | Callable[..., Any] | Sequence[str | Callable[..., Any]]


@dataclass(frozen=True)
class Asked:
    """The metrics that a user asks for, each once. ``several``: as a list, so that a list is given back."""

    metrics: tuple[Metric, ...]
    several: bool = False

    @property
    def names(self) -> list[str]:
        """Their names, in order."""
        return [metric.name for metric in self.metrics]


PAPER = Asked((LOGIT_DIFF,))


def as_metrics(metric: Any) -> Asked:
    """The metrics that a user names.

    >>> as_metrics(["logit_diff", "prob"]).names
    ['logit_diff', 'prob']
    """
    if isinstance(metric, Asked):
        return metric
    alone = isinstance(metric, str | Metric) or callable(metric)
    given = [metric] if alone else as_list(metric, "metric", EXPECTED)
    if not given:
        raise ArgumentError(f"metric is an empty list; expected {EXPECTED}")
    found = tuple(map(_as_metric, given))
    names = [own.name for own in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(
            f"metric has {twice[0]!r} twice, and tables name metrics by it; expected each name once: give "
            "functions other names (def, or __name__)"
        )
    return Asked(found, not alone)


def _as_metric(metric: Any) -> Metric:
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in METRICS:
            near = nearest(metric, METRICS)
            raise ArgumentError(f"metric is {shown(metric)}{near}; expected {EXPECTED}")
        return METRICS[as_choice(metric, "metric", tuple(METRICS))]
    if callable(metric) and not isinstance(metric, type):
        return function_metric(metric)
    refuse_type(metric, "metric", EXPECTED)


def function_metric(function: Callable[..., Any]) -> Metric:
    """A user's function of (logits, case) as a metric.

    >>> mt.trace_layers(model, cases, metric=lambda logits, case: logits[:, case.true_id])

    ``logits``: float32 or float64 (rows, vocabulary), the final tokens of some runs of one case; it returns
    one number for each row, as a tensor, an array or a list. It should depend on its arguments alone. Larger
    counts as nearer to recall.
    """
    name = function_name(function)
    if name in METRICS:
        raise ArgumentError(
            f"the metric function {name!r} has the name of a metric of moetrace; give it another name"
        )

    def values(given: Reading) -> torch.Tensor:
        import torch

        assert given.whole is not None
        rows = len(given.whole)
        found = call_for_case(
            function,
            (given.whole.clone(), given.case),
            given.case.case_id,
            MetricError,
            f"the metric function {name!r}",
            "a function of (logits (rows, vocabulary), case) that gives a number for each row",
        )
        try:
            own = torch.as_tensor(found).to("cpu", torch.float64)
            own = own if given.whole.requires_grad else own.detach()  # its gradient is asked for
        except (TypeError, ValueError, RuntimeError):
            raise MetricError(
                f"the metric function {name!r} returned {shown(found)} ({type(found).__name__}) for case "
                f"{given.case.case_id}; expected {rows} numbers, one for each row of logits"
            ) from None
        if own.shape != (rows,):
            raise MetricError(
                f"the metric function {name!r} returned shape {tuple(own.shape)} for logits of shape "
                f"{tuple(given.whole.shape)} (case {given.case.case_id}); expected ({rows},), one number for "
                "each row"
            )
        return own

    return Metric(name, name, values, smooth=False, code=function_digest(function))


def check_foils(metrics: Sequence[Metric], cases: Sequence[Case]) -> None:
    """NoFoilError where a metric compares with a foil and cases have none."""
    wanting = [metric.name for metric in metrics if metric.needs_foil]
    without = [case.case_id for case in cases if case.foil_id is None]
    if wanting and without:
        raise NoFoilError(
            f"metric {wanting[0]!r} compares the true object with a foil, and {len(without)} of {len(cases)} "
            f"cases have none: case ids {_few(without)}; expected a foil_id, or a metric of the true object "
            "alone: metric='logprob', 'prob', 'kl' or 'rank'"
        )


def check_single(metrics: Sequence[Metric], cases: Sequence[Case]) -> None:
    """MetricError where a metric is of objects of one token, and cases have objects of several."""
    single = [metric.name for metric in metrics if metric.single]
    longer = [case.case_id for case in cases if case.several_tokens]
    if single and longer:
        raise MetricError(
            f"metric {single[0]!r} is of objects of one token, and {len(longer)} of {len(cases)} cases have "
            f"objects of several: case ids {_few(longer)}; expected single tokens, or a metric of sums of "
            "log-probabilities: metric='logit_diff', 'logprob', 'prob' or 'prob_ratio'"
        )


def _few(case_ids: Sequence[int]) -> str:
    return ", ".join(map(str, case_ids[:20])) + (", …" if len(case_ids) > 20 else "")
