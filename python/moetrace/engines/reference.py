"""The reference engine: one plain patched forward for each patch, nothing shared, obviously right.

It knows nothing of token trees: sequences of one case, patched by plain hooks that write one row. It serves
every decoder-only model and is the oracle for the tree engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace.engines.base import Job, Outcome, embedding_device
from moetrace.engines.forward import read_differences
from moetrace.engines.literal import Ablated, BlockCall, ablate, patch_vector, routing_of
from moetrace.engines.patches import BlockPatch, ExpertPatch, expert_layers
from moetrace.engines.routing import LayerRouting
from moetrace.errors import HookError
from moetrace.models.state import first_tensor, hooked

if TYPE_CHECKING:
    from moetrace.cases import Case

_ROWS = 2048  # token rows of one batch of patched sequences


def with_first(output: Any, value: torch.Tensor) -> Any:
    """``output`` with its hidden states replaced."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def _row(call: BlockCall, position: int) -> torch.Tensor:
    """A block's output at one token of a sequence."""
    assert call.output is not None
    return call.output.reshape(-1, call.output.shape[-1])[position]


class ReferenceEngine:
    """Plain patched forwards, batched over patches."""

    name = "reference"

    def __init__(self, job: Job) -> None:
        self.job = job

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """One case at a time."""
        return [[index] for index in range(len(cases))]

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace cases one after another."""
        return Outcome.stack([self._run_case(case) for case in cases])

    def _run_case(self, case: Case) -> Outcome:
        job = self.job
        position = job.patch_position(case)
        clean_calls, clean = self._watched(case, None)
        clean_experts = self._ablate(clean_calls, position)
        noised, patched, routings = [], [], []
        for draw in job.noise_vectors(case):
            noised_calls, difference = self._watched(case, draw)
            noised_experts = self._ablate(noised_calls, position)
            noised.append(difference)
            values = []
            for patch in job.patches:
                source = clean_calls if isinstance(patch, BlockPatch) else noised_calls
                value = _row(source[patch.layer], position)
                if isinstance(patch, ExpertPatch):
                    layer = patch.layer
                    value = value + patch_vector(patch, clean_experts[layer], noised_experts[layer])
                values.append(value)
            patched.append(self._patched(case, draw, values, position))
            routings.append({x: routing_of(clean_experts[x], noised_experts[x]) for x in clean_experts})
        routing = {layer: LayerRouting.join_draws([r[layer] for r in routings]) for layer in clean_experts}
        return Outcome(np.array([clean]), np.array([noised]), np.stack(patched, axis=-1)[None], routing)

    def _ablate(self, calls: dict[int, BlockCall], position: int) -> dict[int, Ablated]:
        """Literal contributions in every layer with expert patches."""
        anatomy = self.job.anatomy
        return {x: ablate(anatomy, x, calls[x], position) for x in expert_layers(self.job.patches)}

    def _watched(self, case: Case, noise: torch.Tensor | None) -> tuple[dict[int, BlockCall], float]:
        """Run one sequence and keep each patched layer's block call."""
        kept: dict[int, BlockCall] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                kept[layer] = BlockCall(args, kwargs, first_tensor(output).clone())

            return hook

        layers = sorted({patch.layer for patch in self.job.patches})
        hooks = [(self.job.anatomy.site(layer).block, keep(layer)) for layer in layers]
        difference = self._forward(case, noise, 1, hooks, with_kwargs=True)
        self._all_fired(layers, kept)
        return kept, float(difference[0])

    def _patched(
        self, case: Case, noise: torch.Tensor, values: Sequence[torch.Tensor], position: int
    ) -> np.ndarray:
        """Logit differences of all patches of a case: sequence i of a batch carries patch i."""
        size = max(1, _ROWS // len(case.input_ids))
        patches = self.job.patches
        found: list[np.ndarray] = []
        for begin in range(0, len(patches), size):
            part = range(begin, min(begin + size, len(patches)))
            fired: dict[int, bool] = {}
            layers = sorted({patches[index].layer for index in part})
            hooks = []
            for layer in layers:
                rows = {i - begin: values[i] for i in part if patches[i].layer == layer}
                writer = self._writer(layer, rows, len(part), position, fired)
                hooks.append((self.job.anatomy.site(layer).block, writer))
            found.append(self._forward(case, noise, len(part), hooks))
            self._all_fired(layers, fired)
        return np.concatenate(found) if found else np.zeros(0)

    @staticmethod
    def _writer(
        layer: int, values: dict[int, torch.Tensor], sequences: int, position: int, fired: dict[int, bool]
    ) -> Callable[..., Any]:
        """Write one row in each of the sequences that ``values`` names."""

        def hook(_module: Any, _args: Any, output: Any) -> Any:
            value = first_tensor(output)
            rows = value.reshape(sequences, -1, value.shape[-1]).clone()
            for sequence, vector in values.items():
                rows[sequence, position] = vector.to(rows.device, rows.dtype)
            fired[layer] = True
            return with_first(output, rows.reshape(value.shape))

        return hook

    def _forward(
        self,
        case: Case,
        noise: torch.Tensor | None,
        copies: int,
        hooks: Sequence[tuple[Any, Any]],
        with_kwargs: bool = False,
    ) -> np.ndarray:
        """Logit differences at the final token of ``copies`` sequences of one case (equation 1)."""
        anatomy = self.job.anatomy
        ids = torch.tensor([case.input_ids] * copies, device=embedding_device(anatomy))
        start, stop = case.subject

        def add_noise(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            noised = output.clone()
            assert noise is not None
            part = noised[:, start:stop].float() + noise.to(output.device)
            noised[:, start:stop] = part.to(output.dtype)
            return noised

        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        objects = torch.tensor([(case.true_id, case.foil_id)] * copies)
        handles: list[Any] = []
        with hooked(handles):
            if noise is not None:
                handles.append(anatomy.embedding.register_forward_hook(add_noise))
            handles.extend(
                module.register_forward_hook(hook, with_kwargs=with_kwargs) for module, hook in hooks
            )
            last = [len(case.input_ids) - 1]
            found = read_differences(anatomy, self.job.readout, inputs, last, objects)
        return found[:, 0].cpu().numpy()

    @staticmethod
    def _all_fired(layers: Sequence[int], fired: Any) -> None:
        silent = [layer for layer in layers if layer not in fired]
        if silent:
            raise HookError(f"the blocks of layers {silent} were never called in a forward pass")
