"""The package itself: stubs that match the extensions, versions that agree, imports that stay light."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
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
    kept = (ROOT / "python" / "moetrace" / f"{module}.pyi").read_text()
    assert made == kept, f"moetrace.{module} has changed; CONTRIBUTING.md says how its stub is made anew"


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', text, re.MULTILINE)[1] == mt.__version__
    assert f"## {mt.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert core_module().__version__ == mt.__version__


def core_module():
    from moetrace._native import _core

    return _core


@pytest.mark.parametrize("version", ["2.10.1", "3.0.0", "1.13.1+cu117"])
def test_another_torch_is_an_import_error_that_says_what_to_do(version):
    code = f"import torch; torch.__version__ = {version!r}; import moetrace._native"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert "CoreImportError" in last
    assert f"torch {version} is installed" in last
    assert "pip install 'torch>=2.11,<3'" in last
    assert issubclass(mt.errors.CoreImportError, ImportError)


@pytest.mark.parametrize("module", ["_core", "_stats"])
def test_one_build_serves_every_torch_of_the_range(module):
    """Nothing of torch but its stable C functions, and of those none that the oldest torch lacks."""
    from moetrace._native import LEAST

    abi = pytest.importorskip("torch_abi_audit", reason="needs Python 3.11")
    audit = abi.inspect_extension(Path(extension(module)))
    assert audit.error is None
    assert audit.torch.uses_torch == (module == "_core")
    assert not audit.torch.unstable_symbols
    assert not audit.torch.unknown_shim_symbols
    if module == "_core":
        assert audit.torch.stable
        assert tuple(map(int, audit.torch.min_torch_version.split(".")))[:2] <= LEAST


@pytest.mark.skipif(shutil.which("readelf") is None, reason="reads the file with readelf")
@pytest.mark.parametrize(("module", "libraries"), [("_core", {"libtorch_cpu.so"}), ("_stats", set())])
def test_an_extension_finds_torch_in_the_process_and_not_by_a_folder(module, libraries):
    command = ["readelf", "--dynamic", "--wide", extension(module)]
    entries = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", entries))
    assert any(name.startswith("libc.") for name in needed)
    assert {name for name in needed if re.match(r"libtorch|libc10|libcu|libpython", name)} == libraries
    assert not [name for name in needed if "/" in name]
    assert not re.findall(r"\((?:RPATH|RUNPATH)\).*", entries)


@pytest.mark.parametrize("module", ["_core", "_stats"])
def test_an_extension_names_no_folder_of_the_machine_that_built_it(module):
    """Messages of torch's headers and of our checks name files: by their place in the tree."""
    text = Path(extension(module)).read_bytes()
    assert not re.findall(rb"(?<=\0)/[\x20-\x7e]*\.(?:h|hpp|cpp)\0", text)
    assert (b"torch/csrc/stable/tensor_inl.h\0" in text) == (module == "_core")


def extension(module):
    core_module()  # torch's libraries must be there before the core
    return importlib.import_module(f"moetrace.{module}").__file__


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
    files = [path for path in (ROOT / "cpp" / "moetrace").rglob("*") if path.suffix in (".h", ".cpp")]
    assert len(files) > 50
    for path in files:
        text = path.read_text()
        assert "py::" not in text, path
        assert "pybind11" not in text, path
        assert not [name for name in includes(path) if name.startswith(("pybind11/", "Python.h"))], path


TORCH = re.compile(r"(ATen|c10|torch)/")


@pytest.mark.parametrize("folder", ["coalition", "stats", "tree"])
def test_plans_and_statistics_include_nothing_of_torch(folder):
    files = [
        path for path in (ROOT / "cpp" / "moetrace" / folder).rglob("*") if path.suffix in (".h", ".cpp")
    ]
    assert files
    for path in files:
        for name, header in includes(path).items():
            assert not TORCH.match(name), f"{path} includes {name} by way of {header}"


def includes(path):
    """What a file includes, directly or by way of the project's own headers: name -> the file that does."""
    found, todo = {}, [path]
    while todo:
        file = todo.pop()
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', file.read_text(), re.MULTILINE):
            if name not in found:
                found[name] = file
                own = (file.parent / name, ROOT / "cpp" / name)
                todo += [header for header in own if header.is_file()][:1]
    return found


def test_typed():
    assert importlib.util.find_spec("moetrace").origin
    assert (Path(mt.__file__).parent / "py.typed").exists()
