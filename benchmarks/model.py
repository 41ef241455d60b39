"""The randomly initialised Qwen3-MoE and the cases that every row of the tables runs on.

```python
model = build_model()
cases = build_cases(16)
noise = draw_noise(model, cases)
```
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

VOCABULARY = 32_000
PROMPT_TOKENS = 12
SUBJECT = (3, 7)  # tokens 3..6; tokens 0..2 are shared by the clean and the noised prompt
NOISE_SCALE = 3.0


@dataclass(frozen=True)
class Case:
    """One prompt with its subject span (stop is exclusive) and its true and foil token."""

    input_ids: tuple[int, ...]
    subject: tuple[int, int]
    true_id: int
    foil_id: int
    case_id: int


def build_model(layers: int = 24, seed: int = 0, top_k: int = 4) -> Qwen3MoeForCausalLM:
    """Qwen3-MoE of the benchmark in fp32: width 512, 32 experts of width 256, top-4, vocabulary 32,000.

    Heads (8 of width 64, 4 for keys and values) follow Qwen3's grouped attention. Weights are drawn by
    transformers' own initialisation from ``seed``; attention and expert kernels are its defaults.
    """
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts=32,
        num_experts_per_tok=top_k,
        moe_intermediate_size=256,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="float32",
    )
    return Qwen3MoeForCausalLM(config).eval().requires_grad_(False)


def twin(model: Qwen3MoeForCausalLM) -> Qwen3MoeForCausalLM:
    """The same model in other module objects: the weights are shared, a wrapper around one is not."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared})


def build_cases(count: int, seed: int = 0) -> list[Case]:
    """``count`` random prompts of 12 tokens; the first n of a longer list are the list of n."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for case_id in range(count):
        tokens = torch.randint(VOCABULARY, (PROMPT_TOKENS,), generator=generator).tolist()
        true_id, foil_id = torch.randint(VOCABULARY, (2,), generator=generator).tolist()
        foil_id = foil_id if foil_id != true_id else (true_id + 1) % VOCABULARY
        cases.append(Case(tuple(tokens), SUBJECT, true_id, foil_id, case_id))
    return cases


def draw_noise(model: Qwen3MoeForCausalLM, cases: Sequence[Case]) -> dict[int, Tensor]:
    """What is added to each case's subject embeddings, by case id: fp32, (subject tokens, width).

    One Gaussian draw a case, seeded by its id, scaled by 3.0 times the standard deviation of the
    embedding matrix (section 3.2 and Table 2). Peers get it ready made, outside the measured time.
    """
    weight = model.get_input_embeddings().weight
    scale = NOISE_SCALE * weight.float().std()
    noise = {}
    for case in cases:
        start, stop = case.subject
        generator = torch.Generator().manual_seed(case.case_id)
        noise[case.case_id] = torch.randn(stop - start, weight.shape[1], generator=generator) * scale
    return noise


def logit_difference(logits: Tensor, case: Case) -> Tensor:
    """Logit of the true minus that of the foil token (equation 1), for logits (..., vocabulary)."""
    return logits[..., case.true_id] - logits[..., case.foil_id]
