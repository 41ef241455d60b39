"""Knock-outs against hooks written by hand: zero, mean, resample and reroute, at one token and at all."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import moetrace as mt
from tests.engines.oracle import block_of, layers_of, run
from tests.engines.tiny import make_cases, make_model

ABLATIONS = ("zero", "mean", "resample", "reroute")
# Softmax and top-k in either order, groups and sigmoids, a bias, shared experts, a scaled residual.
FAMILIES = ("qwen3_moe", "qwen2_moe", "olmoe", "deepseek_v3", "gpt_oss", "granitemoe")


@cache
def parts(family: str) -> tuple[Any, list[mt.Case]]:
    return make_model(family), make_cases(4)


def sparse_layers(model: Any) -> list[int]:
    return [i for i, layer in enumerate(layers_of(model)) if hasattr(block_of(layer), "experts")]


def router_of(block: torch.nn.Module) -> torch.nn.Module:
    return block.gate if hasattr(block, "gate") else block.router


class ByHand:
    """One clean run of one case with hooks of torch alone; what experts give is kept by token."""

    def __init__(self, model: Any, case: mt.Case) -> None:
        self.model, self.case = model, case
        self.tokens = len(case.input_ids)

    def routed(self) -> dict[int, list[list[int]]]:
        """Experts of each token, by layer."""
        found: dict[int, Any] = {}
        handles = []
        for layer in sparse_layers(self.model):

            def keep(_m: Any, args: Any, kwargs: Any, layer: int = layer) -> None:
                found[layer] = (args[1] if len(args) > 1 else kwargs["top_k_index"]).tolist()

            experts = block_of(layers_of(self.model)[layer]).experts
            handles.append(experts.register_forward_pre_hook(keep, with_kwargs=True))
        run(self.model, self.case)
        for handle in handles:
            handle.remove()
        return found

    def block_output(self, layer: int, off: tuple[int, list[int]] | None = None) -> torch.Tensor:
        """A block's output in the clean run, an expert's weight at zero at some tokens."""
        keep: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            handle = self.silence(layer, *off) if off else None
            run(self.model, self.case, keep=keep)
            if handle:
                handle.remove()
        return keep[layer]

    def silence(self, layer: int, expert: int, tokens: list[int]) -> Any:
        def hook(_m: Any, args: Any, kwargs: Any) -> Any:
            given = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
            weights = given["top_k_weights"].clone()
            for token in tokens:
                weights[token][given["top_k_index"][token] == expert] = 0.0
            return (given["hidden_states"], given["top_k_index"], weights), {}

        experts = block_of(layers_of(self.model)[layer]).experts
        return experts.register_forward_pre_hook(hook, with_kwargs=True)

    def contribution(self, layer: int, expert: int) -> torch.Tensor:
        """c_e of every token (equation 5), at the block's output: (tokens, width)."""
        return self.block_output(layer) - self.block_output(layer, (expert, [*range(self.tokens)]))

    def ablated(self, layer: int, expert: int, tokens: list[int], add: torch.Tensor | None) -> float:
        """The logit difference with the expert off at some tokens, and ``add`` (tokens, width) behind it."""
        handles = [self.silence(layer, expert, tokens)]
        if add is not None:

            def hook(_m: Any, _a: Any, out: Any) -> Any:
                value = out[0] if isinstance(out, tuple) else out
                value = (value.reshape(add.shape) + add).reshape(value.shape)
                return (value, *out[1:]) if isinstance(out, tuple) else value

            handles.append(block_of(layers_of(self.model)[layer]).register_forward_hook(hook))
        found = run(self.model, self.case)
        for handle in handles:
            handle.remove()
        return found

    def rerouted(self, layer: int, expert: int, tokens: list[int], monkeypatch: Any) -> float:
        """The logit difference with the expert's router logit at minus infinity at some tokens."""
        linear, inside = F.linear, [False]
        router = router_of(block_of(layers_of(self.model)[layer]))
        handles = [
            router.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True)),
            router.register_forward_hook(lambda *_: inside.__setitem__(0, False)),
        ]

        def masked(*args: Any, **kwargs: Any) -> Any:
            out = linear(*args, **kwargs)
            if inside[0]:
                out = out.clone()
                for token in tokens:
                    out[token, expert] = -torch.inf
            return out

        with monkeypatch.context() as patched:
            patched.setattr(F, "linear", masked)
            found = run(self.model, self.case)
        for handle in handles:
            handle.remove()
        return found


def means(hands: list[ByHand], routed: list[Any], layer: int, expert: int, everywhere: bool) -> torch.Tensor:
    rows = []
    for hand, own in zip(hands, routed, strict=True):
        tokens = range(hand.tokens) if everywhere else [hand.tokens - 1]
        active = [token for token in tokens if expert in own[layer][token]]
        if active:
            rows.append(hand.contribution(layer, expert)[active])
    return torch.cat(rows).mean(dim=0)


WAYS = [
    *(("last", "tree", family) for family in FAMILIES),
    *(("last", "reference", family) for family in ("qwen2_moe", "gpt_oss")),
    *(("all", "tree", family) for family in ("qwen3_moe", "deepseek_v3", "gpt_oss")),
    ("all", "auto", "qwen2_moe"),
]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("position", "engine", "family"), WAYS)
def test_equals_hooks_by_hand(position, engine, family, ablation, monkeypatch):
    model, cases = parts(family)
    layer = sparse_layers(model)[1]
    everywhere = position == "all"
    options = {"ablation": ablation, "position": position, "engine": engine, "seed": 3}
    found = mt.trace_knockout(model, cases, layers=layer, **options)
    # Weights that aren't renormalised also change at tokens that don't choose the expert.
    everyone = everywhere and family == "qwen2_moe" and ablation == "reroute"
    assert found.provenance["engine"] == ("reference" if engine == "reference" or everyone else "tree")
    hands = [ByHand(model, case) for case in cases]
    routed = [hand.routed() for hand in hands]
    checked = 0
    for index, hand in enumerate(hands):
        tokens = [*range(hand.tokens)] if everywhere else [hand.tokens - 1]
        active = {expert for token in tokens for expert in routed[index][layer][token]}
        np.testing.assert_array_equal(np.flatnonzero(found.clean_active[index]), sorted(active))
        inactive = [e for e in range(found.effects.shape[1]) if e not in active]
        assert (found.effects[index, inactive] == 0).all()
        for expert in sorted(active)[:: 3 if everywhere else 1]:
            if ablation == "reroute":
                expected = hand.rerouted(layer, expert, tokens, monkeypatch)
            else:
                own = [token for token in tokens if expert in routed[index][layer][token]]
                add = torch.zeros(hand.tokens, 32)
                if ablation == "mean":
                    add[own] = means(hands, routed, layer, expert, everywhere)
                if ablation == "resample":
                    donor = hands[[c.case_id for c in cases].index(int(found.donors[index, expert]))]
                    assert donor is not hand
                    given = donor.contribution(layer, expert)
                    for token in own:
                        there = donor.tokens - hand.tokens + token  # as far from the end
                        if there >= 0:
                            add[token] = given[there]
                expected = hand.ablated(layer, expert, tokens, None if ablation == "zero" else add)
            difference = found.effects[index, expert] + found.cases.clean[index] - expected
            assert abs(difference) < 2e-4, (index, expert)
            checked += abs(expected - found.cases.clean[index]) > 1e-3
    assert checked >= 2
