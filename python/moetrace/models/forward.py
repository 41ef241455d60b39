"""One call of the model's own forward, read out at chosen rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.cases.forced import ForcedCase
from moetrace.counts import count_forward
from moetrace.errors import EngineError
from moetrace.metrics import LOGIT_DIFF, SUMS, Metric, Reading
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import HeadTap, Readout

if TYPE_CHECKING:
    from moetrace.cases import Case

LOGITS_AT_ONCE = 1 << 23  # logits of the whole vocabulary that are there at once
LastRows = Callable[[int], np.ndarray]  # of a count: int64 (batch, runs, count), the final row first


def accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments of the model's forward."""
    return frozenset(inspect.signature(model.forward).parameters)


def pair_of(case: Case, vocab_size: int) -> tuple[int, int]:
    """True and foil token; without a foil the next token of the vocabulary, for checks that need any."""
    return case.true_id, (case.true_id + 1) % vocab_size if case.foil_id is None else case.foil_id


@dataclass
class CleanRow:
    """The clean run's logits, (vocabulary,), kept from the first row that is read with it."""

    logits: torch.Tensor | None = None


def read_differences(
    anatomy: Anatomy,
    readout: Readout,
    inputs: dict[str, Any],
    rows: Sequence[int],
    cases: Sequence[Case],
    again: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Run the model and give true minus foil logits (equation 1) at ``rows``: float64 (batch, rows).

    Arguments: as :func:`read_metrics`.
    """
    return read_metrics(anatomy, readout, inputs, rows, cases, (LOGIT_DIFF,), again)[0]


def read_metrics(
    anatomy: Anatomy,
    readout: Readout,
    inputs: dict[str, Any],
    rows: Sequence[int],
    cases: Sequence[Case],
    metrics: Sequence[Metric],
    again: Callable[[], None] = lambda: None,
    joining: int = 0,
    clean: CleanRow | None = None,
    last_rows: LastRows | None = None,
) -> torch.Tensor:
    """Run the model and give metrics at ``rows``: float64 (metrics, batch, rows).

    ``cases``: of each sequence. ``clean``: where the clean run's logits are, or are to be kept; None for the
    first row of each sequence. The first row serves the check of the readout; where that fails ``again`` is
    called and the model run once more with its own head. ``joining``: token rows that join the pass after its
    start, for the count. The whole vocabulary is read only where a metric needs it. ``last_rows``: the rows
    of the same runs at the final positions, for sums of several tokens; by default those just before them.
    """
    objects = torch.tensor([pair_of(case, anatomy.vocab_size) for case in cases])
    forced, keep = None, torch.as_tensor(rows, dtype=torch.long)
    if any(metric in SUMS for metric in metrics):
        forced = _Forced.of(cases, last_rows or partial(_rows_before, rows, len(cases)))
        keep = forced.keep
    known = accepted(anatomy.model)
    call = {name: value for name, value in inputs.items() if value is not None}
    if "logits_to_keep" in known:
        call["logits_to_keep"] = keep.to(inputs["input_ids"].device)
    tap = HeadTap(readout, len(keep), keep)
    with _core.HookScope() as scope:
        scope.before(anatomy.head, tap)
        count_forward(inputs["input_ids"].numel() + joining)
        logits = anatomy.model(**call).logits
    if tap.hidden is None:
        raise EngineError(f"the head of {type(anatomy.model).__name__} was never called in a forward pass")
    if not readout.checked:
        readout.check(tap.hidden[:, 0].detach(), objects, _pick(logits[:, :1], objects)[:, 0].detach())
    if readout.own_head and tap.narrow:  # the check failed, here or in a forward beside this one
        again()
        return read_metrics(
            anatomy, readout, inputs, rows, cases, metrics, joining=joining, clean=clean, last_rows=last_rows
        )
    read = _OwnHead(logits) if readout.own_head else _Exact(readout, tap.hidden, logits.shape[-1])
    if forced is not None:
        return forced.measured(metrics, cases, objects, read, clean)
    if readout.own_head:
        pairs = _pick(logits, objects).double()
    else:
        batch, count, width = tap.hidden.shape
        tokens = objects.repeat_interleave(count, dim=0)
        pairs = readout(tap.hidden.reshape(-1, width), tokens).reshape(batch, count, 2)
    return _measured(metrics, cases, pairs, read, clean)


class _OwnHead:
    """The whole vocabulary's logits as the model gave them."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits, self.vocab = logits, logits.shape[-1]

    def __call__(self, index: int, rows: slice | torch.Tensor) -> torch.Tensor:
        """Rows of one sequence."""
        found = self._logits[index, rows]
        return found if found.dtype is torch.float64 else found.float()


class _Exact(_OwnHead):
    """The same from what enters the head."""

    def __init__(self, readout: Readout, hidden: torch.Tensor, vocab: int) -> None:
        self._readout, self._hidden, self.vocab = readout, hidden, vocab

    def __call__(self, index: int, rows: slice | torch.Tensor) -> torch.Tensor:
        """Rows of one sequence."""
        return self._readout.whole(self._hidden[index, rows], self.vocab)


def _measured(
    metrics: Sequence[Metric],
    cases: Sequence[Case],
    pairs: torch.Tensor,
    read: _OwnHead,
    clean: CleanRow | None,
) -> torch.Tensor:
    """Metrics of all rows, sequence by sequence."""
    found = torch.empty(len(metrics), *pairs.shape[:2], dtype=torch.float64)
    narrow = [place for place, metric in enumerate(metrics) if not metric.whole]
    whole = [place for place, metric in enumerate(metrics) if metric.whole]
    needs_clean = any(metric.needs_clean for metric in metrics)
    for index, case in enumerate(cases):
        for place in narrow:
            found[place, index] = metrics[place].of(Reading(case, pairs[index])).cpu()
        if not whole:
            continue
        reference = _reference(read, index, slice(0, 1), clean) if needs_clean else None
        for begin, end in _parts(pairs.shape[1], read.vocab):
            given = Reading(case, pairs[index, begin:end], read(index, slice(begin, end)), reference)
            for place in whole:
                found[place, index, begin:end] = metrics[place].of(given).cpu()
    return found.to(pairs.device)


def _rows_before(rows: Sequence[int], batch: int, count: int) -> np.ndarray:
    """The last rows of runs that are sequences of their own: (batch, rows, count)."""
    own = np.asarray(rows)[:, None] - np.arange(count)
    return np.broadcast_to(np.maximum(own, 0), (batch, *own.shape))


@dataclass(frozen=True)
class _Forced:
    """Which rows are read of sequences that go on with objects' tokens.

    ``keep``: all of them, ascending. ``at`` (batch, runs, count): of each run its last ones among these, the
    final one first.
    """

    keep: torch.Tensor
    at: torch.Tensor

    @staticmethod
    def of(cases: Sequence[Case], last_rows: LastRows) -> _Forced:
        rows = last_rows(1 + max(case.forced for case in cases if isinstance(case, ForcedCase)))
        keep, at = np.unique(rows, return_inverse=True)
        return _Forced(torch.from_numpy(keep), torch.from_numpy(at.reshape(rows.shape)))

    def measured(
        self,
        metrics: Sequence[Metric],
        cases: Sequence[Case],
        objects: torch.Tensor,
        read: _OwnHead,
        clean: CleanRow | None,
    ) -> torch.Tensor:
        """Metrics of all runs: sums over an object's tokens, others behind the prompt."""
        found = torch.empty(len(metrics), *self.at.shape[:2], dtype=torch.float64)
        needs_clean = any(metric.needs_clean for metric in metrics)
        for index, case in enumerate(cases):
            assert isinstance(case, ForcedCase)
            reference = None
            if needs_clean:
                reference = _reference(read, index, self.at[index, :1, case.forced], clean)
            for begin, end in _parts(self.at.shape[1], (1 + case.forced) * read.vocab):
                steps: list[torch.Tensor] = []  # logits behind the prompt, then behind each forced token
                for at in self.at[index, begin:end].T.flip(0)[-1 - case.forced :]:
                    steps.append(read(index, at))
                sums = {name: _sum(steps, tokens) for name, tokens in case.reads.items()}
                pair = steps[0][:, objects[index].tolist()].double()
                given = Reading(case.asked, pair, steps[0], reference, sums)
                for place, metric in enumerate(metrics):
                    found[place, index, begin:end] = metric.of(given).cpu()
        return found


def _sum(steps: Sequence[torch.Tensor], tokens: Sequence[int]) -> torch.Tensor:
    """Sum of the tokens' log-probabilities, each at its step: float64 (rows,)."""
    found = torch.zeros(len(steps[0]), dtype=torch.float64, device=steps[0].device)
    for logits, token in zip(steps, tokens, strict=False):
        wide = logits.double()
        found += wide[:, token] - wide.logsumexp(dim=1)
    return found


def _reference(
    read: _OwnHead, index: int, rows: slice | torch.Tensor, clean: CleanRow | None
) -> torch.Tensor:
    """The clean run's logits."""
    if clean is None:
        return read(index, rows)[0]
    if clean.logits is None:
        clean.logits = read(0, rows)[0]
    return clean.logits


def _parts(rows: int, vocab: int) -> Iterator[tuple[int, int]]:
    size = max(1, LOGITS_AT_ONCE // vocab)
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)


def _pick(logits: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """Logits (batch, rows, vocabulary) of two tokens of each sequence: (batch, rows, 2)."""
    index = objects.to(logits.device).unsqueeze(1).expand(-1, logits.shape[1], -1)
    return logits.gather(2, index)
