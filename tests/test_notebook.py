"""The walk through the package runs from top to bottom, and shows what it says today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs_and_its_words_are_true() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    words = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    active = int(names["checked"].specificity(names["star"]).rows.clean_active.sum())
    assert f"clean-active in {active} of the {len(names['checked'])} cases" in words
    shown = "".join(str(cell.get("outputs")) for cell in cells)
    assert str(names["star"]) in shown
