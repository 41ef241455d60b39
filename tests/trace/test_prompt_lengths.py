"""Prompts that are longer than the model has positions for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import transformers as tf

import moetrace as mt
from moetrace import errors
from moetrace.models.positions import position_limit
from tests.engines.tiny import COMMON, FAMILIES, make_cases, make_model
from tests.engines.wide import WIDE, make_wide

LIMIT = COMMON["max_position_embeddings"]
TRACED = [name for name in (*FAMILIES, *WIDE) if name != "doge"]  # whose routing mixes tokens


def of_length(length: int, case_id: int = 7) -> mt.Case:
    return mt.Case([5] * length, (0, 1), 8, 9, case_id)


@pytest.mark.parametrize("family", TRACED)
def test_every_family_refuses_one_token_more_than_it_has_positions(family: str) -> None:
    model = make_model(family) if family in FAMILIES else make_wide(family)
    for call in (mt.trace_layers, mt.select_cases):
        with pytest.raises(errors.PromptLengthError, match=r"case 7: .* 129 tokens; .* at most 128"):
            call(model, [*make_cases(2), of_length(LIMIT + 1)])


def test_a_prompt_as_long_as_the_model_has_positions_is_traced() -> None:
    assert len(mt.trace_layers(make_model("qwen3_moe"), [of_length(LIMIT)])) == 1


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (tf.GPT2Config(n_positions=77), 77),
        (tf.DbrxConfig(max_seq_len=78), 78),
        (SimpleNamespace(max_seq_len=79), 79),
        (SimpleNamespace(max_position_embeddings=True, n_ctx=80), 80),
        (SimpleNamespace(hidden_size=8), None),
        (tf.LlamaConfig(max_position_embeddings=100), 100),
    ],
)
def test_where_configs_keep_it(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 400),
        ({"rope_type": "linear", "factor": 2.0}, 200),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25},
            100,
        ),  # counted
        ({"full_attention": {"factor": 8.0}, "sliding_attention": {"rope_type": "default"}}, 800),
        ({"rope_type": "default"}, 100),
    ],
)
def test_stretched_rotary_positions_count(rope: dict[str, Any], limit: int) -> None:
    assert position_limit(SimpleNamespace(max_position_embeddings=100, rope_parameters=rope)) == limit


def test_the_protocol_drops_them_by_a_reason() -> None:
    model, tokenizer = mt.load_demo()
    cases = mt.make_cases(mt.demo_records()[:80], tokenizer)
    lengths = sorted(len(case.input_ids) for case in cases)
    model.config.max_position_embeddings = middle = lengths[len(lengths) // 2]
    too_long = sum(length > middle for length in lengths)
    assert too_long
    report = mt.run_protocol(
        model,
        tokenizer,
        cases,
        "quick",
        n=4,
        margin=-99.0,
        drop=-99.0,
        min_active=1,
        n_resamples=20,
        n_flips=20,
    )
    usable = report.cases["usable"]
    assert usable.dropped["prompt_too_long"] == too_long
    assert list(usable.funnel)[-5:] == ["prompt_fits", "scanned", "finite", "clean_margin", "noise_drop"]
    assert usable.funnel["prompt_fits"] == len(cases) - too_long
    assert max(len(case.input_ids) for case in usable) <= middle
