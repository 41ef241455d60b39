"""Write a checkpoint of Qwen3-30B-A3B's exact shape with random weights, as it would lie on the hub.

```
python -m benchmarks.checkpoint /big/disk/qwen3 --layers 24
```

bf16, one tensor for each expert and projection, several shards and their index: 0.62 GB for each of embedding
and head, and 1.25 GB a layer (48 layers are 61 GB). Weights are drawn from N(0, 0.02²), as the real model's
were before its training, and norms are 1, so logits are finite. Each tensor is a stretch of one long draw,
from a place of its own: drawing every element would take longer than writing it.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3MoeConfig

SPREAD = 0.02
POOL = 1 << 26  # numbers drawn
SHARD = 4_000_000_000  # bytes, as on the hub


@dataclass(frozen=True)
class Tensor:
    """``size``: in bytes."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return 2 * prod(self.shape)


def shape_of_qwen3(layers: int = 48, vocabulary: int = 151_936) -> Qwen3MoeConfig:
    """The configuration of Qwen3-30B-A3B-Base, but for the number of layers and of tokens."""
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        norm_topk_prob=True,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="bfloat16",
    )


def write_checkpoint(
    folder: Path, config: Qwen3MoeConfig, *, seed: int = 0, shard: int = SHARD, drawn: int = POOL
) -> int:
    """Write config, shards and index into a folder; how many bytes of weights there are.

    ``shard``: bytes of a file at most; ``drawn``: how many numbers are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[Tensor]] = [[]]
    for tensor in _tensors(config):
        if shards[-1] and sum(own.size for own in shards[-1]) + tensor.size > shard:
            shards.append([])
        shards[-1].append(tensor)
    random = np.random.default_rng(seed)
    numbers = torch.from_numpy(random.standard_normal(drawn, dtype=np.float32)).mul_(SPREAD)
    longest = max(tensor.size for tensors in shards for tensor in tensors)
    # A tensor may start anywhere in the first of them.
    pool = numbers.to(torch.bfloat16).repeat(1 - (-longest // (2 * drawn))).view(torch.uint8).numpy()
    ones = torch.ones(config.hidden_size, dtype=torch.bfloat16).view(torch.uint8).numpy()

    weight_map = {}
    for number, unsorted in enumerate(shards, 1):
        tensors = sorted(unsorted, key=lambda own: own.name)  # as safetensors writes them
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {tensor.name: name for tensor in tensors}
        with (folder / name).open("wb") as file:
            file.write(_header(tensors))
            for tensor in tensors:
                start = 2 * int(random.integers(drawn))
                one = len(tensor.shape) == 1
                file.write((ones if one else pool[start:])[: tensor.size].data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # readers are to find it on the disk, not in memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    total = sum(tensor.size for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config.save_pretrained(folder)
    return total


def _tensors(config: Qwen3MoeConfig) -> Iterator[Tensor]:
    """Every tensor in the order of the shards."""
    width, head, wide = config.hidden_size, config.head_dim, config.moe_intermediate_size
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    yield Tensor("model.embed_tokens.weight", (config.vocab_size, width))
    for layer in range(config.num_hidden_layers):
        for name, shape in {
            "input_layernorm": (width,),
            **{f"mlp.experts.{e}.gate_proj": (wide, width) for e in range(config.num_experts)},
            **{f"mlp.experts.{e}.up_proj": (wide, width) for e in range(config.num_experts)},
            **{f"mlp.experts.{e}.down_proj": (width, wide) for e in range(config.num_experts)},
            "mlp.gate": (config.num_experts, width),
            "post_attention_layernorm": (width,),
            "self_attn.k_norm": (head,),
            "self_attn.k_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "self_attn.q_norm": (head,),
            "self_attn.q_proj": (queries, width),
            "self_attn.v_proj": (keys, width),
        }.items():
            yield Tensor(f"model.layers.{layer}.{name}.weight", shape)
    yield Tensor("model.norm.weight", (width,))
    yield Tensor("lm_head.weight", (config.vocab_size, width))


def _header(tensors: list[Tensor]) -> bytes:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, at + tensor.size]}
        at += tensor.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = write_checkpoint(options.folder, shape_of_qwen3(options.layers), seed=options.seed)
    print(f"{options.folder}: {options.layers} layers, {total / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
