"""The compiled layout of a batch against a plain Python twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetrace._native import _core

shapes = st.integers(1, 7).flatmap(
    lambda length: st.tuples(
        st.just(length), st.integers(0, length - 1), st.integers(1, length), st.integers(0, length - 1)
    )
)


def twin_rows(shape, forks, branches):
    """All nodes of one case as (kind, branch or fork, position) -> set of visible nodes."""
    length, start, _, patch = shape
    paths = {}
    for position in range(length):
        for branch in range(-1, branches):
            node = ("base", -1 if position < start else branch, position)
            before = [("base", -1 if p < start else branch, p) for p in range(position)]
            paths[node] = {*before, node}
    for index, (_, branch) in enumerate(forks):
        for position in range(patch, length):
            node = ("fork", index, position)
            trunk = [("base", -1 if p < start else branch, p) for p in range(patch)]
            paths[node] = {*trunk, *(("fork", index, p) for p in range(patch, position)), node}
    return paths


def make_pass(cases, layers_patched, draws, layers, join=_core.Join.BEFORE_LAYER):
    job = _core.Job(layers, draws, [_core.Patch.block(layer) for layer in layers_patched], [])
    given = [
        _core.PassCase(list(range(length)), start, stop, [[patch]], np.zeros((draws, stop - start, 2)))
        for length, start, stop, patch in cases
    ]
    return _core.Pass(job, [_core.LayerFacts(experts=False)] * layers, given, 0, len(layers_patched), join)


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 2), st.integers(0, 3), st.randoms())
def test_plan_and_visibility(cases, branches, n_patches, random):
    cases = [(length, min(a, b - 1), b, p) for length, a, b, p in cases]
    layers = 4
    patched = [random.randrange(layers) for _ in range(n_patches)]
    forks = [(layer, branch) for layer in patched for branch in range(branches)]
    run = make_pass(cases, patched, branches, layers)
    plan, visible = run.plan, run.visibility()
    np.testing.assert_array_equal(run.input_ids(), plan.position[:, : run.start_rows])  # tokens are places
    np.testing.assert_array_equal(run.position_ids(), plan.position[:, : run.start_rows])
    assert len(run.final_rows) == 1 + branches + len(forks)
    for row in run.final_rows:
        assert [plan.position[i, row] for i in range(len(cases))] == [case[0] - 1 for case in cases]
    for layer in range(layers):
        chains = zip(plan.chains, forks, strict=True)
        alive = plan.base_rows + sum(chain for chain, fork in chains if fork[0] <= layer)
        assert plan.rows_at_layer[layer] == alive
    for index, case in enumerate(cases):
        paths = twin_rows(case, forks, branches)
        names = {}
        for row in range(plan.rows):
            branch, fork, position = plan.branch[index, row], plan.fork[index, row], plan.position[index, row]
            if branch == -2:
                assert visible[index, row].nonzero()[0].tolist() == [row]
            else:
                names[row] = ("fork", fork, position) if fork >= 0 else ("base", branch, position)
        assert sorted(names.values()) == sorted(paths)
        for row, other in itertools.product(names, names):
            assert visible[index, row, other] == (names[other] in paths[names[row]])
        back = {name: row for row, name in names.items()}
        for row, (kind, owner, position) in names.items():
            clean = back["base", -1, position]
            assert plan.clean_twin[index, row] == clean
            if kind == "fork":
                start = case[1]
                assert (
                    plan.source[index, row]
                    == back["base", -1 if position < start else forks[owner][1], position]
                )


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 90))
def test_pack(rows, budget):
    """Greedy over ascending sizes."""
    expected: list[list[int]] = []
    for item in sorted(range(len(rows)), key=lambda i: (rows[i], i)):
        if expected and (len(expected[-1]) + 1) * rows[item] <= budget:
            expected[-1].append(item)
        else:
            expected.append([item])
    assert _core.pack(rows, budget) == expected


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        make_pass([], [], 1, 1)
    with pytest.raises(ValueError, match="layer 1 of a model with 1"):
        make_pass([(4, 1, 2, 3)], [1], 1, 1)
    case = _core.PassCase([1, 2, 3, 4], 2, 2, [[3]], np.zeros((1, 1, 2)))
    facts = [_core.LayerFacts(experts=False)]
    with pytest.raises(ValueError, match=r"\[2, 2\)"):
        _core.Pass(_core.Job(1, 1, [], []), facts, [case], 0, 0, _core.Join.START)
    with pytest.raises(ValueError, match="budget"):
        _core.pack([1], 0)
    assert make_pass([(4, 1, 2, 3)], [], 1, 1).plan.position.shape == (1, 7)


def test_grids_are_read_only_and_outlive_the_pass():
    position = make_pass([(4, 1, 2, 3)], [0], 1, 1).plan.position
    assert position.tolist() == [[0, 1, 2, 1, 2, 3, 3, 3]]
    with pytest.raises(ValueError, match="read-only"):
        position[0, 0] = 1
