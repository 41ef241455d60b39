"""The package itself: stubs that match the extensions, versions that agree, imports that stay light."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moetrace as mt

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", ["_core", "_stats"])
def test_stubs_are_fresh(module, tmp_path):
    # torch first: the core finds torch's libraries in the process that has them loaded.
    code = "import torch, runpy; runpy.run_module('pybind11_stubgen', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, f"moetrace.{module}", "-o", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = (tmp_path / "moetrace" / f"{module}.pyi").read_text()
    # The version of torch is the only value in a stub.
    made = re.sub(r"TORCH_VERSION: str = '.*'", "TORCH_VERSION: str", made)
    kept = (ROOT / "python" / "moetrace" / f"{module}.pyi").read_text()
    kept = re.sub(r"TORCH_VERSION: str = '.*'", "TORCH_VERSION: str", kept)
    assert made == kept, f"run: pybind11-stubgen moetrace.{module} -o python"


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.MULTILINE)[1] == mt.__version__
    assert f"## {mt.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    pins = set(re.findall(r'"(torch==[^"]*)"', text))
    assert len(pins) == 1, "torch is pinned alike for the build and for the package"


def test_statistics_need_no_torch():
    code = "import sys, moetrace.stats; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there_and_documented():
    for name in mt.__all__:
        value = getattr(mt, name)
        if name != "__version__":
            assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mt.nothing  # noqa: B018
    assert set(mt.__all__) <= set(dir(mt))


@pytest.mark.parametrize("package", ["cases", "coalition", "demo", "stats"])
def test_no_module_hides_a_public_name_of_its_package(package):
    home = importlib.import_module(f"moetrace.{package}")
    modules = {path.stem for path in Path(home.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules.isdisjoint(home.__all__)
    assert not [name for name in modules if name.startswith("_")]


def test_the_core_knows_no_python():
    for path in (ROOT / "cpp" / "moetrace").rglob("*"):
        if path.suffix in (".h", ".cpp"):
            text = path.read_text()
            assert "py::" not in text, path
            assert "pybind11" not in text, path


def test_aten_comes_through_one_header():
    free = ("tree", "stats", "coalition")
    for folder in free:
        for path in (ROOT / "cpp" / "moetrace" / folder).glob("*.*"):
            text = path.read_text()
            assert "ATen" not in text, path
            assert "torch" not in text.split("\n\n")[0], path


def test_typed():
    assert importlib.util.find_spec("moetrace").origin
    assert (Path(mt.__file__).parent / "py.typed").exists()
