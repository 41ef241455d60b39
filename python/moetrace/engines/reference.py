"""The reference engine: one plain patched forward for each patch, nothing shared, obviously right.

It knows nothing of token trees: sequences of one case, patched by plain hooks that write one row. It serves
every decoder-only model and is the oracle for the tree engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.ablation import Ablated, BlockCall, ablate, delta, patch_vector, routing_of, union_of
from moetrace.engines.direct import PlainTap
from moetrace.engines.job import Job, LayerRouting, Outcome, Patch, embedding_device, hook_error
from moetrace.engines.lockstep import gather
from moetrace.models.anatomy import expert_count
from moetrace.models.experts import top_k_of
from moetrace.models.forward import read_differences
from moetrace.models.state import first_tensor

if TYPE_CHECKING:
    from moetrace.cases import Case

_ROWS = 2048  # token rows of one batch of patched sequences


def sequences_together(tokens: int) -> int:
    """How many patched sequences of so many tokens go into one forward."""
    return max(1, _ROWS // tokens)


def with_first(output: Any, value: torch.Tensor) -> Any:
    """``output`` with its hidden states replaced."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


class ReferenceEngine:
    """Plain patched forwards, batched over patches."""

    name = "reference"

    def __init__(self, job: Job) -> None:
        self.job = job

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """One case at a time."""
        return [[index] for index in range(len(cases))]

    def rows_of(self, case: Case) -> int:
        """Token rows of a case's sequences, those of a layer's experts included."""
        top_k = top_k_of(self.job.anatomy.config) if self.job.sweeps else 0
        runs = len(self.job.patches) + 2 * top_k * len(self.job.sweeps)
        return len(case.input_ids) * (1 + self.job.draws * (1 + runs))

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace cases one after another."""
        return Outcome.stack([self._run_case(case) for case in cases])

    def _run_case(self, case: Case) -> Outcome:
        job = self.job
        position = job.patch_position(case)
        draws = [*job.corruptor.values(case)]
        taps = [PlainTap(job, case) if job.measures_direct else None for _ in draws]
        of_clean = [tap for tap in taps if tap is not None] if job.from_clean else []
        watched = [
            partial(self._watched, case, draw, [] if tap is None or job.from_clean else [tap])
            for draw, tap in zip(draws, taps, strict=True)
        ]
        (clean_rows, clean_experts, clean), *of_noised = gather(
            [partial(self._watched, case, None, of_clean), *watched]
        )
        noised, patched, effects, routings = [], [], [], []
        for draw, tap, (noised_rows, noised_experts, difference) in zip(draws, taps, of_noised, strict=True):
            noised.append(difference)
            base, source = (clean_rows, noised_rows) if job.from_clean else (noised_rows, clean_rows)
            change: dict[int, Callable[[int], torch.Tensor]] = {
                layer: partial(self._change, case, layer, clean_experts[layer], noised_experts[layer])
                for layer in clean_experts
            }
            runs: list[tuple[int, torch.Tensor]] = []  # layer, and what its block gives at the position
            for patch in job.patches:
                layer = patch.layer
                value = (source if patch.kind is _core.PatchKind.BLOCK else base)[layer]
                if patch.kind is _core.PatchKind.EXPERTS:
                    value = value + patch_vector(
                        patch, clean_experts[layer], noised_experts[layer], change[layer]
                    )
                runs.append((layer, value))
            swept = self._swept(clean_experts, noised_experts)
            for layer, expert in swept:
                runs.append((layer, base[layer] + change[layer](expert)))
            start = None if job.from_clean else draw
            differences = self._patched(case, start, runs, position, tap)
            before = clean if job.from_clean else difference
            direct = np.full((2, len(runs)), np.nan) if tap is None else np.stack(tap.read(before))
            if tap is not None and position < len(case.input_ids) - 1:
                direct[:] = 0.0  # the final token's stream is changed by later layers alone
            found = np.stack([differences, *direct])
            patched.append(differences[: len(job.patches)])
            effects.append(direct[:, : len(job.patches)])
            of_sweeps = dict(zip(swept, map(tuple, found[:, len(job.patches) :].T.tolist()), strict=True))
            routings.append(self._routing(clean_experts, noised_experts, of_sweeps, change))
        routing = {x: LayerRouting.join([r[x] for r in routings], axis=1) for x in clean_experts}
        straight, linear = np.stack(effects, axis=-1)[:, None]
        values = np.stack(patched, axis=-1)[None]
        return Outcome(np.array([clean]), np.array([noised]), values, straight, linear, routing)

    def _change(self, case: Case, layer: int, clean: Ablated, noised: Ablated, expert: int) -> torch.Tensor:
        """The patch vector of an expert: equation 6, its negative from the clean run, or its knock-out."""
        job = self.job
        if job.ablation is not None:
            position = job.patch_position(case)
            return job.ablation.vector(case, layer, position, expert, clean.contribution(expert))
        own = delta(expert, clean, noised)
        return -own if job.from_clean else own

    def together(self, case: Case, firsts: Sequence[int] = ()) -> Outcome:
        """Runs of one case and draw side by side in one plain forward: clean, noised, and each patch's.

        The same numbers as :meth:`run` gives for a job's patches, for a fraction of its time. ``firsts``:
        layers; the clean-routed expert of the least number is patched in each, behind the patches.
        """
        job, tokens = self.job, len(case.input_ids)
        (draw,) = job.corruptor.values(case)
        runs: list[tuple[int, Patch | None]] = [(patch.layer, patch) for patch in job.patches]
        runs += [(layer, None) for layer in firsts]
        fired: dict[int, bool] = {}
        hooks = []
        layers = sorted({layer for layer, _ in runs})
        for layer in layers:
            own = {2 + index: patch for index, (where, patch) in enumerate(runs) if where == layer}
            shape = (2 + len(runs), tokens)
            hook = self._patcher(layer, own, shape, case, fired)
            hooks.append((job.anatomy.site(layer).block, hook))
        # From the clean run all patched sequences are clean, and the second alone is noised.
        noised = slice(1, 2) if job.from_clean else slice(1, None)
        found = self._forward(case, draw, 2 + len(runs), hooks, fired.clear, noised)
        self._all_fired(layers, fired)
        return Outcome.plain(found[:1], found[None, 1:2], found[None, 2:, None])

    def _patcher(
        self,
        layer: int,
        patches: dict[int, Patch | None],
        shape: tuple[int, int],
        case: Case,
        fired: dict[int, bool],
    ) -> Callable[..., Any]:
        """Patch a row of the sequences that ``patches`` names, from the clean (first) and noised (second)."""
        anatomy, inside, position = self.job.anatomy, False, self.job.patch_position(case)
        base, source = (0, 1) if self.job.from_clean else (1, 0)

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            nonlocal inside
            if inside:  # the block that an ablation runs again
                return None
            self._check_once(layer, fired)
            value = self._check_rows("block", layer, output, shape[0] * shape[1])
            rows = value.reshape(*shape, value.shape[-1]).clone()
            runs: list[Ablated] = []
            if layer in self.job.expert_layers:
                inside, call = True, BlockCall(args, kwargs, value)
                try:
                    runs = [ablate(anatomy, layer, call, run * shape[1] + position) for run in (0, 1)]
                finally:
                    inside = False
            change = partial(self._change, case, layer, runs[0], runs[1]) if runs else None
            for sequence, patch in patches.items():
                of_block = patch is not None and patch.kind is _core.PatchKind.BLOCK
                vector = rows[source if of_block else base, position]
                if patch is None:
                    assert change is not None
                    routed = [e for e in runs[0].experts if e < expert_count(anatomy, layer)]
                    vector = vector + change(min(routed)) if routed else vector
                elif patch.kind is _core.PatchKind.EXPERTS:
                    assert change is not None
                    vector = vector + patch_vector(patch, runs[0], runs[1], change)
                rows[sequence, position] = vector.to(rows.dtype)
            fired[layer] = True
            return with_first(output, rows.reshape(value.shape))

        return hook

    def _swept(self, clean: dict[int, Ablated], noised: dict[int, Ablated]) -> list[tuple[int, int]]:
        """Layer and expert of every run of a sweep."""
        found = []
        for sweep in self.job.sweeps:
            own = clean[sweep.layer]
            experts = union_of(own, noised[sweep.layer]) if sweep.of_union else own.experts
            found += [(sweep.layer, expert) for expert in experts]
        return found

    def _routing(
        self,
        clean: dict[int, Ablated],
        noised: dict[int, Ablated],
        swept: dict[tuple[int, int], tuple[float, float, float]],
        change: dict[int, Callable[[int], torch.Tensor]],
    ) -> dict[int, LayerRouting]:
        found = {}
        for layer in clean:
            own = {expert: value for (where, expert), value in swept.items() if where == layer}
            count = expert_count(self.job.anatomy, layer)
            found[layer] = routing_of(clean[layer], noised[layer], count, own, change[layer])
        return found

    def _watched(
        self, case: Case, noise: torch.Tensor | None, taps: Sequence[PlainTap] = ()
    ) -> tuple[dict[int, torch.Tensor], dict[int, Ablated], float]:
        """Run one sequence: each patched layer's block output at the position, its experts, the result."""
        position = self.job.patch_position(case)
        kept: dict[int, torch.Tensor] = {}
        experts: dict[int, Ablated] = {}
        inside = False

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                nonlocal inside
                if inside:  # the block that an ablation runs again
                    return
                self._check_once(layer, kept)
                value = self._check_rows("block", layer, output, len(case.input_ids))
                kept[layer] = value.reshape(-1, value.shape[-1])[position].clone()
                if layer in self.job.expert_layers:  # while the layer's weights are at hand
                    inside = True
                    try:
                        call = BlockCall(args, kwargs, value)
                        experts[layer] = ablate(self.job.anatomy, layer, call, position)
                    finally:
                        inside = False

            return hook

        layers = self.job.block_layers
        hooks: list[tuple[Any, Any]] = [(self.job.anatomy.site(layer).block, keep(layer)) for layer in layers]
        for tap in taps:
            hooks += tap.base_hooks()
        difference = self._forward(case, noise, 1, hooks, kept.clear)
        self._all_fired(layers, kept)
        return kept, experts, float(difference[0])

    def _patched(
        self,
        case: Case,
        noise: torch.Tensor | None,
        runs: Sequence[tuple[int, torch.Tensor]],
        position: int,
        tap: PlainTap | None = None,
    ) -> np.ndarray:
        """Logit differences of patched runs of a case: sequence i of a batch carries run i."""
        size = sequences_together(len(case.input_ids))
        forwards = []
        for begin in range(0, len(runs), size):
            part = runs[begin : begin + size]
            fired: dict[int, bool] = {}
            hooks = []
            for layer in sorted({layer for layer, _ in part}):
                rows = {i: value for i, (where, value) in enumerate(part) if where == layer}
                writer = self._writer(layer, rows, (len(part), len(case.input_ids)), position, fired)
                hooks.append((self.job.anatomy.site(layer).block, writer))
            if tap is not None:
                hooks += tap.patched_hooks([layer for layer, _ in part])
            forwards.append(partial(self._written, case, noise, part, hooks, fired))
        found = gather(forwards)
        return np.concatenate(found) if found else np.zeros(0)

    def _written(
        self,
        case: Case,
        noise: torch.Tensor | None,
        part: Sequence[tuple[int, torch.Tensor]],
        hooks: Sequence[tuple[Any, Any]],
        fired: dict[int, bool],
    ) -> np.ndarray:
        found = self._forward(case, noise, len(part), hooks, fired.clear)
        self._all_fired(sorted({layer for layer, _ in part}), fired)
        return found

    def _writer(
        self,
        layer: int,
        values: dict[int, torch.Tensor],
        shape: tuple[int, int],
        position: int,
        fired: dict[int, bool],
    ) -> Callable[..., Any]:
        """Write one row in each of the sequences that ``values`` names; ``shape``: (sequences, tokens)."""

        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            self._check_once(layer, fired)
            value = self._check_rows("block", layer, output, shape[0] * shape[1])
            rows = value.reshape(*shape, value.shape[-1]).clone()
            for sequence, vector in values.items():
                rows[sequence, position] = vector.to(rows.device, rows.dtype)
            fired[layer] = True
            return with_first(output, rows.reshape(value.shape))

        return hook

    def _forward(
        self,
        case: Case,
        values: torch.Tensor | None,
        copies: int,
        hooks: Sequence[tuple[Any, Any]],
        again: Callable[[], None],
        noised_ones: slice = slice(None),
    ) -> np.ndarray:
        """Logit differences at the final token of ``copies`` sequences of one case (equation 1).

        ``values``: one draw of the corruption, None for none, of those that are ``noised_ones``. ``again``
        forgets what the hooks saw, where the model must be run a second time.
        """
        anatomy = self.job.anatomy
        ids = torch.tensor([case.input_ids] * copies, device=embedding_device(anatomy))
        start, stop = case.subject

        def corrupt(_module: Any, _args: Any, _kwargs: Any, output: torch.Tensor) -> torch.Tensor:
            value = self._check_rows("embedding", -1, output, ids.numel())
            noised = value.reshape(*ids.shape, value.shape[-1]).clone()
            assert values is not None
            part = values.to(output.device)
            if not self.job.corruptor.replaces:
                part = noised[noised_ones, start:stop].float() + part
            noised[noised_ones, start:stop] = part.to(output.dtype)
            return noised.reshape(output.shape)

        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        objects = torch.tensor([(case.true_id, case.foil_id)] * copies)
        with _core.HookScope() as scope:
            if values is not None:
                scope.behind(anatomy.embedding, corrupt)
            for module, hook in hooks:
                scope.behind(module, hook)
            last = [len(case.input_ids) - 1]
            found = read_differences(anatomy, self.job.readout, inputs, last, objects, again)
        return found[:, 0].cpu().numpy()

    def _all_fired(self, layers: Sequence[int], fired: Any) -> None:
        silent = [layer for layer in layers if layer not in fired]
        if silent:
            what = f"the blocks of layers {silent} were never called in a forward pass"
            raise hook_error(self.job.anatomy, what, [("block", layer) for layer in silent])

    def _check_once(self, layer: int, fired: Any) -> None:
        if layer in fired:
            what = f"the block of layer {layer} was called repeatedly in a forward pass"
            raise hook_error(self.job.anatomy, what, [("block", layer)])

    def _check_rows(self, kind: str, layer: int, output: Any, rows: int) -> torch.Tensor:
        """The hidden states of an output: one for each token."""
        value = first_tensor(output)
        found = "a " + type(value).__name__
        if isinstance(value, torch.Tensor):
            if value.dim() >= 2 and value.numel() == rows * value.shape[-1]:
                return value
            found = f"a tensor of shape {tuple(value.shape)}"
        what = f"expected {rows} rows of hidden states, found {found}"
        raise hook_error(self.job.anatomy, what, [(kind, layer)])
