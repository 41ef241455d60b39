"""Layer sweeps of hybrids against plain hooks: layers that mix tokens otherwise than by masked attention.

```
python -m benchmarks.hybrids --repeats 2
```

Each family is the tiny one of ``tests/engines/hybrids.py``, deeper and wider: ``--layers`` layers and
``--scale`` times as wide, random weights, prompts of 12 tokens. Plain hooks run one forward for each patch,
without a cache, on ``--peer-cases`` cases at a time; moetrace runs all cases in one call, its engine known
from the warm-up. What was measured is kept in ``benchmarks/results/hybrids.json``, family by family.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import moetrace as mt
from benchmarks import report
from benchmarks.model import NOISE_SCALE
from benchmarks.peers.hf_loop import hooked
from benchmarks.timing import Timed, interleave
from moetrace.models.anatomy import find_anatomy
from tests.engines import oracle
from tests.engines.hybrids import HYBRIDS
from tests.engines.tiny import LAYERS, VOCAB
from tests.engines.wide import Family, Plain, make_wide

GOAL = 5.0
TOKENS, SUBJECT = 12, (3, 7)
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
    "shared_intermediate_size", "dense_intermediate_size", "moe_shared_expert_intermediate_size", "head_dim",
    "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "qk_nope_head_dim", "qk_rope_head_dim",
    "v_head_dim", "swa_head_dim", "index_head_dim", "indexer_head_dim", "mamba_d_head", "mamba_head_dim",
    "kv_lora_rank", "q_lora_rank", "o_lora_rank", "mamba_dt_rank", "router_hidden_size", "ple_embed_dim",
    "rotary_dim", "mrope_section",
)  # fmt: skip


def enlarged(values: dict[str, Any], layers: int, scale: int) -> dict[str, Any]:
    """A tiny configuration's entries for a model of so many layers and so many times its width."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            value = enlarged(value, layers, scale)
        elif name in WIDTHS and value:
            value = [scale * item for item in value] if isinstance(value, list) else scale * value
        elif name == "num_hidden_layers":
            value = layers
        elif name in ("mlp_layer_types", "indexer_types") and value:
            value = value + value[-1:] * (layers - LAYERS)
        elif isinstance(value, list) and len(value) == LAYERS:
            value = value * (layers // LAYERS)
        found[name] = value
    return found


def larger(family: Family, layers: int, scale: int) -> Family:
    """A family at another size."""

    def config() -> Any:
        tiny = family.config()
        return type(tiny).from_dict(enlarged(tiny.to_dict(), layers, scale))

    return replace(family, config=config)


def make_cases(count: int) -> list[mt.Case]:
    """Random prompts of 12 tokens, as in the other benchmarks."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (count, TOKENS), generator=generator).tolist()
    return [mt.Case(own, SUBJECT, 10, 40, index) for index, own in enumerate(ids)]


def drawn(cases: list[mt.Case], width: int) -> list[torch.Tensor]:
    """A standard Gaussian for each case's subject, (tokens, width)."""
    size = (SUBJECT[1] - SUBJECT[0], width)
    return [torch.randn(size, generator=torch.Generator().manual_seed(case.case_id)) for case in cases]


@torch.inference_mode()
def plain_hooks(model: Any, blocks: list[Any], case: mt.Case, noise: torch.Tensor) -> np.ndarray:
    """Rescue of each block's layer, one forward for each patch: (layers,)."""
    ids = torch.tensor([case.input_ids])

    def difference() -> float:
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        return (logits[case.true_id] - logits[case.foil_id]).item()

    def flat(output: Any) -> torch.Tensor:
        value = output[0] if isinstance(output, tuple) else output
        return value.view(-1, value.shape[-1])

    def corrupt(_module: Any, _args: Any, output: torch.Tensor) -> None:
        output[0, SUBJECT[0] : SUBJECT[1]] += noise

    kept: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(hooked(block, lambda _m, _a, output: kept.append(flat(output)[-1].clone())))
        difference()

    def overwrite(value: torch.Tensor) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            flat(output)[-1] = value

        return hook

    found = []
    with hooked(model.get_input_embeddings(), corrupt):
        noised = difference()
        for block, value in zip(blocks, kept, strict=True):
            with hooked(block, overwrite(value)):
                found.append(difference() - noised)
    return np.array(found)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One family: numbers of all methods compared, then their times side by side."""
    known = larger(HYBRIDS[name], options.layers, options.scale)
    model, cases = make_wide(known), make_cases(options.cases)
    with torch.no_grad():
        for parameter in model.parameters():  # drawn for the tiny width
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.mul_((2 * options.scale) ** -0.5)
    blocks = [layer.mlp for layer in Plain(model, known).model.layers]

    def ours(_: int = 0) -> Any:
        return mt.trace_layers(model, cases, progress=False)

    traced = ours()
    std = oracle.embedding_output_std(Plain(model, known))
    noise = [NOISE_SCALE * std * own for own in drawn(cases, find_anatomy(model).hidden_size)]

    apart = []  # largest differences of the numbers

    def plain(repetition: int) -> None:
        chosen = [(repetition * options.peer_cases + at) % len(cases) for at in range(options.peer_cases)]
        traced_blocks = [blocks[layer] for layer in traced.layers]
        found = np.stack([plain_hooks(model, traced_blocks, cases[at], noise[at]) for at in chosen])
        apart.append(float(np.abs(found - traced.effects[chosen]).max()))

    mine = Timed("moetrace", len(cases), ours)
    hooks = Timed("hooks", options.peer_cases, plain)
    with torch.no_grad():
        ids = torch.tensor([case.input_ids for case in cases])
        forwards = Timed(
            "forwards", len(cases), lambda _: [model(input_ids=ids, use_cache=False) for _ in "cn"]
        )
        interleave(mine, [hooks, forwards], options.repeats)
    return {
        "family": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "engine": traced.provenance["engine"],
        "reason": traced.provenance["engine_reason"],
        "seconds_per_case": mine.median_seconds,
        "hooks_over_moetrace": hooks.median_ratio,
        "range": [min(hooks.ratios), max(hooks.ratios)],
        "moetrace_over_forwards": 1 / forwards.median_ratio,
        "max_difference": max(apart),
        "mean_rescue_magnitude": float(np.abs(traced.effects).mean()),
    }


def main() -> None:
    """Measure the families that are asked for; those that were measured before are kept."""
    parser = argparse.ArgumentParser(description="layer sweeps of hybrids against plain hooks")
    parser.add_argument("families", nargs="*", default=list(HYBRIDS))
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--peer-cases", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = report.RESULTS / "hybrids.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    known = {row["family"]: row for row in rows}
    environment = report.environment()
    settings = {key: value for key, value in vars(options).items() if key != "families"}
    for name in options.families:
        known[name] = measure(name, options)
        print(json.dumps(known[name]), flush=True)
        settings = {key: value for key, value in vars(options).items() if key != "families"}
        ordered = [known[family] for family in HYBRIDS if family in known]
        report.write(
            "hybrids", {"environment": environment, "settings": settings, "goal": GOAL, "rows": ordered}
        )
    print(f"median {statistics.median(row['hooks_over_moetrace'] for row in known.values()):.1f}")


if __name__ == "__main__":
    main()
