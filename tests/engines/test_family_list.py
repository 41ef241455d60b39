"""Every family of the installed transformers has a tiny model and a line on the page, or says it has none."""

from __future__ import annotations

import re

import pytest
import transformers as tf
from packaging.version import Version

from tests.engines import library
from tests.engines.families import PAGE, TOLERANCE, known_families, measure
from tests.engines.library import decoder_families, listed_families

TEXT = PAGE.read_text(encoding="utf-8")
MADE_FOR = Version(re.search(r"transformers (\S+),", TEXT)[1])  # type: ignore[index]
HERE = Version(tf.__version__)
ROWS = {
    parts[0]: parts[1:]
    for parts in (
        [part.strip() for part in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if re.match(r"\| [a-z0-9_]+ \|", line)
    )
    if parts[0] != "family"
}
AGAIN = "add a tiny model to tests/engines/newer.py and run `python -m tests.engines.families`"


@pytest.mark.parametrize("family", decoder_families())
def test_a_family_of_the_library_is_known(family):
    heads = ", ".join(listed_families()[family].heads)
    if HERE > MADE_FOR and family not in known_families():
        pytest.skip(
            f"{family} ({heads}) came after transformers {MADE_FOR}, of which the page tells: {AGAIN}"
        )
    assert family in known_families(), f"no tiny model of {family} ({heads}): {AGAIN}"
    assert family in ROWS, f"{PAGE.name} has no line for {family} ({heads}): {AGAIN}"
    assert ROWS[family][0] == known_families()[family].architecture


@pytest.mark.skipif(HERE != MADE_FOR, reason=f"the page tells of transformers {MADE_FOR}")
def test_the_page_has_no_other_lines():
    assert list(ROWS) == sorted(decoder_families())
    left_out = {family for family, own in listed_families().items() if own.kind != "decoder"}
    assert set(re.findall(r"^- ([a-z0-9_]+): ", TEXT.partition("## Left out")[2], re.MULTILINE)) == left_out


def test_what_the_page_promises():
    for family, cells in ROWS.items():
        _, engine, join, *traces = cells
        assert engine in ("tree", "reference", "tree / reference", "–"), family
        assert (join == "–") == ("tree" not in engine), family
        for cell in traces:
            assert cell == "refused" or float(cell) < TOLERANCE, (family, cell)
        if "refused" in traces:
            assert re.search(rf"^- {family}, [a-z ]+\. \w+Error: .{{40}}", TEXT, re.MULTILINE), family
        if "reference" in engine:
            assert re.search(rf"^- {family}: .{{20}}", TEXT, re.MULTILINE), family


def test_a_new_family_is_seen_by_its_files(tmp_path):
    """What no list of names has: by a module, by a config, and what isn't a decoder."""

    def made(name, module, config):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"modeling_{name}.py").write_text(module)
        (folder / f"configuration_{name}.py").write_text(config)
        return library._listed(folder)

    heads = '__all__ = [\n    "OneModel",\n    "OneForCausalLM",\n]\n'
    one = made("one", f"class OneBlock:\n        self.experts = None\n{heads}", "")
    assert (one.kind, one.heads) == ("decoder", ("OneForCausalLM",))
    two = made("two", heads, "class TwoConfig:\n    num_experts_per_tok: int = 2\n")
    assert two.kind == "decoder"
    assert made("three", heads, "class ThreeConfig:\n    num_heads: int = 2\n") is None
    four = made("four", heads, "    num_experts: int = 2\n    is_encoder_decoder: bool = True\n")
    assert four.kind == "encoder-decoder"
    five = made("five", '__all__ = ["FiveForImageClassification"]', "    num_experts: int = 2\n")
    assert five.kind == "no language-model head"
    alias = made("six", "", 'class SixConfig:\n    model_type = "qwen3_moe"\n    num_experts: int = 2\n')
    assert alias.heads == ("Qwen3MoeForCausalLM",)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(known_families()))
def test_the_figures_again(family):
    if family not in ROWS:
        pytest.skip(f"the page tells of transformers {MADE_FOR}, which lacks {family}")
    row = measure(family)
    _, engine, join, *traces = ROWS[family]
    assert (row.engine, row.join) == (engine, join), row.reason
    for cell, told in zip(row.cells, traces, strict=True):
        assert bool(cell.refusal) == (told == "refused"), cell.refusal
        assert cell.refusal or cell.difference < TOLERANCE
