"""The protocol's first stage from records to a validated layer (sections 3.3 and 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moetrace.arguments import as_count, as_folder, refuse_type
from moetrace.cases import CaseSet, make_cases
from moetrace.corruptions import SubjectNoise
from moetrace.errors import ArgumentError
from moetrace.models.anatomy import find_anatomy
from moetrace.progress import Progress
from moetrace.protocol.lengths import within_positions
from moetrace.protocol.scan import LEAST, TooFewCasesError
from moetrace.ranks import here, on_all_ranks
from moetrace.results.layers import LayerTrace
from moetrace.trace.layers import trace_layers
from moetrace.trace.select_cases import select_cases

_WHY = "cases are split in two halves, and an interval needs two cases in each"


@dataclass(frozen=True)
class LayerProtocol:
    """Usable cases, the sweep on the discovery half, and the sweep on the validation half."""

    usable: CaseSet
    discovery: LayerTrace
    validation: LayerTrace


@on_all_ranks
def layer_protocol(
    model: torch.nn.Module,
    tokenizer: Any,
    records: Any,
    *,
    out: str | Path,
    n: int = 256,
    seed: int = 0,
    noise: SubjectNoise | None = None,
    progress: Progress = None,
    echo: Callable[[str], None] = print,
) -> LayerProtocol:
    """Select ``n`` usable cases, sweep layers on the discovery half, evaluate on the validation half.

    The layer is selected on discovery cases alone and is a fixed hypothesis on the others (section 3.3).
    Writes into ``out``: ``cases.json``, ``discovery/`` and ``validation/`` (see ``LayerTrace.save``),
    ``layers.csv`` (the validation table) and, with matplotlib, ``layers.png``.

    Raises:
        ArgumentError: ``n`` is below 4: a half of fewer than two cases has no interval.
        TooFewCasesError: Fewer than 4 cases are usable.
        RunFolderError: ``out`` holds other cases, or another call's; what is there stays.
    """
    folder = as_folder(out, "out")
    n = as_enough(n)
    if not callable(echo):
        refuse_type(echo, "echo", "a function of a line of text")
    first = here().first  # of several ranks: it writes and tells
    if not first:
        echo = _silent
    cases = within_positions(make_cases(records, tokenizer), find_anatomy(model).positions)
    usable = select_cases(model, cases, n=n, seed=seed, noise=noise, progress=progress)
    if len(usable) < LEAST:
        raise TooFewCasesError(f"only {len(usable)} cases are usable, of at least {LEAST} needed: {_WHY}")
    echo("usable cases: " + ", ".join(f"{name} {count}" for name, count in usable.funnel.items()))
    discovery, validation = usable.split(seed=seed)
    found = trace_layers(model, discovery, noise=noise, progress=progress, out=folder / "discovery")
    held = trace_layers(model, validation, noise=noise, progress=progress, out=folder / "validation")
    table = held.summary(correction="max_t")
    if first:
        usable.save(folder / "cases.json")  # by now both folders are known to be of these cases
        table.to_csv(folder / "layers.csv", index=False)
    echo(f"\nlayer selected on {len(found)} discovery cases: L{found.best}")
    echo(f"rescue on {len(held)} validation cases (logits):\n")
    echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    echo(f"\nnumerical floor {held.noise_floor:.1e} logits, engine {held.provenance['engine']}")
    if first:
        echo(_draw(held, folder / "layers.png"))
    return LayerProtocol(usable, found, held)


def _silent(_: str) -> None:
    """For nobody."""


def as_enough(n: Any) -> int:
    """A number of cases that can be split and bootstrapped."""
    if as_count(n, "n") < LEAST:
        raise ArgumentError(f"n is {n}; expected at least {LEAST}: {_WHY}")
    return int(n)


def _draw(held: LayerTrace, path: Path) -> str:
    """Draw the sweep; says where the picture is, or how to get it. All the work is done by then."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as missing:
        return (
            f'no picture, since matplotlib can\'t be imported ({missing}): pip install "moetrace[plot]" and '
            "run this again; what was traced is kept"
        )
    figure: Any = held.plot().figure
    figure.savefig(path, dpi=150)
    return f"picture: {path}"
