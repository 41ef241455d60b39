"""The reference engine: one plain patched forward for each patch, nothing shared, obviously right.

It knows nothing of token trees: sequences of one case, patched by plain hooks that write one row. It serves
every decoder-only model and is the oracle for the tree engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.cases.forced import asked_of
from moetrace.engines.ablation import Ablated, BlockCall, ablate, clean_of, routing_of
from moetrace.engines.direct import PlainTap, at_final
from moetrace.engines.fixed_routing import Held, RoutingTap, held_hooks
from moetrace.engines.job import Origin, Patch, Sweep
from moetrace.engines.lockstep import gather
from moetrace.engines.outcome import LayerRouting, Outcome, Values
from moetrace.engines.patched_runs import Watched, Written, patched_runs, sizes, tokens_of
from moetrace.engines.plain_forwards import PlainForwards, with_first
from moetrace.models.anatomy import expert_count
from moetrace.models.forward import CleanRow

if TYPE_CHECKING:
    from moetrace.cases import Case

_ROWS = 2048  # token rows of one batch of patched sequences


def sequences_together(tokens: int) -> int:
    """How many patched sequences of so many tokens go into one forward."""
    return max(1, _ROWS // tokens)


class ReferenceEngine(PlainForwards):
    """Plain patched forwards, batched over patches."""

    name = "reference"

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """One case at a time."""
        return [[index] for index in range(len(cases))]

    def rows_of(self, case: Case) -> int:
        """Token rows of a case's sequences, those of a layer's experts included."""
        runs = len(self.job.patches) + sum(2 * sweep.top_k for sweep in self.job.sweeps)
        return len(case.input_ids) * (1 + self.job.draws * (1 + runs))

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace cases one after another."""
        return Outcome.stack([self._run_case(case) for case in cases])

    def _run_case(self, case: Case) -> Outcome:
        job = self.job
        draws = [*job.corruptor.values(case)]
        origins = {*(patch.origin for patch in job.patches), *(sweep.origin for sweep in job.sweeps)}
        first = PlainTap(job, case) if job.measures_direct and Origin.NOISE in origins else None
        taps = [PlainTap(job, case) if job.measures_direct else None for _ in draws]
        kept = CleanRow()
        clean_run = partial(self._watched, case, None, kept, first)
        watched = [
            partial(self._watched, case, draw, kept, tap) for draw, tap in zip(draws, taps, strict=True)
        ]
        if job.ablation is not None:
            clean = clean_run()
            of_noised = [self._switched_off(case, clean) for _ in draws]
        elif any(metric.needs_clean for metric in job.metrics):  # the others are compared with it
            clean, *of_noised = [clean_run(), *gather(watched)]
        else:
            clean, *of_noised = gather([clean_run, *watched])
        # The clean run is one; what leaves from it is told apart by draw.
        clean_taps = [None if first is None else first.again() for _ in draws]
        found, routings, swept_values = [], [], []
        count, patches = len(job.metrics), len(job.patches)
        for index, noised in enumerate(of_noised):
            written = patched_runs(job, case, clean, noised)
            values = np.full((count + 2, len(written)), np.nan)  # metrics, direct effects, linear ones
            for origin in (Origin.DENOISE, Origin.NOISE):
                own = [at for at, run in enumerate(written) if run.origin is origin and run.values]
                leaves = (noised, draws[index], taps[index])
                if origin is Origin.NOISE:
                    leaves = (clean, None, clean_taps[index])
                values[:, own] = self._patched(case, *leaves, [written[at] for at in own], kept)
            found.append(values[:, :patches])
            main = values[[0, -2, -1], patches:].T.tolist()
            swept = list(zip(written[patches:], main, strict=True))
            routings.append(self._routing(case, clean, noised, swept))
            swept_values.append(self._swept_values(written[patches:], values[1:count, patches:]))
        routing = {x: LayerRouting.join([r[x] for r in routings], axis=1) for x in job.expert_places}
        every = np.stack(found, axis=-1)[:, None]  # (metrics and direct effects, 1, patches, draws)
        noised_values = np.stack([noised.values for noised in of_noised], axis=-1)[:, None]
        others = []
        for metric in range(1, count):
            by_place = {x: np.stack([own[x][metric - 1] for own in swept_values])[None] for x in routing}
            others.append(
                Values(clean.values[metric : metric + 1], noised_values[metric], every[metric], by_place)
            )
        tokens = job.tokens_of(case)
        present = np.array([[bool(tokens[patch.place]) for patch in job.patches]], dtype=bool)
        return Outcome(
            clean.values[:1],
            noised_values[0],
            every[0],
            every[-2],
            every[-1],
            present.reshape(1, patches),
            routing,
            tuple(others),
        )

    def _switched_off(self, case: Case, clean: Watched) -> Watched:
        """The clean run again, in which every expert contributes what takes its place."""
        assert self.job.ablation is not None
        experts = {
            layer: {
                at: self.job.ablation.switched_off(asked_of(case), layer, at, own)
                for at, own in tokens.items()
            }
            for layer, tokens in clean.experts.items()
        }
        return replace(clean, experts=experts)

    def _swept_values(
        self, swept: Sequence[Written], values: np.ndarray
    ) -> dict[tuple[int, int], np.ndarray]:
        """By layer and place (metrics, experts), NaN where no run patches the expert."""
        found = {
            (layer, place): np.full((len(values), sizes(self.job, layer, place)[1]), np.nan)
            for layer, place in self.job.expert_places
        }
        for at, run in enumerate(swept):
            found[run.layer, run.place][:, run.expert] = values[:, at]
        return found

    def together(self, case: Case, firsts: Sequence[Sweep] = ()) -> Outcome:
        """Runs of one case and draw side by side in one plain forward: clean, noised, and each patch's.

        The same numbers as :meth:`run` gives for a job's patches, for a fraction of its time. ``firsts``:
        the clean-routed expert of the least number is patched where each of these sweeps is made, behind the
        patches. All must be at places that the case has.
        """
        job, tokens = self.job, len(case.input_ids)
        (draw,) = job.corruptor.values(case)
        runs: list[Patch | Sweep] = [*job.patches, *firsts]
        fired: dict[int, bool] = {}
        hooks = []
        layers = sorted({run.layer for run in runs})
        for layer in layers:
            own = {2 + index: run for index, run in enumerate(runs) if run.layer == layer}
            shape = (2 + len(runs), tokens)
            hook = self._patcher(layer, own, shape, case, fired)
            hooks.append((job.anatomy.site(layer).block, hook))
        noised = [1, *(2 + index for index, run in enumerate(runs) if run.origin is not Origin.NOISE)]
        places = job.tokens_of(case)
        held = [
            Held(run.layer, places[run.place][0], int(run.origin is not Origin.NOISE))
            if isinstance(run, Patch) and run.fixed_routing
            else None
            for run in runs
        ]
        before = held_hooks(job, tokens, [None, None, *held], {})
        found = self._forward(case, draw, 2 + len(runs), hooks, fired.clear, CleanRow(), noised, before)
        self._all_fired(layers, fired)
        return Outcome.plain([Values(own[:1], own[None, 1:2], own[None, 2:, None]) for own in found])

    def _patcher(
        self,
        layer: int,
        runs: dict[int, Patch | Sweep],
        shape: tuple[int, int],
        case: Case,
        fired: dict[int, bool],
    ) -> Callable[..., Any]:
        """Patch the sequences that ``runs`` names, from the clean (first) and noised (second)."""
        anatomy, inside, places = self.job.anatomy, False, self.job.tokens_of(case)

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            nonlocal inside
            if inside:  # the block that an ablation runs again
                return None
            self._check_once(layer, fired)
            value = self._check_rows("block", layer, output, shape[0] * shape[1])
            rows = value.reshape(*shape, value.shape[-1]).clone()
            routed: list[dict[int, Ablated]] = [{}, {}]
            inside, call = True, BlockCall(args, kwargs, value)
            try:
                for own, position in product((0, 1), self._routed_tokens(layer, case)):
                    routed[own][position] = ablate(anatomy, layer, call, own * shape[1] + position)
            finally:
                inside = False
            watched = [Watched({layer: rows[own]}, {layer: routed[own]}, np.zeros(0)) for own in (0, 1)]
            if self.job.ablation is not None:
                watched[1] = self._switched_off(case, watched[0])
            for sequence, run in runs.items():
                if isinstance(run, Sweep):
                    routed_to = clean_of(tokens_of(watched[0], watched[1], layer, places[run.place]))
                    known = [e for e in routed_to if e < expert_count(anatomy, layer)]
                    least = [min(known)] if known else []
                    run = Patch.of_experts(
                        layer, _core.Chosen.EXPERTS, experts=least, place=run.place, origin=run.origin
                    )
                alone = replace(self.job, patches=(run,), sweeps=())
                (written,) = patched_runs(alone, case, watched[0], watched[1])
                for position, vector in written.values.items():
                    rows[sequence, position] = vector.to(rows.dtype)
            fired[layer] = True
            return with_first(output, rows.reshape(value.shape))

        return hook

    def _routed_tokens(self, layer: int, case: Case) -> list[int]:
        """Positions whose experts are patched in a layer."""
        places = self.job.tokens_of(case)
        own = [place for where, place in self.job.expert_places if where == layer]
        return sorted({position for place in own for position in places[place]})

    def _routing(
        self,
        case: Case,
        clean: Watched,
        noised: Watched,
        swept: Sequence[tuple[Written, list[float]]],
    ) -> dict[tuple[int, int], LayerRouting]:
        found, places = {}, self.job.tokens_of(case)
        for layer, place in self.job.expert_places:
            own = {
                run.expert: (values[0], values[1], values[2])
                for run, values in swept
                if (run.layer, run.place) == (layer, place) and run.expert is not None
            }
            tokens = tokens_of(clean, noised, layer, places[place])
            found[layer, place] = routing_of(tokens, *sizes(self.job, layer, place), own)
        return found

    def _watched(
        self, case: Case, values: torch.Tensor | None, clean: CleanRow, tap: PlainTap | None = None
    ) -> Watched:
        """Run one sequence."""
        kept: dict[int, torch.Tensor] = {}
        experts: dict[int, dict[int, Ablated]] = {}
        inside = False

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                nonlocal inside
                if inside:  # the block that an ablation runs again
                    return
                self._check_once(layer, kept)
                value = self._check_rows("block", layer, output, len(case.input_ids))
                kept[layer] = value.reshape(-1, value.shape[-1]).clone()
                inside, experts[layer] = True, {}
                try:
                    call = BlockCall(args, kwargs, value)
                    for position in self._routed_tokens(layer, case):  # while the layer's weights are at hand
                        experts[layer][position] = ablate(self.job.anatomy, layer, call, position)
                finally:
                    inside = False

            return hook

        layers = self.job.block_layers
        hooks: list[tuple[Any, Any]] = [(self.job.anatomy.site(layer).block, keep(layer)) for layer in layers]
        if tap is not None:
            hooks += tap.origin_hooks()
        routing = RoutingTap(self.job)

        def again() -> None:
            kept.clear()
            routing.routes.clear()

        measured = self._forward(case, values, 1, hooks, again, clean, before=routing.hooks())
        self._all_fired(layers, kept)
        return Watched(kept, experts, measured[:, 0], routing.routes)

    def _patched(
        self,
        case: Case,
        origin: Watched,
        values: torch.Tensor | None,
        tap: PlainTap | None,
        runs: Sequence[Written],
        kept: CleanRow,
    ) -> np.ndarray:
        """Of patched runs that leave from one run (metrics + 2, runs): metrics, direct effects, linear ones.

        Sequence i of a batch carries run i.
        """
        size = sequences_together(len(case.input_ids))
        forwards = []
        for begin in range(0, len(runs), size):
            part = runs[begin : begin + size]
            fired: dict[int, bool] = {}
            hooks = []
            for layer in sorted({run.layer for run in part}):
                rows = {i: run.values for i, run in enumerate(part) if run.layer == layer}
                writer = self._writer(layer, rows, (len(part), len(case.input_ids)), fired)
                hooks.append((self.job.anatomy.site(layer).block, writer))
            if tap is not None:
                hooks += tap.patched_hooks([run.layer for run in part])
            held = [Held(run.layer, min(run.values)) if run.fixed else None for run in part]
            before = held_hooks(self.job, len(case.input_ids), held, origin.routes)
            forwards.append(partial(self._written, case, values, part, hooks, fired, kept, before))
        found = gather(forwards)
        measured = np.concatenate(found, axis=1) if found else np.zeros((len(self.job.metrics), 0))
        direct = np.full((2, len(runs)), np.nan) if tap is None else np.stack(tap.read(origin.values[0]))
        if tap is not None:  # elsewhere the final token's stream is changed by later layers alone
            final = at_final(self.job, [case])[0]
            direct[:, [not final[run.place] for run in runs]] = 0.0
        return np.concatenate([measured, direct])

    def _written(
        self,
        case: Case,
        values: torch.Tensor | None,
        part: Sequence[Written],
        hooks: Sequence[tuple[Any, Any]],
        fired: dict[int, bool],
        kept: CleanRow,
        before: Sequence[tuple[Any, Any]],
    ) -> np.ndarray:
        found = self._forward(case, values, len(part), hooks, fired.clear, kept, before=before)
        self._all_fired(sorted({run.layer for run in part}), fired)
        return found

    def _writer(
        self,
        layer: int,
        values: dict[int, dict[int, torch.Tensor]],
        shape: tuple[int, int],
        fired: dict[int, bool],
    ) -> Callable[..., Any]:
        """Write rows, by position, in each of the sequences that ``values`` names; ``shape``: (sequences,
        tokens).
        """

        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            self._check_once(layer, fired)
            value = self._check_rows("block", layer, output, shape[0] * shape[1])
            rows = value.reshape(*shape, value.shape[-1]).clone()
            for sequence, own in values.items():
                for position, vector in own.items():
                    rows[sequence, position] = vector.to(rows.device, rows.dtype)
            fired[layer] = True
            return with_first(output, rows.reshape(value.shape))

        return hook
