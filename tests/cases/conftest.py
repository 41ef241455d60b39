from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from real_tokenizers import mixtral_tokenizer, qwen_tokenizer
from transformers import PreTrainedTokenizerFast

from moetrace.cases import CaseSet, Records, load_records, make_cases


@pytest.fixture(scope="session")
def counterfact(shared: Path) -> Records:
    return load_records(shared / "data" / "counterfact.json")


@pytest.fixture(scope="session")
def published(shared: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((shared / "paper" / "published.json").read_text())
    return figures


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {"qwen3": qwen_tokenizer(), "mixtral": mixtral_tokenizer()}


@pytest.fixture(scope="session")
def all_cases(counterfact: Records, tokenizers: dict[str, PreTrainedTokenizerFast]) -> dict[str, CaseSet]:
    """The cases of all CounterFact records under the paper's two tokenizers."""
    return {name: make_cases(counterfact, tokenizer) for name, tokenizer in tokenizers.items()}
