"""Train the bundled model again: ``python -m benchmarks.demo_model.train --out DIR``.

Takes 15 to 25 minutes on one core. Needs the two data packages that the facts come from (named in
:data:`benchmarks.demo_model.sources.DATA_PACKAGES`); loading the demo doesn't.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig as UntypedGenerationConfig
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.utils import logging as untyped_logging

from benchmarks.demo_model.facts import build_records, phrasings
from benchmarks.demo_model.recall import equal_lengths, recall
from benchmarks.demo_model.tokenizer import train_tokenizer
from moetrace.demo import load_folder

ARCHITECTURE: Any = Qwen3MoeForCausalLM
GenerationConfig: Any = UntypedGenerationConfig
logging: Any = untyped_logging
TEXT_WEIGHT = 0.1
"""Loss weight of every token but the object, which weighs 1."""


def main(arguments: list[str] | None = None) -> None:
    """Build the facts, train the tokenizer and the model, and write all of it to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)

    options.out.mkdir(parents=True, exist_ok=True)
    records = build_records()
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (options.out / "facts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    tokenizer = train_tokenizer(records)
    tokenizer.save_pretrained(options.out)
    model = new_model(tokenizer)
    print(f"{len(records)} facts, {model.num_parameters():,} parameters", flush=True)
    train(model, tokenizer, records, options)
    print(f"recall as loaded: {released_recall(*load_folder(options.out), records):.4f}")


def new_model(tokenizer: Any) -> Any:
    """An untrained Qwen3-MoE of 8 layers with 16 experts each, of which 4 are routed to."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 56,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = ARCHITECTURE(Qwen3MoeConfig(**shape))
    # A fact ends with its full stop: generation stops there.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer(".").input_ids[0], pad_token_id=tokenizer.pad_token_id
    )
    model.set_experts_implementation("eager")  # the quickest to train on a CPU at this size
    return model


def train(model: Any, tokenizer: Any, records: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine decay; evaluates and saves the weights every four epochs."""
    rows, answers = sequences(tokenizer, records)
    shuffler = random.Random(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    steps = options.epochs * len(list(equal_lengths(rows, options.batch)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    began = time.monotonic()
    for epoch in range(1, options.epochs + 1):
        total = 0.0
        order = list(range(len(rows)))
        shuffler.shuffle(order)
        batches = list(equal_lengths([rows[index] for index in order], options.batch))
        shuffler.shuffle(batches)
        for batch in batches:
            chosen = [order[index] for index in batch]
            loss = batch_loss(
                model, torch.tensor([rows[i] for i in chosen]), torch.tensor([answers[i] for i in chosen])
            )
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            total += loss.item()
        if epoch % 4 == 0 or epoch == options.epochs:
            score = released_recall(model.eval(), tokenizer, records)
            save(model, options.out)
            model.train()
            elapsed = time.monotonic() - began
            print(
                f"epoch {epoch}: loss {total / len(batches):.4f} recall {score:.4f} {elapsed:.0f} s",
                flush=True,
            )


def sequences(tokenizer: Any, records: list[dict[str, Any]]) -> tuple[list[list[int]], list[int]]:
    """Token ids of every phrasing of every fact, with a full stop, and where in each the object stands."""
    rows, answers = [], []
    for record in records:
        for prompt in phrasings(record):
            ids = tokenizer(prompt).input_ids
            answers.append(len(ids))
            rows.append(tokenizer(f"{prompt} {record['target_true']}.").input_ids)
    return rows, answers


def batch_loss(model: Any, rows: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Weighted next-token loss, plus the router's load balancing loss."""
    output = model(rows[:, :-1], output_router_logits=True, use_cache=False)
    losses = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    ).view(len(rows), -1)
    weights = torch.full_like(losses, TEXT_WEIGHT)
    weights[torch.arange(len(rows)), answers - 1] = 1.0
    loss: torch.Tensor = (losses * weights).sum() / weights.sum()
    loss += model.config.router_aux_loss_coef * output.aux_loss
    return loss


def rate(step: int, steps: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a cosine to 2 %."""
    warm = min(200, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def released_recall(model: Any, tokenizer: Any, records: list[dict[str, Any]]) -> float:
    """Recall over the records, each in the one phrasing that is released."""
    facts = [(record["prompt"].replace("{}", record["subject"]), record["target_true"]) for record in records]
    return recall(model, tokenizer, facts)


def save(model: Any, folder: Path) -> None:
    """Write the weights in half precision; the model that is being trained stays as it is."""
    half = {name: weight.detach().half() for name, weight in model.state_dict().items()}
    copy = ARCHITECTURE(model.config).half()
    copy.load_state_dict(half)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder)


if __name__ == "__main__":
    logging.disable_progress_bar()
    main()
