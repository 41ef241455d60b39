"""Reports made of real traces of the bundled model, with the attributes that the page reads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import moetrace as mt
from moetrace.cases import CaseSet
from moetrace.results.expert_arrays import ExpertArrays
from moetrace.results.experts import ExpertTrace
from moetrace.results.layers import LayerTrace

HOSTILE = "<script>alert(1)</script>"


@dataclass
class StandIn:
    """A report as far as the page knows it."""

    settings: Any = None
    cases: dict[str, CaseSet] = field(default_factory=dict)
    traces: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    star: Any = None
    layer: int | None = None
    counts: Any = None
    stability: Any = None
    held_out: Any = None
    provenance: Any = None
    texts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def compare(self, name: str) -> Any:
        """As a report's: the printed figures beside the run's."""
        head = [
            "table",
            "row",
            "figure",
            "printed",
            "printed_low",
            "printed_high",
            "run",
            "run_low",
            "run_high",
        ]
        rows = [
            ("1", "", "layer", None, None, None, None, None, None),
            ("1", "", "layer_rescue", 0.901, 0.752, 1.053, 0.91, 0.74, 1.05),
            ("1", "", "spec", 0.4, 0.276, 0.533, 0.2, 0.1, 0.3),
            ("7", "quantity Expert/layer", "value", 0.515, 0.411, 0.613, 0.5, 0.4, 0.6),
        ]
        frame = pd.DataFrame(rows, columns=head)
        frame[head[3:]] = frame[head[3:]].astype(float)
        covers = pd.array([None, True, False, True], "boolean")
        return SimpleNamespace(rows=frame.assign(covers=covers, printed_text="a", run_text="b", note=name))


def texts_of(cases: CaseSet, tokenizer: Any) -> dict[int, dict[str, Any]]:
    decode = tokenizer.decode
    return {
        case.case_id: {
            "prompt": case.prompt,
            "tokens": [decode([token]) for token in case.input_ids],
            "true": decode([case.true_id]),
            "foil": decode([case.foil_id]),
            "subject": decode(list(case.input_ids[slice(*case.subject)])),
        }
        for case in cases
    }


@cache
def demo_report(n: int = 48) -> StandIn:
    """The whole of a small run; one of its cases has a subject that is a script element."""
    model, tokenizer = mt.load_demo()
    usable = mt.select_cases(model, mt.make_cases(mt.demo_records(), tokenizer), n=n, progress=False)
    discovery, validation = usable.split(seed=0)
    layers = mt.trace_layers(model, discovery, progress=False)
    experts = mt.trace_experts(model, discovery, progress=False)
    held = mt.trace_experts(model, validation, progress=False)
    star = experts.select(layer=layers.best, min_active=0.25)
    every = mt.trace_experts(model, usable, layer=layers.best, progress=False)
    sweep = mt.trace_layers(model, validation, progress=False)
    summary = held.specificity(star).summary()
    texts = texts_of(usable, tokenizer)
    hostile = validation[0]
    own = texts[hostile.case_id]
    start, stop = hostile.subject
    own["tokens"] = [*own["tokens"][:start], f" {HOSTILE}", *[""] * (stop - start - 1), *own["tokens"][stop:]]
    own["prompt"] = "".join(own["tokens"])
    return StandIn(
        settings={"preset": "quick", "n": n, "controls": "auto", "seed": 0, "margin": 1.0, "drop": 0.5},
        cases={"usable": usable, "discovery": discovery, "validation": validation},
        traces={
            "layers": layers,
            "layers_validation": sweep,
            "experts": experts,
            "experts_validation": held,
            "matched": mt.trace_matched(model, validation, star, progress=False),
            "scales": mt.trace_noise_scales(model, validation, star, progress=False),
            "coalitions": mt.trace_coalitions(
                model, validation, layer=layers.best, sets="all", progress=False
            ),
        },
        tables={"1": summary, "2": pd.DataFrame({"setting": ["seed"], "value": [0]}),
                "6": sweep.summary(), "10": pd.DataFrame({"metric": [HOSTILE], "value": [-0.5]})},
        star=star,
        layer=layers.best,
        counts={"forwards": 31, "rows": 20480, "bytes": 123456789, "seconds": 12.5},
        stability=every.stability(thresholds=(0.125, 0.25)),
        held_out=every.held_out(folds=3, min_active=0.2),
        provenance={**held.provenance, "model": {**held.provenance["model"], "name": "moetrace-demo"}},
        texts=texts,
    )  # fmt: skip


def without(**changes: Any) -> StandIn:
    """The small run, with some attributes taken away or replaced."""
    return replace(demo_report(), **changes)


@cache
def wide_report(cases: int = 128, layers: int = 48, experts: int = 128, k: int = 8) -> StandIn:
    """As large as the paper's larger model: random routing, a few experts that carry something."""
    rng = np.random.default_rng(0)
    sites = pd.DataFrame(
        [(layer, expert) for layer in range(layers) for expert in range(experts)], columns=["layer", "expert"]
    )
    made = CaseSet(
        [
            mt.Case(
                rng.integers(5, 900, 12).tolist(), (3, 6), 7, 8, case_id=int(case),
                relation_id=f"P{int(12 * rng.random() ** 2)}",
                prompt=f"The fact number {case} about a subject is",
            )
            for case in range(2 * cases)
        ],
        funnel={"records": 2000, "single_token": 1500, "clean_margin": 400, "noise_drop": 2 * cases},
    )  # fmt: skip
    halves = {"discovery": made[:cases], "validation": made[cases:]}
    strength = rng.normal(0, 0.02, (layers, experts)) * np.linspace(0.3, 1.5, layers)[:, None]
    strength[layers - 4, 69 % experts] = 0.5
    traces: dict[str, Any] = {}
    for half, own in halves.items():
        suffix = "_validation" if half == "validation" else ""
        traces |= {
            f"experts{suffix}": _expert_trace(own, sites, strength, k, rng),
            f"layers{suffix}": _layer_trace(own, layers, rng),
        }
    words = [f" w{place}" for place in range(12)]
    texts = {
        case.case_id: {"prompt": case.prompt, "tokens": words, "true": " a", "foil": " b"} for case in made
    }
    return StandIn(
        cases={"usable": made, **halves},
        traces=traces,
        star=(layers - 4, 69 % experts),
        layer=layers - 4,
        provenance={"model": {"name": "Qwen/Qwen3-30B-A3B-Base"}, "noise": {"scale": 3.0}},
        texts=texts,
    )


def _frame(cases: CaseSet, rng: np.random.Generator) -> pd.DataFrame:
    n = len(cases)
    return pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "relation_id": [case.relation_id for case in cases],
            "clean": rng.normal(4, 1, n),
            "noised": rng.normal(0, 1, n),
            "null_rescue": rng.normal(0, 1e-5, n),
        }
    )


_FAILED = pd.DataFrame({"case_id": [], "clean": [], "noised": [], "reason": []})


def _expert_trace(
    cases: CaseSet, sites: pd.DataFrame, strength: np.ndarray, k: int, rng: np.random.Generator
) -> ExpertTrace:
    n, (layers, experts) = len(cases), strength.shape
    score = rng.gumbel(size=(n, layers, experts)) + np.where(strength > 0.3, 5, 0)
    active = (score >= np.sort(score, axis=2)[:, :, -k, None]).reshape(n, -1)
    rescue = np.where(active, rng.normal(1.6 * strength.ravel(), 0.15, active.shape), 0.0)
    weight, table = np.where(active, 1 / k, 0.0), _frame(cases, rng)
    arrays = ExpertArrays(
        active, active, weight, weight, weight, table.noised.to_numpy()[:, None] + rescue, rescue
    )
    return ExpertTrace(table, sites, arrays, _FAILED, {"self_check": 1e-4})


def _layer_trace(cases: CaseSet, layers: int, rng: np.random.Generator) -> LayerTrace:
    table, sites = _frame(cases, rng), pd.DataFrame({"layer": range(layers)})
    curve = 0.9 * np.exp(-(((np.arange(layers) - layers + 4) / 5) ** 2))
    effects = rng.normal(curve, 0.4, (len(cases), layers))
    patched = table.noised.to_numpy()[:, None] + effects
    return LayerTrace(table, sites, patched, effects, _FAILED, {"self_check": 1e-4})
