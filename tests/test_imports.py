"""Imports point one way: pyproject.toml says which package stands on which, and none may look up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter.application.use_cases import read_user_options
from importlinter.cli import lint_imports
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract

CONFIG = str(Path(__file__).parents[1] / "pyproject.toml")
KINDS = {
    "layers": LayersContract,
    "acyclic_siblings": AcyclicSiblingsContract,
    "forbidden": ForbiddenContract,
}


def kept(graph: grimp.ImportGraph, contract: str) -> bool:
    """Whether a graph keeps a contract of pyproject.toml."""
    options = read_user_options(CONFIG)
    (own,) = (dict(found) for found in options.contracts_options if found["id"] == contract)
    kind, name = KINDS[own.pop("type")], own.pop("name")
    return kind(name, options.session_options, own).check(graph, verbose=False).kept


@pytest.fixture
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("moetrace", exclude_type_checking_imports=True, cache_dir=None)


def test_no_import_points_up_and_none_in_a_circle(capsys: pytest.CaptureFixture[Any]) -> None:
    assert lint_imports(CONFIG, no_cache=True, no_logo=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("contract", "importer", "imported"),
    [
        ("layers", "moetrace.stats", "moetrace.results.base"),
        ("layers", "moetrace.results.base", "moetrace.trace.session"),
        ("layers", "moetrace.trace.session", "moetrace.protocol"),
        ("layers", "moetrace.stats", "moetrace.coalition"),
        ("circles", "moetrace.results.expert_arrays", "moetrace.results.experts"),
        ("effects", "moetrace.effects.contrasts", "moetrace.cases"),
    ],
)
def test_a_wrong_import_breaks_its_rule(
    graph: grimp.ImportGraph, contract: str, importer: str, imported: str
) -> None:
    assert kept(graph, contract)
    graph.add_import(importer=importer, imported=imported)
    assert not kept(graph, contract)


def test_a_package_without_a_place_breaks_the_rule(graph: grimp.ImportGraph) -> None:
    assert kept(graph, "layers")
    graph.add_module("moetrace.elsewhere")
    assert not kept(graph, "layers")
