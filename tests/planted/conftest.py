from __future__ import annotations

import pytest

from moetrace.planted import FAMILIES, KINDS, Planted, plant

_made: dict[tuple[str, str], Planted] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that takes ``planted`` runs on all kinds of both families; ``engine``: on both engines."""
    if "planted" in metafunc.fixturenames:
        pairs = [(kind, family) for family in FAMILIES for kind in KINDS]
        metafunc.parametrize("planted", pairs, indirect=True, ids=["-".join(pair) for pair in pairs])
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", ["tree", "reference"])


@pytest.fixture
def planted(request: pytest.FixtureRequest) -> Planted:
    kind, family = request.param
    if (kind, family) not in _made:
        _made[kind, family] = plant(kind, family, n=8)
    return _made[kind, family]
