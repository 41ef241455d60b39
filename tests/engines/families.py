"""What works for each Mixture-of-Experts family of transformers, measured on tiny random models.

    python -m tests.engines.families            # writes FAMILIES.md anew: two minutes
    python -m tests.engines.families beam dbrx  # prints those rows alone

Every figure is the largest difference, in logits, to hooks written by hand (oracle.py, wide.py): block
patches of every sparse layer on three prompts; experts, and all clean-routed ones together, of one layer on
one prompt.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import transformers as tf

import moetrace as mt
from moetrace.models.anatomy import find_anatomy
from tests.engines import oracle
from tests.engines.hybrids import HYBRIDS
from tests.engines.library import decoder_families, listed_families
from tests.engines.newer import NEWER
from tests.engines.tiny import OTHER, SPARSE, make_cases
from tests.engines.wide import (
    WIDE,
    Family,
    Plain,
    expert_rescue,
    make_wide,
    subject_noise,
    without_expert,
)

PAGE = Path(__file__).parent / "FAMILIES.md"
CASES = make_cases(3)
TOLERANCE = 2e-4
ADDRESSES = {
    "after their layer": "behind the layer",
    "before their layer": "before the layer",
    "before the first layer": "at the start",
}
# Traced outside what has no single meaning.
SOME_LAYERS = {"inkling2_loop": [0, 3]}
FIRST = {
    "qwen3_moe": Family("Qwen3MoeForCausalLM", SPARSE["qwen3_moe"]),
    "qwen2_moe": Family("Qwen2MoeForCausalLM", SPARSE["qwen2_moe"]),
    "mixtral": Family("MixtralForCausalLM", SPARSE["mixtral_window"]),
    "olmoe": Family("OlmoeForCausalLM", SPARSE["olmoe"]),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", SPARSE["deepseek_v3"]),
    "glm4_moe": Family("Glm4MoeForCausalLM", SPARSE["glm4_moe"]),
    "gpt_oss": Family("GptOssForCausalLM", SPARSE["gpt_oss"], eager=True),
    "granitemoe": Family("GraniteMoeForCausalLM", SPARSE["granitemoe"], block="block_sparse_moe"),
    "flex_olmo": Family("FlexOlmoForCausalLM", SPARSE["flex_olmo"]),
    "doge": Family("DogeForCausalLM", OTHER["doge"]),
}


@cache
def known_families() -> dict[str, Family]:
    """The tiny models, by the folder of transformers that their config is in; those that it has."""
    found: dict[str, Family] = {}
    for known in [*FIRST.values(), *WIDE.values(), *NEWER.values(), *HYBRIDS.values()]:
        with contextlib.suppress(AttributeError):  # a release without the family
            getattr(tf, known.architecture)
            found.setdefault(type(known.config()).__module__.split(".")[2], known)
    return found


@dataclass(frozen=True)
class Cell:
    """One kind of trace: the difference to hooks by hand in logits, or why it is refused."""

    difference: float = np.nan
    refusal: str = ""

    def __str__(self) -> str:
        return "refused" if self.refusal else f"{self.difference:.0e}"


@dataclass(frozen=True)
class Row:
    """One line of the page."""

    family: str
    architecture: str
    engine: str
    join: str
    layers: Cell
    experts: Cell
    coalitions: Cell
    reason: str = ""  # of the reference engine
    elsewhere: str = ""  # what layers that weren't traced are refused for

    @property
    def cells(self) -> tuple[Cell, Cell, Cell]:
        return self.layers, self.experts, self.coalitions

    def __str__(self) -> str:
        parts = [self.family, self.architecture, self.engine, self.join, *map(str, self.cells)]
        return f"| {' | '.join(parts)} |"


def measure(family: str) -> Row:
    """Trace one family in every way, beside hooks by hand."""
    known = known_families()[family]
    model = make_wide(known)
    engines: list[tuple[str, str]] = []

    def traced(trace: Callable[[], Any], by_hand: Callable[[Any], np.ndarray]) -> Cell:
        try:
            found = trace()
        except mt.errors.MoetraceError as refusal:
            return Cell(refusal=f"{type(refusal).__name__}: {refusal}")
        engines.append((found.provenance["engine"], found.provenance["engine_reason"]))
        expected = by_hand(found)
        return Cell(float(np.abs(values_of(found) - expected).max()))

    def values_of(found: Any) -> np.ndarray:
        effects = np.asarray(found.effects)
        if isinstance(found, mt.ExpertTrace):
            return found.rows[found.rows.clean_active].sort_values("expert").rescue.to_numpy()
        return effects

    def of_layers(found: Any) -> np.ndarray:
        return np.stack([oracle.rescue(Plain(model, known), case, list(found.layers)) for case in CASES])

    def of_experts(_: Any) -> np.ndarray:
        own = expert_rescue(model, known, case, layer)
        return np.array([own[expert] for expert in sorted(own)])

    def of_clean(_: Any) -> np.ndarray:
        return np.array([[clean_rescue(model, known, case, layer)]])

    layers, case = SOME_LAYERS.get(family), CASES[1]
    try:
        layer = (layers or find_anatomy(model).sparse_layers)[1]
    except mt.errors.MoetraceError:  # said by each trace itself
        layer = 1
    cells = [
        traced(lambda: mt.trace_layers(model, CASES, layers=layers), of_layers),
        traced(lambda: mt.trace_experts(model, [case], layer=layer), of_experts),
        traced(lambda: mt.trace_coalitions(model, [case], layer=layer, sets="clean"), of_clean),
    ]
    engine = " / ".join(dict.fromkeys(name for name, _ in engines)) or "–"
    joins = [text for _, reason in engines for key, text in ADDRESSES.items() if key in reason]
    join = " / ".join(dict.fromkeys(joins)) or "–"
    reasons = dict.fromkeys(reason for name, reason in engines if name == "reference")
    elsewhere = traced(lambda: mt.trace_layers(model, CASES), of_layers).refusal if layers else ""
    return Row(family, known.architecture, engine, join, *cells, "; ".join(reasons), elsewhere)


def clean_rescue(model: Any, known: Family, case: mt.Case, layer: int) -> float:
    """Rescue of all clean-routed experts of a layer together (equation 14), in whole forward passes."""
    plain = Plain(model, known)
    noise = subject_noise(plain, case)
    whole, routed = without_expert(plain, case, layer, None, None)
    row, noised = without_expert(plain, case, layer, noise, None)
    total = row
    for expert in routed:
        total = total + whole - without_expert(plain, case, layer, None, expert)[0]
        if expert in noised:
            total = total - (row - without_expert(plain, case, layer, noise, expert)[0])
    return oracle.run(plain, case, noise, (layer, total, -1)) - oracle.run(plain, case, noise)


def page(rows: list[Row]) -> str:
    """The whole page."""
    left_out = [own for own in listed_families().values() if own.kind != "decoder"]
    lines = [
        "# Families",
        "",
        f"Every decoder-only Mixture-of-Experts family of transformers {tf.__version__}, as listed from the",
        "library itself, on tiny random models in float32. Written by `python -m tests.engines.families`;",
        "`test_family_list.py` beside it keeps it fresh.",
        "",
        "*Layers*, *experts*, *coalitions*: the largest difference, in logits, to hooks written by hand",
        "(rescues are about 1 logit). *Forks join*: where patched runs enter the single pass; behind the",
        "layer is the fastest, at the start costs up to twice as much. The reference engine runs plain",
        "patched forwards. Two entries: what layers get, then what experts get.",
        "",
        "| family | class | engine | forks join | layers | experts | coalitions |",
        "|---|---|---|---|---|---|---|",
        *map(str, rows),
        "",
        *_why(rows),
        "## Left out",
        "",
        "They speak of experts and are no decoder-only language models:",
        "",
        *(f"- {own.family}: {own.kind}" for own in left_out),
    ]
    return "\n".join(lines) + "\n"


def _why(rows: list[Row]) -> Iterator[str]:
    """Reasons and remedies, as a user reads them."""
    refused = [row for row in rows if row.elsewhere or any(cell.refusal for cell in row.cells)]
    if refused:
        yield from ("## Refused, and why", "")
    for row in refused:
        for text in dict.fromkeys(cell.refusal for cell in row.cells if cell.refusal):
            parts = ("layers", "experts", "coalitions")
            names = [part for part, cell in zip(parts, row.cells, strict=True) if cell.refusal == text]
            yield f"- {row.family}, {' and '.join(names)}. {text}"
        if row.elsewhere:
            yield f"- {row.family}, other layers than {SOME_LAYERS[row.family]}. {row.elsewhere}"
    slow = [row for row in rows if row.reason]
    if slow:
        yield from ("", "## By the reference engine, and why", "")
        yield from (f"- {row.family}: {row.reason}" for row in slow)
    yield ""


def main(names: list[str]) -> None:
    """Measure the families of these names and print their rows; where none is given, all into the page."""
    warnings.simplefilter("ignore")
    tf.logging.set_verbosity_error()
    known = known_families()
    absent = sorted(set(decoder_families()) - set(known))
    if absent:
        print(f"no tiny model is known for: {', '.join(absent)}", file=sys.stderr)
    rows = []
    for family in names or sorted(known):
        rows.append(measure(family))
        print(rows[-1], rows[-1].reason, *(cell.refusal for cell in rows[-1].cells), flush=True)
    if not names:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
