"""The tree engine: all runs of a case in one forward pass (clean, noised and every patched run).

A run shares with the noised run everything but the patched token from its layer on, so it is one more row
of the pass, joined where it begins to differ. The pass itself is compiled (``cpp/moetrace/pass``): what is
here finds modules, gives masks and calls the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from moetrace._native import _core
from moetrace.cases.forced import asked_of
from moetrace.engines.direct import TreeTap
from moetrace.engines.job import Job, embedding_device, hook_error
from moetrace.engines.outcome import OUTCOME, LayerRouting, Outcome, Values
from moetrace.errors import ContributionError
from moetrace.models.anatomy import Anatomy, expert_count
from moetrace.models.experts import block_scale, routed_call
from moetrace.models.float32 import is_wide
from moetrace.models.forward import read_metrics
from moetrace.models.masks import TreeMask, tree_masks
from moetrace.models.mixers import Unfolding
from moetrace.models.state import fingerprint

if TYPE_CHECKING:
    from moetrace.cases import Case
    from moetrace.engines.knockout import Ablation

FUSED_FROM = 256  # rows of a call below which the experts module itself is as fast
FIRST_CHECK, LATER_CHECK = 16, 2  # rows that the module computes all the same, for comparison
# Of experts modules the state in which the fused routine was compared with them, and whether it agreed.
_compared: weakref.WeakKeyDictionary[nn.Module, tuple[Any, bool]] = weakref.WeakKeyDictionary()


def lower(join: _core.Join) -> tuple[_core.Join, ...]:
    """Where forks may join if not there."""
    joins = tuple(_core.Join)
    return joins[joins.index(join) + 1 :]


class TreeEngine:
    """One forward pass for a batch.

    ``join``: where forks join, at best; where the model doesn't allow it, the next lower. ``batch_tokens``:
    the budget of token rows; None for as many as there are.
    """

    name = "tree"

    def __init__(
        self, job: Job, join: _core.Join = _core.Join.AFTER_LAYER, batch_tokens: int | None = None
    ) -> None:
        self.job, self.join, self.batch_tokens = job, join, batch_tokens
        self.fused_calls = 0  # calls of experts that the fused routine served

    def cuts(self, case: Case, budget: int | None) -> list[tuple[int, int]]:
        """Which runs of a case go into one tree each."""
        layers, draws = len(self.job.anatomy.layers), self.job.draws
        return _core.cut(self.job.shape_of(case), self.job.runs, draws, layers, self.join, budget or 0)

    def rows_of(self, case: Case) -> int:
        """Token rows of the largest tree that a case is given."""
        shape, draws = self.job.shape_of(case), self.job.draws
        parts = self.cuts(case, self.batch_tokens)
        return max(_core.tree_rows(shape, self.job.runs, begin, end, draws) for begin, end in parts)

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """Cases of like length together, within the budget of token rows."""
        if self.batch_tokens is None:
            return [list(range(len(cases)))]
        layers, runs, draws = len(self.job.anatomy.layers), self.job.runs, self.job.draws
        costs = [_core.tree_cost(self.job.shape_of(case), runs, draws, layers, self.join) for case in cases]
        return _core.pack(costs, self.batch_tokens)

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace one batch. The forks of a case that exceeds the budget by itself come in several passes."""
        budget = self.batch_tokens if len(cases) == 1 else None
        given = [self._pass_case(case) for case in cases]
        outcome, *further = [_core.Outcome(self.job.core, len(cases)) for _ in self.job.metrics]
        for begin, end in self.cuts(cases[0], budget):
            self._run(cases, given, begin, end, [outcome, *further])
        routing = {place: LayerRouting(**arrays) for place, arrays in outcome.layers.items()}
        others = tuple(map(_values, further))
        return Outcome(**{name: getattr(outcome, name) for name in OUTCOME}, routing=routing, others=others)

    def _pass_case(self, case: Case) -> _core.PassCase:
        if self.job.ablation is not None:
            return self._knocked_out(case, self.job.ablation)
        values = self.job.corruptor.values(case).numpy()
        return _core.PassCase(list(case.input_ids), *case.subject, self.job.tokens_of(case), values)

    def _knocked_out(self, case: Case, ablation: Ablation) -> _core.PassCase:
        """A case whose other run is the clean one again."""
        start, stop = self.job.apart(case)
        width = self.job.anatomy.hidden_size
        nothing = np.zeros((self.job.draws, stop - start, width), np.float32)
        found = _core.PassCase(list(case.input_ids), start, stop, self.job.tokens_of(case), nothing)
        for layer, place in self.job.expert_places if ablation.kind != "zero" else ():
            for position in self.job.tokens_of(case)[place]:
                experts, vectors = ablation.instead(asked_of(case), layer, position, width)
                found.replace(layer, position, experts, vectors.numpy())
        return found

    def _run(
        self,
        cases: Sequence[Case],
        given: list[_core.PassCase],
        begin: int,
        end: int,
        outcomes: list[_core.Outcome],
    ) -> None:
        while True:
            join = self.join
            run = _core.Pass(self.job.core, self._facts(), given, begin, end, join)
            try:
                values, scales, direct = self._forward(run, cases, range(begin, end))
            except Exception as failure:
                self._answer(run, join, failure)  # raises where there is nothing else to try
                continue
            if run.fused_calls:
                self._trust_fused()
            self.fused_calls += run.fused_calls
            for outcome, own in zip(outcomes, values, strict=True):
                outcome.take(run, own, scales, *direct)
            return

    def _answer(self, run: _core.Pass, join: _core.Join, failure: Exception) -> None:
        """Choose what to try next after trouble at a site; raise what no other way would help."""
        if run.trouble is _core.Trouble.CANNOT_JOIN:
            self.join = max(self.join, lower(join)[0], key=tuple(_core.Join).index)  # of passes side by side
        elif run.trouble is _core.Trouble.NOT_FUSED:
            _, layer = run.troubled_module
            module = self.job.anatomy.experts(layer)
            _compared[module] = (self._state_of(module), False)
        elif run.trouble is _core.Trouble.CONTRIBUTION:
            raise ContributionError(run.complaint) from failure
        elif run.trouble is _core.Trouble.SHAPE:
            raise hook_error(self.job.anatomy, run.complaint, [run.troubled_module]) from failure
        else:
            raise failure

    def _facts(self) -> list[_core.LayerFacts]:
        """What the pass has to know of each layer."""
        found, traced = [], set(self.job.expert_layers)
        for index, site in enumerate(self.job.anatomy.sites):
            if site is None or site.experts is None:
                found.append(_core.LayerFacts(experts=False))
                continue
            count = expert_count(self.job.anatomy, index) if index in traced else 0
            state, agreed = _compared.get(site.experts, (None, True))
            known = state is not None and state == self._state_of(site.experts)
            layout = site.expert_layout
            fused = site.fusible and (agreed or not known)
            found.append(
                _core.LayerFacts(
                    experts=True,
                    expert_count=count,
                    fused_from=FUSED_FROM if fused else 0,
                    checked_rows=LATER_CHECK if known else FIRST_CHECK,
                    layout=layout,
                )
            )
        return found

    def _state_of(self, experts: nn.Module) -> Any:
        """What a comparison of experts is true for: their state, and whether they compute in float32."""
        return fingerprint(experts), is_wide(self.job.anatomy.model)

    def _trust_fused(self) -> None:
        for site in self.job.anatomy.sites:
            if site is not None and site.experts is not None and site.fusible:
                state = self._state_of(site.experts)
                if _compared.get(site.experts, (None, True))[0] != state:
                    _compared[site.experts] = (state, True)

    def arm_mixers(self, run: _core.Pass, scope: _core.HookScope) -> None:
        """Hang what gives token mixers that aren't masked attention each run by itself."""
        if self.job.mixers:
            Unfolding(run).arm(scope, self.job.anatomy, self.job.mixers)

    def _forward(
        self, run: _core.Pass, cases: Sequence[Case], runs: range
    ) -> tuple[np.ndarray, dict[Any, Any], tuple[np.ndarray, np.ndarray]]:
        """Metrics of the final rows (metrics, cases, rows), what each routed layer's block scales its experts
        by, and direct effects, exact and linear.
        """
        anatomy = self.job.anatomy
        device = embedding_device(anatomy)
        ids = torch.from_numpy(run.input_ids()).to(device)
        # An all-ones 2-D mask: without one, position ids would be read as packed sequences.
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.from_numpy(run.position_ids()).to(device),
            "use_cache": False,
        }
        scales: dict[int, float] = {}
        tap = TreeTap(self.job, run, runs) if self.job.measures_direct and len(runs) else None
        with _core.HookScope() as scope, tree_masks(_mask(run)):
            scope.arm(run, anatomy, routed_call)
            self.arm_mixers(run, scope)
            for index in self.job.expert_layers:
                _measure_scale(scope, run, anatomy, index, scales)
            if tap is not None:
                tap.arm(scope)
            joining = run.plan.cases * (run.plan.rows - run.start_rows)
            found = read_metrics(
                anatomy,
                self.job.readout,
                inputs,
                run.final_rows,
                cases,
                self.job.metrics,
                run.reset,
                joining,
                last_rows=run.last_rows,
            )
        misfired = run.misfired()
        if misfired:
            raise hook_error(anatomy, misfired, run.misfired_modules)
        direct = (np.zeros(0), np.zeros(0)) if tap is None else tap.read(cases, found[0])
        return found.cpu().numpy(), scales, direct


def _values(outcome: _core.Outcome) -> Values:
    """One metric's numbers of an outcome."""
    swept = {place: arrays["patched"] for place, arrays in outcome.layers.items()}
    return Values(outcome.clean, outcome.noised, outcome.patched, swept)


def _mask(run: _core.Pass) -> TreeMask:
    """The attention masks of all rows."""
    plan = run.plan
    lengths = (plan.base_rows, plan.rows) if run.start_rows == plan.base_rows else (plan.rows,)
    visible = torch.from_numpy(run.visibility()).bool()
    return TreeMask(torch.from_numpy(plan.position.copy()), visible, lengths)


def _measure_scale(
    scope: _core.HookScope, run: _core.Pass, anatomy: Anatomy, layer: int, scales: dict[int, float]
) -> None:
    """Note what a layer's block scales its experts by, while the layer's weights are at hand, and before
    forks that join behind the layer need it."""
    site = anatomy.site(layer)
    kept: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def keep_row(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        beside = {
            name: _ends(value.flatten(0, 1))
            for name, value in kwargs.items()
            if isinstance(value, torch.Tensor) and value.shape[:2] == hidden.shape[:2] and value is not hidden
        }
        kept[:] = [(_ends(hidden.reshape(-1, hidden.shape[-1])), beside)]

    def measure(*_: Any) -> None:
        scope.pause()
        try:
            rows, beside = kept[0]
            scale = block_scale(site, rows, partial(site.block, rows, **beside))
        finally:
            scope.resume()
        run.scale_experts(layer, scale)
        scales[layer] = abs(scale)  # of the norms of patch vectors

    scope.before(site.block, keep_row)
    scope.behind(site.block, measure)


def _ends(rows: torch.Tensor) -> torch.Tensor:
    """The first and the last row, as those of one case."""
    return torch.stack([rows[0], rows[-1]]).unsqueeze(0)
