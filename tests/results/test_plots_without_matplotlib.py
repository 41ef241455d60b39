"""A picture without matplotlib: one error of the package's own that says what to install."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

import moetrace as mt
from moetrace.results.layers import LayerTrace
from tests.results.expert_traces import NO_FAILURES, case_table, random_trace


def layer_trace() -> LayerTrace:
    rng = np.random.default_rng(0)
    cases = case_table(6, rng, 2)
    rescue = rng.normal(size=(6, 3))
    patched = cases.noised.to_numpy()[:, None] + rescue
    layers = pd.DataFrame({"layer": [0, 1, 2]})
    return LayerTrace(cases, layers, patched, rescue, NO_FAILURES, {"self_check": 1e-6, "layers": [0, 1, 2]})


TRACES = {"layers": layer_trace, "experts": lambda: random_trace(0)}


def test_every_plot_is_here():
    results = [value for value in vars(mt.results).values() if isinstance(value, type)]
    for name in (
        "layers",
        "experts",
        "coalitions",
        "matched",
        "scales",
        "resplit",
        "comparisons",
        "controls",
    ):
        module = __import__(f"moetrace.results.{name}", fromlist=["*"])
        results += [value for value in vars(module).values() if isinstance(value, type)]
    plotting = {kind.__name__ for kind in results if hasattr(kind, "plot")} - {"DataFrame"}
    assert plotting == {type(make()).__name__ for make in TRACES.values()}


@pytest.mark.parametrize("kind", TRACES)
def test_plot_names_what_to_install(kind, monkeypatch):
    trace = TRACES[kind]()
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(mt.errors.MoetraceError, match=r'pip install "moetrace\[plot\]"'):
        trace.plot(n_resamples=100, n_flips=100)
