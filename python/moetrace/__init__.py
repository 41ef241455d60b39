"""Expert-aware causal tracing of factual recall in sparse Mixture-of-Experts language models.

>>> import moetrace as mt
>>> model, tokenizer = mt.load_demo()
>>> cases = mt.make_cases(mt.demo_records(), tokenizer)
>>> layers = mt.trace_layers(model, mt.select_cases(model, cases, n=64))

Names are imported when they are first used, so that ``moetrace.stats`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moetrace import coalition as coalition
    from moetrace import planted as planted
    from moetrace import ranks as ranks
    from moetrace import stats as stats
    from moetrace.cases import Case as Case
    from moetrace.cases import CaseSet as CaseSet
    from moetrace.cases import load_records as load_records
    from moetrace.cases import make_cases as make_cases
    from moetrace.corruptions import MeanEmbedding as MeanEmbedding
    from moetrace.corruptions import SubjectNoise as SubjectNoise
    from moetrace.corruptions import SwapSubject as SwapSubject
    from moetrace.corruptions import UniformNoise as UniformNoise
    from moetrace.corruptions import ZeroEmbedding as ZeroEmbedding
    from moetrace.demo import demo_records as demo_records
    from moetrace.demo import load_demo as load_demo
    from moetrace.errors import MoetraceError as MoetraceError
    from moetrace.models.load import load_model as load_model
    from moetrace.pipeline.capture import capture as capture
    from moetrace.pipeline.patch import patch as patch
    from moetrace.pipeline.routing import Force as Force
    from moetrace.pipeline.routing import Suppress as Suppress
    from moetrace.pipeline.sites import Attention as Attention
    from moetrace.pipeline.sites import Block as Block
    from moetrace.pipeline.sites import Residual as Residual
    from moetrace.pipeline.sites import Router as Router
    from moetrace.pipeline.sites import Routing as Routing
    from moetrace.pipeline.sites import SharedExpert as SharedExpert
    from moetrace.pipeline.values import Ablate as Ablate
    from moetrace.planning.plan import plan as plan
    from moetrace.planning.result import Plan as Plan
    from moetrace.protocol.layers import layer_protocol as layer_protocol
    from moetrace.protocol.loading import load as load
    from moetrace.protocol.run import run_protocol as run_protocol
    from moetrace.results.by_metric import MetricTraces as MetricTraces
    from moetrace.results.coalitions import CoalitionTrace as CoalitionTrace
    from moetrace.results.expert_map import ExpertMap as ExpertMap
    from moetrace.results.expert_name import Expert as Expert
    from moetrace.results.experts import ExpertTrace as ExpertTrace
    from moetrace.results.joined import concat as concat
    from moetrace.results.knockout import KnockoutTrace as KnockoutTrace
    from moetrace.results.knockout_curves import KnockoutCurves as KnockoutCurves
    from moetrace.results.layer_map import LayerMap as LayerMap
    from moetrace.results.layers import LayerTrace as LayerTrace
    from moetrace.results.matched import MatchedTrace as MatchedTrace
    from moetrace.results.metric_curves import MetricCurves as MetricCurves
    from moetrace.results.path_ends import PathEnd as PathEnd
    from moetrace.results.paths import PathTrace as PathTrace
    from moetrace.results.routes import RouteTrace as RouteTrace
    from moetrace.results.scales import ScaleTrace as ScaleTrace
    from moetrace.results.screen import ScreenTrace as ScreenTrace
    from moetrace.trace.coalitions import trace_coalitions as trace_coalitions
    from moetrace.trace.experts import trace_experts as trace_experts
    from moetrace.trace.knockout import trace_knockout as trace_knockout
    from moetrace.trace.knockout_curves import knockout_curves as knockout_curves
    from moetrace.trace.layers import trace_layers as trace_layers
    from moetrace.trace.matched import trace_matched as trace_matched
    from moetrace.trace.paths import trace_paths as trace_paths
    from moetrace.trace.routes import trace_routes as trace_routes
    from moetrace.trace.scales import trace_noise_scales as trace_noise_scales
    from moetrace.trace.screen import screen_experts as screen_experts
    from moetrace.trace.select_cases import select_cases as select_cases

_HOMES = {
    "Ablate": "pipeline.values",
    "Attention": "pipeline.sites",
    "Block": "pipeline.sites",
    "Case": "cases",
    "CaseSet": "cases",
    "CoalitionTrace": "results.coalitions",
    "Expert": "results.expert_name",
    "ExpertMap": "results.expert_map",
    "ExpertTrace": "results.experts",
    "Force": "pipeline.routing",
    "KnockoutCurves": "results.knockout_curves",
    "KnockoutTrace": "results.knockout",
    "LayerMap": "results.layer_map",
    "LayerTrace": "results.layers",
    "MatchedTrace": "results.matched",
    "MetricCurves": "results.metric_curves",
    "MetricTraces": "results.by_metric",
    "MoetraceError": "errors",
    "PathEnd": "results.path_ends",
    "PathTrace": "results.paths",
    "Residual": "pipeline.sites",
    "RouteTrace": "results.routes",
    "Router": "pipeline.sites",
    "Routing": "pipeline.sites",
    "ScaleTrace": "results.scales",
    "MeanEmbedding": "corruptions",
    "ScreenTrace": "results.screen",
    "SharedExpert": "pipeline.sites",
    "SubjectNoise": "corruptions",
    "Suppress": "pipeline.routing",
    "SwapSubject": "corruptions",
    "UniformNoise": "corruptions",
    "ZeroEmbedding": "corruptions",
    "capture": "pipeline.capture",
    "concat": "results.joined",
    "demo_records": "demo",
    "knockout_curves": "trace.knockout_curves",
    "layer_protocol": "protocol.layers",
    "load": "protocol.loading",
    "load_demo": "demo",
    "load_model": "models.load",
    "load_records": "cases",
    "make_cases": "cases",
    "Plan": "planning.result",
    "patch": "pipeline.patch",
    "plan": "planning.plan",
    "run_protocol": "protocol.run",
    "screen_experts": "trace.screen",
    "select_cases": "trace.select_cases",
    "trace_coalitions": "trace.coalitions",
    "trace_experts": "trace.experts",
    "trace_knockout": "trace.knockout",
    "trace_layers": "trace.layers",
    "trace_matched": "trace.matched",
    "trace_noise_scales": "trace.scales",
    "trace_paths": "trace.paths",
    "trace_routes": "trace.routes",
}

__all__ = ["__version__", "coalition", "errors", "planted", "ranks", "stats", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"moetrace.{_HOMES[name]}"), name)
    elif name in ("coalition", "errors", "planted", "ranks", "stats"):
        value = import_module(f"moetrace.{name}")
    else:
        from moetrace.arguments import nearest

        raise AttributeError(f"module 'moetrace' has no attribute {name!r}{nearest(name, __all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
