"""Every public callable with every argument wrong: a result or an error of ours, never anything else."""

from __future__ import annotations

import inspect
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import moetrace as mt
from moetrace import arguments, coalition, errors, planted, report, stats
from moetrace.protocol.settings import Settings
from tests.engines.tiny import make_cases, make_model

PROTOCOL: dict[str, Any] = {
    "n": 6, "margin": -99.0, "drop": -99.0, "noise": None, "min_active": 1, "n_resamples": 20, "n_flips": 20,
    "scales": [1.0], "stability_seeds": [0], "stability_thresholds": [1], "folds": 2, "controls": "auto",
    "seed": 0, "label": "", "shapley": False,
}  # fmt: skip
SECONDS = 20  # of the processor, whatever runs beside: more than any call takes, and fewer than a hang


class Unshowable:
    """Its own text is an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def wrong_values() -> list[Any]:
    """Values of every kind; some are right somewhere."""
    return [
        None, True, False, 0, 1, 3, -1, 7.9, 0.5, 2**70, -(2**70), float("nan"), float("inf"), 1e308,
        "", " ", "7", "last", "L01E003", "L0E9999999999999999999", "\0", "\ud800", b"x", 1j,
        [], [[]], [[1], [2, 3]], [None], ["a"], [1, 1], [0, 1], (), (0,), (1, 3), (1.5, 2), {},
        {"a": 1}, set(),
        object(), Unshowable(), int, len, range(2), iter([1]), Ellipsis,
        np.int64(1), np.uint8(2), np.float32(0.5), np.bool_(True), np.array([]), np.array([0, 1]),
        np.array(1), np.array([[np.nan]]), np.array(["x"]), np.array([None]), np.datetime64("2020-01-01"),
        torch.tensor(1), torch.tensor(0.5), torch.tensor([0, 1]), torch.tensor(True), torch.zeros(0),
        pd.DataFrame(), pd.Series([1, 2]), pd.NA, Path("elsewhere"),
    ]  # fmt: skip


ANYTHING = st.one_of(
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(), st.text(max_size=3), st.none()), max_size=4),
    st.lists(st.lists(st.floats(-2, 2), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.tuples(st.integers(-2, 9), st.integers(-2, 9)),
)


@cache
def parts() -> dict[str, Any]:
    """A model, cases, and a result of every kind."""
    model = make_model("qwen3_moe")
    cases = mt.CaseSet(make_cases(6))
    experts = mt.trace_experts(model, cases, layer=1)
    star = experts.select(min_active=1)
    demo, tokenizer = mt.load_demo()
    knockout = mt.trace_knockout(model, cases[:2], layers=1)
    return {
        "demo": demo,
        "tokenizer": tokenizer,
        "records": mt.demo_records()[:60],
        "model": model,
        "cases": cases,
        "star": star,
        "layers": mt.trace_layers(model, cases),
        "experts": mt.trace_experts(model, cases, layer=1, union=True),
        "matched": mt.trace_matched(model, cases, star),
        "scales": mt.trace_noise_scales(model, cases, star, scales=[1.0, 2.0]),
        "specificity": experts.specificity(star, controls=1),
        "ranks": experts.ranks(star),
        "coalitions": mt.trace_coalitions(model, cases, layer=1, sets="all"),
        "knockout": knockout,
        "curves": knockout.greedy(1, draws=1, shares=[0.5]),
        "planted": planted.plant("single", n=4),
        "report": mt.run_protocol(model, None, cases, "quick", **PROTOCOL),
        "x": np.linspace(-1, 2, 12).reshape(6, 2),
        "values": coalition.membership(np.arange(4), 2).sum(axis=1)[None] * 1.0,
        "orders": (orders := coalition.sample_permutations(3, 4)),
        "masks": (masks := coalition.prefix_coalitions(orders)),
        "sampled": np.ones((2, len(masks))),
    }


@cache
def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public callable with arguments that it takes."""
    p = parts()
    model, cases, star = p["model"], p["cases"], p["star"]
    layers, experts = p["layers"], p["experts"]
    every = {"model": model, "cases": cases[:2]}
    options = {
        "noise": None, "corruption": None, "position": "last", "metric": "logit_diff",
        "engine": "auto", "batch_tokens": "auto", "progress": False, "out": None, "final_subject": "refuse",
        "readout": "exact", "compute_dtype": None,
    }  # fmt: skip
    silent = {key: options[key] for key in options if key not in ("noise", "corruption", "final_subject")}
    plain = {key: value for key, value in options.items() if key not in ("noise", "corruption")}
    summary = {
        "by": None, "ci": "percentile", "n_resamples": 20, "n_flips": 20, "seed": 0, "cluster": None,
        "correction": None, "confidence": 0.9, "statistic": None,
    }  # fmt: skip
    # Pictures hand the arguments of a summary on, whose own calls are here with all of them.
    passed_on = {key: summary[key] for key in ("by", "ci", "n_flips", "correction")}
    case = {"input_ids": [5, 6, 7], "subject": (0, 1), "true_id": 8, "foil_id": 9, "case_id": 0,
            "relation_id": "", "prompt": "", "true": "a", "foil": ""}  # fmt: skip
    records = [{"prompt": "{} speaks", "subject": "Zola", "target_true": "a", "target_new": "b"}]
    boot = {"y": None, "statistic": "mean", "ci": "percentile", "confidence": 0.95, "n_resamples": 20,
            "seed": 0, "cluster": None, "two_stage": False, "nan": "raise", "threads": 1,
            "q": 0.5}  # fmt: skip
    masks = np.array([1, 2, 3], np.uint64)
    return {
        "Case": (mt.Case, case),
        "CaseSet": (mt.CaseSet, {"cases": list(cases), "funnel": None, "dropped": None,
                                 "record_indices": None, "n_records": None}),
        "CaseSet.__getitem__": (cases.__getitem__, {"item": 0}),
        "CaseSet.__add__": (cases[:1].__add__, {"other": cases[1:]}),
        "CaseSet.take": (cases.take, {"positions": [0], "funnel": None, "dropped": None}),
        "CaseSet.split": (cases.split, {"seed": 0, "fraction": 0.5, "order": "shuffle"}),
        "CaseSet.folds": (cases.folds, {"by": "case_id", "k": 2, "seed": 0}),
        "CaseSet.record_order": (cases.record_order, {"seed": 0}),
        "CaseSet.record_ranks": (cases.record_ranks, {"seed": 0}),
        "CaseSet.save": (cases.save, {"path": "cases.json"}),
        "CaseSet.load": (mt.CaseSet.load, {"path": "cases.json"}),
        "Expert": (mt.Expert, {"layer": 1, "expert": 2}),
        "Expert.parse": (mt.Expert.parse, {"name": "L01E002"}),
        "Expert.of": (mt.Expert.of, {"value": (1, 2)}),
        "SubjectNoise": (mt.SubjectNoise, {"scale": 3.0, "seed": 0, "draws": 1}),
        "UniformNoise": (mt.UniformNoise, {"scale": 3.0, "seed": 0, "draws": 1}),
        "SwapSubject": (mt.SwapSubject, {"records": cases, "seed": 0, "draws": 1}),
        "SwapSubject.usable": (mt.SwapSubject(cases).usable, {"cases": cases}),
        "load_model": (mt.load_model, {"name": "nowhere"}),
        "load_model, streamed": (mt.load_model, {
            "name": "nowhere", "dtype": "auto", "device_map": None, "revision": None,
            "trust_remote_code": False, "stream": True,
        }),
        "load_records": (mt.load_records, {"source": records, "split": None}),
        "make_cases": (mt.make_cases, {"records": p["records"], "tokenizer": p["tokenizer"],
                                       "final_subject": "drop", "foil": None, "add_special_tokens": True,
                                       "seed": 0, "objects": "single_token", "foils": "required"}),
        "load": (mt.load, {"folder": "nowhere"}),
        "select_cases": (mt.select_cases, {**every, "n": 1, "margin": -99.0, "drop": -99.0, "seed": 0,
                                           "noise": None, "batch_tokens": "auto", "engine": "auto",
                                           "progress": False, "corruption": None}),
        "trace_layers": (mt.trace_layers, {**every, "layers": None, "mode": "denoise", **options}),
        "trace_experts": (mt.trace_experts, {**every, "layer": 1, "union": False, **options}),
        "trace_knockout": (mt.trace_knockout, {**every, "cases": cases[:2], "experts": [star], "layers": None,
                                               "ablation": "zero", "reference": None, "seed": 0, **silent}),
        "knockout_curves": (mt.knockout_curves, {"trace": p["knockout"], "model": model, "cases": cases[:2],
                                                 "n": 1, "by": "effect", "draws": 1, "shares": (0, 1),
                                                 "seed": 0, "reference": None, "metric": None, "out": None,
                                                 "position": None}),
        "trace_routes": (mt.trace_routes, {**every, "layers": [1], "experts": [star], "position": "last",
                                           "metric": "logit_diff", "corruption": None}),
        "trace_paths": (mt.trace_paths, {**every, "pairs": [(1, 2)], "position": "last", "corruption": None,
                                         "metric": "logit_diff", "compute_dtype": None, "out": None}),
        "screen_experts": (mt.screen_experts, {**every, "layers": 1, "top": 2, "verify": True, "rank": "mean",
                                               "position": "last", "corruption": None,
                                               "metric": "logit_diff", "compute_dtype": None, "out": None}),
        "capture": (mt.capture, {"model": model, "what": "block", "layers": 1, "tokens": "last"}),
        "patch": (mt.patch, {"model": model, "values": {mt.Block(1): mt.Ablate("zero")}, "tokens": None}),
        "trace_matched": (mt.trace_matched, {**every, "cases": cases, "star": star, **options}),
        "trace_noise_scales": (mt.trace_noise_scales, {**every, "star": star, "scales": (1.0,), "seed": 0,
                                                       **plain}),
        "trace_coalitions": (mt.trace_coalitions, {**every, "layer": 1, "sets": "clean", "n_permutations": 2,
                                                   "sampled_players": "clean", "limit": 64, "seed": 0,
                                                   **options}),
        "layer_protocol": (mt.layer_protocol, {"model": p["demo"], "tokenizer": p["tokenizer"],
                                               "records": p["records"], "out": "out", "n": 4, "seed": 0,
                                               "noise": None,
                                               "progress": False, "echo": len}),
        "run_protocol": (partial(mt.run_protocol, **PROTOCOL),
                         {"model": model, "tokenizer": None, "records": cases, "preset": "quick", "out": None,
                          "progress": False, "echo": None}),
        "plan": (mt.plan, {**every, "what": "layers", "layers": None, "settings": None, "n": 2, "seed": 0,
                           "usable": 0.5, "dtype": "auto", "stream": False, "timed": False,
                           **{k: v for k, v in options.items() if k not in ("progress", "out")},
                           "mode": "denoise"}),
        "Plan.frame": (mt.plan(**every, timed=False).frame, {"by": "stage"}),
        "concat": (mt.concat, {"traces": [layers.subset(cases[:1]), layers.subset(cases[1:])]}),
        "LayerTrace.subset": (layers.subset, {"case_ids": cases[:2]}),
        "ExpertTrace.subset": (experts.subset, {"case_ids": cases[:2]}),
        "Settings.of": (Settings.of, {"preset": "paper", **PROTOCOL}),
        "Report.latex": (p["report"].latex, {"number": 1}),
        "Report.markdown": (p["report"].markdown, {"number": 1}),
        "Report.compare": (p["report"].compare, {"name": "mixtral-8x7b"}),
        "LayerTrace.summary": (layers.summary, summary),
        "LayerTrace.by": (layers.by, {"column": "relation_id"}),
        "LayerTrace.save": (layers.save, {"folder": "saved"}),
        "LayerTrace.plot": (layers.plot, {"ax": None, "kind": "curve", "limit": 2, **passed_on}),
        "ExpertTrace.summary": (experts.summary, summary),
        "ExpertTrace.plot": (experts.plot, {"layer": None, "ax": None, "min_active": 0.5, "limit": 3,
                                            "kind": "experts", **passed_on}),
        "ExpertTrace.close_calls": (experts.close_calls, {"margin": None}),
        "ExpertTrace.candidates": (experts.candidates, {"layer": None, "min_active": 1, "mean": "active"}),
        "ExpertTrace.select": (experts.select, {"layer": None, "min_active": 1, "top": 1, "mean": "active"}),
        "ExpertTrace.specificity": (experts.specificity, {"star": star, "controls": "auto", "seed": 0}),
        "ExpertTrace.all_active": (experts.all_active, {"star": star}),
        "ExpertTrace.ranks": (experts.ranks, {"star": star}),
        "ExpertTrace.activity": (experts.activity, {"star": star}),
        "ExpertTrace.layer_share": (experts.layer_share, {"star": star, "layers": layers, "controls": "auto",
                                                          "seed": 0, "ci": "percentile", "n_resamples": 20,
                                                          "confidence": 0.9, "cluster": None}),
        "ExpertTrace.stability": (experts.stability, {"seeds": [0], "thresholds": [1], "layer": None,
                                                      "controls": "auto", "seed": 0, "fraction": 0.5,
                                                      "mean": "active"}),
        "ExpertTrace.held_out": (experts.held_out, {"by": "relation_id", "folds": 2, "seed": 0,
                                                    "min_active": 1, "layer": None, "controls": "auto",
                                                    "mean": "active"}),
        "MatchedTrace.plot": (p["matched"].plot, {"ax": None, "kind": "paired", **passed_on}),
        "ScaleTrace.plot": (p["scales"].plot, {"ax": None, "kind": "curve", **passed_on}),
        "CoalitionTrace.plot": (p["coalitions"].plot, {"ax": None, "kind": "shapley", "limit": 3,
                                                           **passed_on}),
        "CoalitionTrace.shapley_summary": (p["coalitions"].shapley_summary, {"limit": 3, **summary,
                                                                            "by": "expert"}),
        "Specificity.summary": (p["specificity"].summary, summary),
        "Specificity.plot": (p["specificity"].plot, {"ax": None, "kind": "cases", **passed_on}),
        "ActiveRanks.summary": (p["ranks"].summary, summary),
        "ActiveRanks.plot": (p["ranks"].plot, {"ax": None}),
        "MatchedTrace.table": (p["matched"].table, summary),
        "ScaleTrace.table": (p["scales"].table, {"patch": "expert", **summary}),
        "CoalitionTrace.summary": (p["coalitions"].summary, summary),
        "CoalitionTrace.smallest": (p["coalitions"].smallest, {"share": 0.8}),
        "KnockoutTrace.order": (p["knockout"].order, {"by": "effect"}),
        "KnockoutTrace.important": (p["knockout"].important, {"n": 2, "by": "effect"}),
        "KnockoutTrace.auroc": (p["knockout"].auroc, {"experts": [(1, 2)], "by": "effect"}),
        "KnockoutTrace.plot": (p["knockout"].plot, {"ax": None, "kind": "heatmap", "limit": 3}),
        "KnockoutCurves.plot": (p["curves"].plot, {"curve": "off", "value": "accuracy", "ax": None}),
        "report.write_html": (report.write_html, {"report": SimpleNamespace(traces={"layers": layers}),
                                                  "path": "report.html", "compare": None}),
        "report.write_folder": (report.write_folder, {"folder": "run", "path": None, "compare": None}),
        "planted.plant": (planted.plant, {"kind": "single", "family": "mixtral", "n": 4, "layers": 5,
                                          "layer": 2, "shares": None, "seed": 0}),
        "planted.plant_positions": (planted.plant_positions, {"family": "mixtral", "n": 2, "layers": 4,
                                                              "layer": 1, "moves": 2, "seed": 0}),
        "planted.plant_routes": (planted.plant_routes, {"family": "mixtral", "n": 4, "layers": 5, "layer": 1,
                                                        "seed": 0}),
        "Planted.truth_under": (p["planted"].truth_under, {"noise": mt.SubjectNoise(1.0)}),
        "stats.bootstrap": (stats.bootstrap, {"x": p["x"], **boot}),
        "stats.sign_flip": (stats.sign_flip, {"x": p["x"], "n_flips": 20, "seed": 0, "cluster": None,
                                              "statistic": "mean", "correction": None, "nan": "raise",
                                              "threads": 1}),
        "stats.adjust": (stats.adjust, {"p": [0.01, 0.5], "method": "holm", "nan": "raise"}),
        "stats.ranks": (stats.ranks, {"effects": p["x"], "selected": 0, "active": None, "ties": "worst"}),
        "stats.summary_table": (stats.summary_table, {"effects": p["x"], "ci": "percentile",
                                                      "n_resamples": 20, "n_flips": 20, "seed": 0,
                                                      "cluster": None,
                                                      "correction": None, "confidence": 0.9,
                                                      "statistic": "mean", "threads": 1}),
        "stats.philox_integers": (stats.philox_integers, {"n": 2, "size": 3, "seed": 0, "stream": 0}),
        "stats.sample_without_replacement": (stats.sample_without_replacement, {"n": 5, "k": 2, "seed": 0,
                                                                                   "stream": 0}),
        "coalition.subsets": (coalition.subsets, {"k": 2}),
        "coalition.check_count": (coalition.check_count, {"k": 2, "limit": 9}),
        "coalition.membership": (coalition.membership, {"coalitions": masks, "k": 2}),
        "coalition.members": (coalition.members, {"coalition": 1, "experts": [4, 5]}),
        "coalition.checked_sets": (coalition.checked_sets, {"sets": [[0], [1, 2]], "num_experts": 4}),
        "coalition.shapley": (coalition.shapley, {"values": p["values"]}),
        "coalition.banzhaf": (coalition.banzhaf, {"values": p["values"]}),
        "coalition.shapley_interaction": (coalition.shapley_interaction, {"values": p["values"]}),
        "coalition.banzhaf_interaction": (coalition.banzhaf_interaction, {"values": p["values"]}),
        "coalition.efficiency_gap": (coalition.efficiency_gap, {"shares": [[1.0, 1.0]],
                                                                "values": p["values"]}),
        "coalition.smallest_coalition": (coalition.smallest_coalition, {"values": p["values"], "share": 0.8,
                                                                        "coalitions": None}),
        "coalition.additivity": (coalition.additivity, {"values": p["values"], "coalitions": None}),
        "coalition.sample_permutations": (coalition.sample_permutations, {"k": 3, "n": 2, "seed": 0,
                                                                          "stream": 0, "antithetic": False}),
        "coalition.prefix_coalitions": (coalition.prefix_coalitions, {"permutations": p["orders"]}),
        "coalition.sampled_shapley": (coalition.sampled_shapley, {"permutations": p["orders"],
                                                                  "coalitions": p["masks"],
                                                                  "values": p["sampled"],
                                                                  "antithetic": False}),
    }  # fmt: skip


@contextmanager
def limited() -> Iterator[None]:
    """A call that hangs fails."""

    def stop(_signal: int, _frame: Any) -> None:
        pytest.fail(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def complaint(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with how a call takes a value; None where it gives a result or an error of ours."""
    function, base = calls()[name]
    if argument in ("progress", "echo", "corruption", "metric") and callable(value):
        return None  # what a function of the user's raises is the user's
    given = f"{argument}={arguments.shown(value)}"
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**{**base, argument: value})
    except errors.MoetraceError as error:
        standard = isinstance(error, (ValueError, TypeError, RuntimeError))
        return None if standard else f"{given}: {type(error).__name__} is no standard error"
    except Exception as error:
        return f"{given}: {type(error).__name__}: {str(error)[:120]}"
    return None


ARGUMENTS = [(name, argument) for name, (_, base) in calls().items() for argument in base]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Relative paths are real paths here, and pictures don't pile up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield
    plt.close("all")


NEED_A_FILE = {"CaseSet.load", "load", "load_model", "load_model, streamed", "report.write_folder"}


@pytest.mark.parametrize("name", sorted(set(calls()) - NEED_A_FILE))
def test_what_is_wrong_below_is_right_here(name: str) -> None:
    """No fuzzing of a call that never gets anywhere; those that are left out need a file."""
    function, base = calls()[name]
    function(**base)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_wrong_values(name: str, argument: str) -> None:
    wrong = [found for value in wrong_values() if (found := complaint(name, argument, value))]
    assert not wrong, "\n".join(wrong)


@cache
def drawn_values() -> list[Any]:
    """Values that are drawn once, the same in every run, and given to every argument."""
    found = []

    @settings(max_examples=15, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(ANYTHING)
    def keep(value: Any) -> None:
        found.append(value)

    keep()
    return found


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_drawn_values(name: str, argument: str) -> None:
    wrong = [found for value in deepcopy(drawn_values()) if (found := complaint(name, argument, value))]
    assert not wrong, "\n".join(wrong)


def public() -> set[str]:
    """Names of all public callables that take an argument."""
    found = {name for name in mt.__all__ if inspect.isfunction(getattr(mt, name))}
    for module, own in (("stats", stats), ("coalition", coalition), ("planted", planted), ("report", report)):
        found |= {f"{module}.{name}" for name in own.__all__ if inspect.isfunction(getattr(own, name))}
    kinds = (mt.CaseSet, mt.LayerTrace, mt.ExpertTrace, mt.MatchedTrace, mt.ScaleTrace, mt.CoalitionTrace)
    for kind in kinds:
        for name, method in vars(kind).items():
            taking = inspect.isfunction(method) and len(inspect.signature(method).parameters) > 1
            if taking and not name.startswith("_"):
                found.add(f"{kind.__name__}.{name}")
    return found - {"load_demo", "demo_records"}


def test_every_public_callable_is_here() -> None:
    assert public() <= set(calls())
