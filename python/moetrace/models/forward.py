"""One call of the model's own forward, read out at chosen rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetrace._native import _core
from moetrace.counts import count_forward
from moetrace.errors import EngineError
from moetrace.metrics import LOGIT_DIFF, Metric, Reading
from moetrace.models.anatomy import Anatomy
from moetrace.models.readout import HeadTap, Readout

if TYPE_CHECKING:
    from moetrace.cases import Case

LOGITS_AT_ONCE = 1 << 23  # logits of the whole vocabulary that are there at once


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
) -> torch.Tensor:
    """Run the model and give metrics at ``rows``: float64 (metrics, batch, rows).

    ``cases``: of each sequence. ``clean``: where the clean run's logits are, or are to be kept; None for the
    first row of each sequence. The first row serves the check of the readout; where that fails ``again`` is
    called and the model run once more with its own head. ``joining``: token rows that join the pass after its
    start, for the count. The whole vocabulary is read only where a metric needs it.
    """
    objects = torch.tensor([pair_of(case, anatomy.vocab_size) for case in cases])
    keep = torch.as_tensor(rows, dtype=torch.long)
    known = accepted(anatomy.model)
    call = {name: value for name, value in inputs.items() if value is not None}
    if "logits_to_keep" in known:
        call["logits_to_keep"] = keep.to(inputs["input_ids"].device)
    tap = HeadTap(readout, len(rows), keep)
    with _core.HookScope() as scope:
        scope.before(anatomy.head, tap)
        count_forward(inputs["input_ids"].numel() + joining)
        logits = anatomy.model(**call).logits
    if tap.hidden is None:
        raise EngineError(f"the head of {type(anatomy.model).__name__} was never called in a forward pass")
    if not readout.checked:
        readout.check(tap.hidden[:, 0], objects, _pick(logits[:, :1], objects)[:, 0])
    if readout.own_head and tap.narrow:  # the check failed, here or in a forward beside this one
        again()
        return read_metrics(anatomy, readout, inputs, rows, cases, metrics, joining=joining, clean=clean)
    if readout.own_head:
        pairs = _pick(logits, objects).double()
        read = _OwnHead(logits)
    else:
        batch, count, width = tap.hidden.shape
        tokens = objects.repeat_interleave(count, dim=0)
        pairs = readout(tap.hidden.reshape(-1, width), tokens).reshape(batch, count, 2)
        read = _Exact(readout, tap.hidden, logits.shape[-1])
    return _measured(metrics, cases, pairs, read, clean)


class _OwnHead:
    """The whole vocabulary's logits as the model gave them."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits, self.vocab = logits, logits.shape[-1]

    def __call__(self, index: int, begin: int, end: int) -> torch.Tensor:
        """Rows of one sequence."""
        found = self._logits[index, begin:end]
        return found if found.dtype is torch.float64 else found.float()


class _Exact(_OwnHead):
    """The same from what enters the head."""

    def __init__(self, readout: Readout, hidden: torch.Tensor, vocab: int) -> None:
        self._readout, self._hidden, self.vocab = readout, hidden, vocab

    def __call__(self, index: int, begin: int, end: int) -> torch.Tensor:
        """Rows of one sequence."""
        return self._readout.whole(self._hidden[index, begin:end], self.vocab)


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
        reference = _reference(read, index, clean) if needs_clean else None
        for begin, end in _parts(pairs.shape[1], read.vocab):
            given = Reading(case, pairs[index, begin:end], read(index, begin, end), reference)
            for place in whole:
                found[place, index, begin:end] = metrics[place].of(given).cpu()
    return found.to(pairs.device)


def _reference(read: _OwnHead, index: int, clean: CleanRow | None) -> torch.Tensor:
    """The clean run's logits."""
    if clean is None:
        return read(index, 0, 1)[0]
    if clean.logits is None:
        clean.logits = read(0, 0, 1)[0]
    return clean.logits


def _parts(rows: int, vocab: int) -> Iterator[tuple[int, int]]:
    size = max(1, LOGITS_AT_ONCE // vocab)
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)


def _pick(logits: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
    """Logits (batch, rows, vocabulary) of two tokens of each sequence: (batch, rows, 2)."""
    index = objects.to(logits.device).unsqueeze(1).expand(-1, logits.shape[1], -1)
    return logits.gather(2, index)
