"""What ``moetrace plan`` plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moetrace.arguments import as_choice
from moetrace.cases import CaseSet
from moetrace.cli.console import wrong_use
from moetrace.cli.inputs import read_cases, read_tokenizer
from moetrace.planning.blueprint import as_model_name, config_of
from moetrace.planning.plan import plan
from moetrace.planning.result import Plan
from moetrace.planning.stages import WHATS
from moetrace.protocol.corruption import corruption_of
from moetrace.protocol.run import made_cases
from moetrace.protocol.settings import Settings


def planned(
    model: str, source: str, what: str, preset: str, given: Mapping[str, Any], *, layers: Any, **options: Any
) -> Plan:
    """A plan of a folder or hub id and a file of records or cases. ``given``: settings that were typed."""
    with wrong_use():
        what = as_choice(what, "what", WHATS)
    settings = Settings.of(preset, **given)
    config_of(as_model_name(model))  # before records are read
    found = read_cases(source, given)
    cases = found if isinstance(found, CaseSet) else made_cases(found, read_tokenizer(model), settings)
    corruption = None if what == "knockout" else corruption_of(settings, None, cases)
    common: dict[str, Any] = {
        "corruption": corruption, "compute_dtype": settings.compute_dtype,
        "engine": settings.engine, "readout": settings.readout,
        "batch_tokens": settings.batch_tokens, "n": settings.n, "seed": settings.seed, "settings": settings,
        "final_subject": "keep" if settings.final_subject == "keep" else "refuse",
    }  # fmt: skip
    return plan(model, cases, what, layers=layers, **common, **options)
