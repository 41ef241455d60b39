"""The tree engine: all runs of a case in one forward pass (clean, noised and every patched run).

A run shares with the noised run everything but the patched token from its layer on, so it is one more row
of the pass, born at that layer. See :mod:`moetrace.engines.rows` for the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moetrace._native import _core
from moetrace.engines.base import Job, Outcome, embedding_device
from moetrace.engines.birth import Birth
from moetrace.engines.compiled import CompiledExperts, NotCompiled
from moetrace.engines.cost import cut_patches, tree_cost, tree_rows
from moetrace.engines.experts import expert_hook, layer_routing, scale_after
from moetrace.engines.forward import read_differences
from moetrace.engines.growth import CannotGrow, Growth, SlimExperts, grower, refuse_extras
from moetrace.engines.patches import ExpertPatch, expert_layers
from moetrace.engines.routers import RouterTap, router_of
from moetrace.engines.rows import BatchRows
from moetrace.errors import HookError
from moetrace.models.anatomy import expert_count
from moetrace.models.masks import tree_masks
from moetrace.models.state import hooked

if TYPE_CHECKING:
    from moetrace.cases import Case


def _keep_row(
    kept: dict[int, torch.Tensor], layer: int, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Forward pre-hook of a block: keep one row of its input."""
    hidden = args[0] if args else kwargs["hidden_states"]
    kept[layer] = hidden.reshape(1, -1, hidden.shape[-1])[:, :1].clone()


def _rows_in_call(site: _core.ExpertSite | None, slim: SlimExperts | None) -> torch.Tensor:
    """The rows of a site as rows of the call that its experts get, known once the call is there."""
    if site is None:
        return torch.zeros(0, dtype=torch.int64)
    return site.wanted if slim is None else slim.rows_in_call(site.wanted)


class TreeEngine:
    """One forward pass for a batch.

    ``growth``: where forks join, at best; where the model doesn't allow it, the next lower. ``batch_tokens``:
    the budget of token rows; None for as many as there are.
    """

    name = "tree"

    def __init__(self, job: Job, growth: Growth = Growth.BEHIND, batch_tokens: int | None = None) -> None:
        self.job, self.growth, self.batch_tokens = job, growth, batch_tokens
        self._scales: dict[int, float] = {}  # of each layer's block, see scale_after

    def rows_of(self, case: Case) -> int:
        """Token rows of the largest tree that a case is given."""
        parts = cut_patches(self.job, case, self.growth, self.batch_tokens)
        return max(tree_rows(self.job, case, part) for part in parts)

    def batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """Cases of like length together, within the budget of token rows."""
        if self.batch_tokens is None:
            return [list(range(len(cases)))]
        costs = [tree_cost(self.job, case, self.job.patches, self.growth) for case in cases]
        packed: list[list[int]] = _core.pack(costs, self.batch_tokens)
        return packed

    def run(self, cases: Sequence[Case]) -> Outcome:
        """Trace one batch. The forks of a case that exceeds the budget by itself come in several passes."""
        budget = self.batch_tokens if len(cases) == 1 else None
        parts = cut_patches(self.job, cases[0], self.growth, budget)
        return Outcome.join_patches([self._run(replace(self.job, patches=part), cases) for part in parts])

    def _run(self, job: Job, cases: Sequence[Case]) -> Outcome:
        while True:
            try:
                return self._pass(BatchRows(job, cases, self.growth))
            except CannotGrow:
                self.growth = self.growth.lower()[0]
            except NotCompiled:
                continue  # the module is known from now on

    def _pass(self, batch: BatchRows) -> Outcome:
        anatomy = self.job.anatomy
        device = embedding_device(anatomy)
        ids = batch.input_ids().to(device)
        # An all-ones 2-D mask: without one, position ids would be read as packed sequences.
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": batch.position_ids().to(device),
            "use_cache": False,
        }
        objects = torch.tensor([(case.true_id, case.foil_id) for case in batch.cases])
        mask = batch.mask()
        inputs_of: dict[int, torch.Tensor] = {}
        table = _core.HookTable()
        handles: list[Any] = []
        with hooked(handles), tree_masks(mask):
            experts = self._arm(batch, table, handles)
            for index in experts.keys() - self._scales.keys():
                keep = partial(_keep_row, inputs_of, index)
                handles.append(anatomy.site(index).block.register_forward_pre_hook(keep, with_kwargs=True))
            rows = batch.final_rows()
            found = read_differences(anatomy, self.job.readout, inputs, rows, objects, table.reset)
        try:
            table.check_fired()
        except RuntimeError as failure:
            raise HookError(f"{type(anatomy.model).__name__}: {failure}") from None
        for index, row in inputs_of.items():
            self._scales[index] = scale_after(anatomy.site(index), row)
        return self._outcome(batch, found.cpu().numpy(), experts)

    def _outcome(self, batch: BatchRows, found: np.ndarray, experts: dict[int, _core.ExpertSite]) -> Outcome:
        draws = batch.draws
        patched = found[:, 1 + draws :].reshape(len(found), len(batch.job.patches), draws)
        routing = {
            layer: layer_routing(site, batch.router_logits(layer), len(found), draws, self._scales[layer])
            for layer, site in experts.items()
        }
        return Outcome(found[:, 0], found[:, 1 : 1 + draws], patched, routing)

    def _arm(
        self, batch: BatchRows, table: _core.HookTable, handles: list[Any]
    ) -> dict[int, _core.ExpertSite]:
        """Register every hook of a pass, and give those on experts; ``handles`` gets all as it goes."""
        anatomy = self.job.anatomy

        def armed(module: Any, site: Any) -> None:
            table.add(site)
            handles.append(module.register_forward_hook(site))

        armed(anatomy.embedding, batch.noise_site())
        slims = self._arm_growth(batch, table, handles) if batch.grows else {}
        patches = batch.job.patches
        experts: dict[int, _core.ExpertSite] = {}
        for index in expert_layers(patches):
            site = experts[index] = batch.expert_site(index)
            table.add(site)
            router = router_of(anatomy, index)
            if router is not None:
                tap = batch.taps[index] = RouterTap(expert_count(anatomy, index))
                handles.append(router.register_forward_hook(tap))
        self._arm_experts(experts, slims, handles)
        if batch.growth is Growth.BEHIND:
            for index in sorted({patch.layer for patch in patches}):
                birth = Birth(batch, index, experts.get(index))
                table.add(birth.site)
                birth.arm(anatomy.layers[index], anatomy.site(index), handles)
        else:
            for index in sorted({patch.layer for patch in patches if not isinstance(patch, ExpertPatch)}):
                armed(anatomy.site(index).block, batch.block_site(index))
        return experts

    def _arm_experts(
        self, sites: dict[int, _core.ExpertSite], slims: dict[int, SlimExperts], handles: list[Any]
    ) -> None:
        """Register the hooks on experts modules, in the order in which they must run.

        Newborn rows are taken out before the compiled routine sees the call, and put back behind it; the
        site is fired on all rows.
        """
        for index, place in enumerate(self.job.anatomy.sites):
            if place is None or place.experts is None:
                continue
            module, where = place.experts, f"layer {index}"
            slim, site = slims.get(index), sites.get(index)
            wanted = partial(_rows_in_call, site, slim)
            compiled = CompiledExperts(module, where, wanted)
            if slim is not None:
                handles.append(module.register_forward_pre_hook(slim.before, with_kwargs=True))
            handles.append(module.register_forward_pre_hook(compiled.before, with_kwargs=True))
            handles.append(module.register_forward_hook(compiled.after, with_kwargs=True))
            if slim is not None:
                handles.append(module.register_forward_hook(slim.after, with_kwargs=True))
            if site is not None:
                hook = expert_hook(site, where, wanted, compiled.contributions)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def _arm_growth(
        self, batch: BatchRows, table: _core.HookTable, handles: list[Any]
    ) -> dict[int, SlimExperts]:
        """Register the hooks by which forks join at their layer."""
        slims: dict[int, SlimExperts] = {}
        born = batch.start_rows
        for index, layer in enumerate(self.job.anatomy.layers):
            site, hook = grower(batch, index, born)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            handles.append(layer.register_forward_hook(refuse_extras))
            if site is not None:
                table.add(site)
                block = self.job.anatomy.sites[index]
                if block is not None and block.experts is not None:
                    slims[index] = SlimExperts(batch, index, born)
            born = batch.rows_behind(index)
        return slims
