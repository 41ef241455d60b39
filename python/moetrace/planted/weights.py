"""The weights of a planted model, set by hand."""

from __future__ import annotations

import math
from typing import Any

import torch

from moetrace.planted.design import GAIN, SLOPE, SWITCH, THRESHOLD, Design, Role
from moetrace.planted.signal import (
    CONST,
    HEIGHT,
    LOGIT,
    PAIR,
    RELATION,
    SCRATCH,
    SIGNAL,
    SPAN,
    SUBJECT,
    WIDTH,
    Prompts,
)

INNER = 16  # intermediate size of an expert, of which three units are used
OPEN = 40.0  # a gate's pre-activation at which silu(x) is x
STEEP = 2048.0  # the pair's gate: silu(STEEP * t) / STEEP is max(t, 0) to 1e-8 where |t| > 0.01
NEVER = -30.0  # a router's logit beside those of routed experts, which are above -4
EPS = 1e-6


def build_model(design: Design, prompts: Prompts, attends: int = 0, reads: int = SUBJECT) -> Any:
    """A model of transformers in float32 and evaluation mode; the global random state is left alone.

    ``attends``: the one layer with attention, which moves the coordinate ``reads`` to the signal's.
    """
    import transformers

    maker: Any = transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        model = maker.from_config(
            _config(design, len(prompts.embedding)), dtype=torch.float32, attn_implementation="sdpa"
        )
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    # The final token's norm then leaves the residual as it is.
    identity = math.sqrt(HEIGHT**2 / WIDTH + EPS)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else identity)
    model.get_input_embeddings().weight.copy_(torch.from_numpy(prompts.embedding))
    _set_head(model.get_output_embeddings().weight, prompts)
    layers = model.model.layers
    _set_attention(layers[attends].self_attn, identity, reads)
    for layer, roles in zip(layers, design.roles, strict=True):
        _set_router(layer.mlp.gate.weight, roles)
        _set_experts(layer.mlp.experts, roles)
    return model


def _config(design: Design, vocabulary: int) -> Any:
    import transformers

    family = design.family
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": INNER, "rms_norm_eps": EPS,
        "num_hidden_layers": len(design.roles), "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "max_position_embeddings": 64, "num_experts_per_tok": family.top_k,
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if family.model_type == "mixtral":
        return transformers.MixtralConfig(**common, num_local_experts=family.experts)
    return transformers.Qwen3MoeConfig(
        **common, num_experts=family.experts, moe_intermediate_size=INNER, norm_topk_prob=True
    )


def _set_head(head: torch.Tensor, prompts: Prompts) -> None:
    """Objects read the logit coordinate with opposite signs, and scratch alike: their contrast lacks it."""
    head[list(prompts.true_ids), LOGIT] = GAIN / 2
    head[list(prompts.foil_ids), LOGIT] = -GAIN / 2
    head[[*prompts.true_ids, *prompts.foil_ids], SCRATCH] = 0.1


def _set_attention(attention: Any, identity: float, reads: int) -> None:
    """Queries of zero attend to all tokens alike; the first head's value is the coordinate that it reads."""
    attention.v_proj.weight[0, reads] = SPAN / (identity * math.sqrt(WIDTH))
    attention.o_proj.weight[SIGNAL, 0] = 1.0


def _set_router(router: torch.Tensor, roles: tuple[Role, ...]) -> None:
    """The softmax over the routed experts of logits log(w) is w, since their weights sum to 1."""
    router[:, CONST] = NEVER / HEIGHT
    for role in roles:
        row, logit = router[role.expert], math.log(role.weight)
        if role.when == "signal":
            row[SIGNAL] = SLOPE
            logit -= SLOPE
        elif role.when == "pair":
            row[PAIR] = SLOPE
            logit -= SLOPE
        elif role.when in ("no_signal", "no_pair"):
            logit += SLOPE * (SWITCH - 1.0)
        elif role.when == "0":
            row[RELATION] = NEVER
        elif role.when == "1":
            row[RELATION] = -NEVER
            logit += NEVER
        row[CONST] = logit / HEIGHT


def _set_experts(experts: Any, roles: tuple[Role, ...]) -> None:
    gate, up = experts.gate_up_proj[:, :INNER], experts.gate_up_proj[:, INNER:]
    down = experts.down_proj
    # Unit 0 passes the signal on, unit 1 the constant, unit 2 opens with the pair coordinate.
    gate[:, :2, CONST] = OPEN / HEIGHT
    up[:, 0, SIGNAL] = 1.0
    up[:, 1:3, CONST] = 1.0 / HEIGHT
    # Experts without a role are never routed at the final token; a trace that routes there shows it.
    down[:, LOGIT, 1] = 100.0 / OPEN
    for role in roles:
        out = down[role.expert]
        out.zero_()
        for coordinate, amount in ((LOGIT, role.share), (PAIR, role.half), (SCRATCH, role.scratch)):
            out[coordinate, 0] = amount / (OPEN * role.weight)
        out[LOGIT, 1] = role.step / (OPEN * role.weight)
        if role.reads:
            gate[role.expert, 2, PAIR] = STEEP
            gate[role.expert, 2, CONST] = -STEEP * THRESHOLD / HEIGHT
            out[LOGIT, 2] = role.reads / (STEEP * role.weight)
