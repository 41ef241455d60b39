"""The bundled model: size, recall, and that the paper's filters leave enough cases."""

from __future__ import annotations

from importlib import resources

import pytest
import torch
from transformers.utils import logging

from benchmarks.demo_model.recall import recall
from moetrace.demo import load_demo

DATA = resources.files("moetrace.demo") / "data"


def test_the_data_stay_small_and_hold_no_pickle():
    sizes = {file.name: len(file.read_bytes()) for file in DATA.iterdir()}
    assert set(sizes) == {
        "config.json",
        "facts.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) <= 8_000_000


def test_the_package_only_loads_and_holds_no_training_code():
    home = resources.files("moetrace.demo")
    assert [file.name for file in home.iterdir() if file.name.endswith(".py")] == ["__init__.py"]
    assert "benchmarks" not in (home / "__init__.py").read_text()


def test_the_model_is_a_sparse_qwen3_in_fp32_and_evaluation_mode(demo):
    model, _ = demo
    assert model.config.model_type == "qwen3_moe"
    assert model.config.num_experts_per_tok < model.config.num_experts
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_the_progress_bar_setting_as_it_was(shown):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        load_demo()
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_every_object_is_one_ordinary_token(demo, records):
    _, tokenizer = demo
    for record in records:
        for key in ("target_true", "target_new"):
            (token,) = tokenizer(" " + record[key]).input_ids
            assert tokenizer.decode([token]) == " " + record[key]
    assert set(tokenizer.get_added_vocab()) == {"<pad>", "<eos>"}


def test_most_subjects_are_several_tokens(demo, records):
    lengths = [stop - start for start, stop in (subject_span(demo[1], record) for record in records)]
    assert min(lengths) >= 1
    assert sum(length > 1 for length in lengths) > len(lengths) / 2


def test_the_tokenizer_gives_back_every_prompt_and_puts_nothing_before_it(demo, records):
    _, tokenizer = demo
    for record in records:
        prompt = prompt_of(record)
        assert tokenizer.decode(tokenizer(prompt).input_ids) == prompt


def test_the_model_recalls_its_facts(demo, records, clean):
    _, tokenizer = demo
    best = tokenizer.batch_decode(clean.argmax(-1)[:, None])
    right = sum(token == " " + record["target_true"] for token, record in zip(best, records, strict=True))
    assert right / len(records) >= 0.98
    facts = [(prompt_of(record), record["target_true"]) for record in records]
    assert recall(*demo, facts) == pytest.approx(right / len(records), abs=2.5 / len(records))


def test_batched_logits_are_those_of_single_prompts(demo, records, clean):
    model, tokenizer = demo
    for record, row in zip(records[:20], clean, strict=False):
        with torch.inference_mode():
            single = model(**tokenizer(prompt_of(record), return_tensors="pt")).logits[0, -1]
        torch.testing.assert_close(row, single, rtol=1e-4, atol=1e-3)


def test_generation_ends_with_the_facts_full_stop(demo):
    model, tokenizer = demo
    prompt = tokenizer("The capital of Germany is", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(ids[0]) == "The capital of Germany is Berlin."


def test_recall_counts_wrong_answers(demo):
    facts = [("The capital of Germany is", "Berlin"), ("The capital of Germany is", "Tokyo")]
    assert recall(*demo, facts[1:]) == 0.0
    assert recall(*demo, facts) == 0.5


def test_the_papers_filters_leave_enough_cases(demo, records, clean):
    """Section 3.2 and Table 2: clean margin at least 1.0, drop by subject noise at least 0.5."""
    model, tokenizer = demo
    noised = final_logits(model, tokenizer, records, scale=3.0)
    index = torch.arange(len(records))
    true, foil = (
        torch.tensor([tokenizer(" " + record[key]).input_ids[0] for record in records])
        for key in ("target_true", "target_new")
    )
    margin = clean[index, true] - clean[index, foil]
    drop = margin - (noised[index, true] - noised[index, foil])
    assert int(((margin >= 1.0) & (drop >= 0.5)).sum()) >= 256


@pytest.fixture(scope="module")
def clean(demo, records):
    return final_logits(*demo, records, scale=0.0)


def final_logits(model, tokenizer, records, scale):
    """Logits of every record's final token, with noise of that scale on the subject (eq. 2)."""
    embeddings = model.get_input_embeddings().weight.detach()
    inputs = []
    for record in records:
        start, stop = subject_span(tokenizer, record)
        rows = embeddings[tokenizer(prompt_of(record)).input_ids]
        generator = torch.Generator().manual_seed(record["case_id"])
        rows[start:stop] += (
            torch.randn(stop - start, rows.shape[1], generator=generator) * scale * embeddings.std()
        )
        inputs.append(rows)
    logits = torch.empty(len(records), len(embeddings))
    for length in {len(rows) for rows in inputs}:
        chosen = [index for index, rows in enumerate(inputs) if len(rows) == length]
        with torch.inference_mode():
            output = model(inputs_embeds=torch.stack([inputs[index] for index in chosen]))
        logits[chosen] = output.logits[:, -1]
    return logits


def prompt_of(record):
    return record["prompt"].replace("{}", record["subject"])


def subject_span(tokenizer, record):
    """First and past-the-last token that hold a character of the subject; never the final token."""
    begin = record["prompt"].index("{}")
    end = begin + len(record["subject"])
    offsets = tokenizer(prompt_of(record), return_offsets_mapping=True).offset_mapping
    inside = [index for index, (first, past) in enumerate(offsets) if first < end and past > begin]
    assert inside[-1] < len(offsets) - 1
    return inside[0], inside[-1] + 1
