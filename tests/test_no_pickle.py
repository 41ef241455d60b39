"""Nothing that the package reads can run code: no pickle, no eval, no remote code unless it is asked for."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import moetrace as mt
from moetrace.errors import ModelError
from tests.engines.tiny import make_model

PACKAGE = Path(mt.__file__).parent
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
READERS = {
    "torch.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "torch.jit.load",
    "yaml.load",
    "np.fromstring",
}
ALLOWED: set[tuple[str, str]] = set()


def dangers(source: str) -> list[str]:
    """What in a source can run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names]
            found += [module] if module.split(".")[0] in MODULES else [n for n in names if n in READERS]
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node) in READERS:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Name):
            if node.id in BUILTINS:
                found.append(node.id)
        elif isinstance(node, ast.keyword):
            value = ast.unparse(node.value)
            if node.arg in ("allow_pickle", "trust_remote_code") and value not in (
                "False",
                "trust_remote_code",
            ):
                found.append(f"{node.arg}={value}")
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            default = [None] * (len(node.posonlyargs + node.args) - len(node.defaults)) + node.defaults
            for argument, value in zip(named, [*default, *node.kw_defaults], strict=True):
                if argument.arg == "trust_remote_code" and (value is None or ast.unparse(value) != "False"):
                    found.append("trust_remote_code without the default False")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle.compat as c",
        "torch.load(path)",
        "from torch import load",
        "read = torch.load",
        "eval(text)",
        "f = exec",
        "compile(text, 'x', 'exec')",
        "pd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "from_pretrained(name, trust_remote_code=True)",
        "def load(name, *, trust_remote_code=True): ...",
        "def load(trust_remote_code): ...",
    ],
)
def test_each_danger_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1


def test_what_is_harmless_is_not() -> None:
    harmless = "model.eval(); re.compile(x); np.load(p, allow_pickle=False); torch.compile(m)\n"
    harmless += (
        "def load(a, b=1, *, c, trust_remote_code: bool = False):\n    f(trust_remote_code=trust_remote_code)"
    )
    assert dangers(harmless) == []


def test_the_package_runs_nothing_that_it_reads() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    found = {
        (str(path.relative_to(PACKAGE)), danger) for path in files for danger in dangers(path.read_text())
    }
    assert found == ALLOWED


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A tiny checkpoint as older ones are: config, tokenizer, pytorch_model.bin."""
    folder = tmp_path / "model"
    model = make_model("qwen3_moe")
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    demo = PACKAGE / "demo" / "data"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    return folder


def test_pickled_weights_are_refused_unless_asked_for(pickled: Path) -> None:
    with pytest.raises(ModelError) as refusal:
        mt.load_model(str(pickled))
    message = str(refusal.value)
    assert str(pickled / "pytorch_model.bin") in message
    assert "save_pretrained" in message
    assert "use_safetensors=False" in message
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        mt.load_model(str(pickled), use_safetensors=None)
    model, _ = mt.load_model(str(pickled), use_safetensors=False)
    kept = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    # The remedy of the message, word for word:
    command = message.split("convert it once: ")[1].split("; or")[0]
    exec(command, {})
    again, _ = mt.load_model(str(pickled))
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())


def test_sharded_pickles_are_refused_by_the_name_of_the_first(pickled: Path) -> None:
    (pickled / "pytorch_model.bin").rename(pickled / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"pytorch_model-00001-of-00001\.bin holds pickled weights"):
        mt.load_model(pickled)


def test_a_pickle_that_runs_code_runs_none(pickled: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"lm_head.weight": Trap(mark)}, pickled / "pytorch_model.bin")
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(ModelError):
            mt.load_model(str(pickled), **options)
    assert not mark.exists()


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE / "demo" / "data", tmp_path / "demo")
    weights = tmp_path / "demo" / "model.safetensors"
    for part in (weights.read_bytes()[:-100], weights.read_bytes()[:4], b""):
        weights.write_bytes(part)
        with pytest.raises(ModelError, match="can't be loaded as a causal language model"):
            mt.load_model(str(tmp_path / "demo"))


def test_pickles_beside_safetensors_are_left_alone(pickled: Path, tmp_path: Path) -> None:
    make_model("qwen3_moe").save_pretrained(pickled)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    assert mt.load_model(str(pickled))[0] is not None
