"""Every method gives the rescue of section 3.3: the plain loop is checked by hand, the rest against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeForCausalLM

from benchmarks import baselines, ours
from benchmarks.layers import PEERS, Peer, installed
from benchmarks.model import Case, build_cases, build_model, draw_noise, twin
from benchmarks.peers import hf_loop

LAYERS = 3


@pytest.fixture(scope="module")
def model() -> Qwen3MoeForCausalLM:
    return build_model(layers=LAYERS)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return build_cases(2)


@pytest.fixture(scope="module")
def noise(model: Qwen3MoeForCausalLM, cases: list[Case]) -> dict[int, Tensor]:
    return draw_noise(model, cases)


@pytest.fixture(scope="module")
def plain(model: Qwen3MoeForCausalLM, cases: list[Case], noise: dict[int, Tensor]) -> np.ndarray:
    return hf_loop.prepare(model)(cases, noise)


def by_hand(
    model: Qwen3MoeForCausalLM, case: Case, added: Tensor | None, patches: dict[int, Tensor]
) -> tuple[float, list[Tensor]]:
    """Logit difference and final block outputs, layer by layer in float32 without any hook."""
    inner = model.model
    hidden = inner.embed_tokens(torch.tensor([case.input_ids]))
    if added is not None:
        start, stop = case.subject
        hidden = torch.cat([hidden[:, :start], hidden[:, start:stop] + added, hidden[:, stop:]], dim=1)
    length = hidden.shape[1]
    rotary = inner.rotary_emb(hidden, torch.arange(length)[None])
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    outputs = []
    for index, layer in enumerate(inner.layers):
        attended, _ = layer.self_attn(layer.input_layernorm(hidden), rotary, mask)
        hidden = hidden + attended
        block = layer.mlp(layer.post_attention_layernorm(hidden))
        outputs.append(block[0, -1].clone())
        if index in patches:
            block = torch.cat([block[:, :-1], patches[index][None, None]], dim=1)
        hidden = hidden + block
    logits = inner.norm(hidden[0, -1]) @ model.lm_head.weight.T
    return (logits[case.true_id] - logits[case.foil_id]).item(), outputs


def test_the_plain_loop_is_what_the_layers_called_by_hand_give(
    model: Qwen3MoeForCausalLM, cases: list[Case], noise: dict[int, Tensor], plain: np.ndarray
) -> None:
    expected = np.empty((len(cases), LAYERS))
    for row, case in enumerate(cases):
        added = noise[case.case_id]
        _, clean = by_hand(model, case, None, {})
        noised, _ = by_hand(model, case, added, {})
        for layer in range(LAYERS):
            expected[row, layer] = by_hand(model, case, added, {layer: clean[layer]})[0] - noised
    assert np.abs(expected).min() > 1e-4  # rescue of this model is far above rounding
    np.testing.assert_allclose(plain, expected, atol=2e-6)


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(
            peer,
            id=peer.key,
            marks=pytest.mark.skipif(not installed(peer.module), reason=f"{peer.module.requirement} missing"),
        )
        for peer in PEERS
    ],
)
def test_every_peer_agrees_with_the_plain_loop(
    peer: Peer,
    model: Qwen3MoeForCausalLM,
    cases: list[Case],
    noise: dict[int, Tensor],
    plain: np.ndarray,
) -> None:
    rescue = peer.prepare(twin(model))(cases, noise)
    assert rescue.shape == (len(cases), LAYERS)
    np.testing.assert_allclose(rescue, plain, atol=2e-6)


@pytest.mark.skipif(not installed(ours), reason="moetrace missing")
def test_moetrace_agrees_with_the_plain_loop(
    model: Qwen3MoeForCausalLM, cases: list[Case], plain: np.ndarray
) -> None:
    np.testing.assert_allclose(ours.rescue(model, cases), plain, atol=5e-6)


@pytest.mark.parametrize("prepare", [baselines.prepare_separate, baselines.prepare_together])
def test_the_forwards_alone_are_the_clean_and_the_noised_run(
    prepare: object, model: Qwen3MoeForCausalLM, cases: list[Case], noise: dict[int, Tensor]
) -> None:
    assert callable(prepare)
    expected = [
        [by_hand(model, case, added, {})[0] for added in (None, noise[case.case_id])] for case in cases
    ]
    np.testing.assert_allclose(prepare(model)(cases, noise), expected, atol=2e-6)


def test_the_prompts_differ_and_a_longer_list_begins_with_the_shorter() -> None:
    assert build_cases(16)[:4] == build_cases(4)
    assert len({case.input_ids for case in build_cases(256)}) == 256


def test_a_twin_shares_weights_but_no_module(model: Qwen3MoeForCausalLM) -> None:
    other = twin(model)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert pairs
    assert all(mine is theirs for mine, theirs in pairs)
    assert not set(map(id, model.modules())) & set(map(id, other.modules()))
